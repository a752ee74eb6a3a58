"""`hvd-compress advise`: which method makes a model's step shortest on given hosts, and below which bandwidth."""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hvd_compress.cli.arguments import add_command, check_positive

if TYPE_CHECKING:
    from hvd_compress.advice.advise import Advice

WORTH = 1.03  # times shorter than the best without compression, below which a method is not worth its trouble


def register(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "advise", "predict which method makes a model's training step shortest")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument(
        "--model",
        metavar="MODULE:FUNCTION",
        help="function without arguments that returns a PyTorch model, and a function that computes the loss of one "
        "worker's batch; a step is timed here",
    )
    model.add_argument(
        "--parameters", type=int, metavar="D", help="instead: coordinates of the gradient; see --compute"
    )
    model.add_argument(
        "--trace", type=Path, metavar="FILE", help="instead: the trace of a run of this package (HVD_COMPRESS_TIMELINE)"
    )
    parser.add_argument("--compute", type=float, metavar="MS", help="milliseconds of a step without communication")
    parser.add_argument("--hosts", type=int, required=True, metavar="N", help="hosts, one worker on each")
    parser.add_argument("--mbits", type=float, default=1000.0, metavar="R", help="rate of a host's link in Mbit/s")
    parser.add_argument("--latency", type=float, default=50.0, metavar="US", help="microseconds of a message")
    parser.add_argument(
        "--only",
        nargs="+",
        action="extend",
        metavar="SPEC",
        help="the methods (if none: one or two of each family)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the prediction to this file, in seconds")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measure, predict, and print the table and what it comes to."""
    check_positive(args, "parameters", "hosts")
    for name, least in (("compute", 0.0), ("mbits", 1e-3), ("latency", 0.0)):
        value = getattr(args, name)
        if value is not None and not least <= value < math.inf:
            raise ValueError(f"--{name} must be at least {least:g} and finite; got {value}")
    if (args.compute is None) != (args.parameters is None):
        raise ValueError("--parameters and --compute go together")
    from hvd_compress.advice import computing as measured
    from hvd_compress.advice.advise import CANDIDATES, advise
    from hvd_compress.advice.model import Computing, Ring
    from hvd_compress.advice.traced import traced
    from hvd_compress.ops.torch import TorchOps
    from hvd_compress.reduction.buckets import Gradient

    if args.model is not None:
        model, loss = measured.loaded(args.model)
        gradients, computing = measured.gradients_of(model), measured.computing_of(model, loss)
    elif args.trace is not None:
        gradients, computing = traced(args.trace)
    else:
        side = math.isqrt(args.parameters)
        gradients = [Gradient("matrix", (side, side), "float32")]
        gradients += [Gradient("rest", (1, rest), "float32")] if (rest := args.parameters - side * side) else []
        computing = Computing.of(args.compute / 1000)
    ring = Ring(args.hosts, args.mbits * 1e6 / 8, args.latency / 1e6)
    ops = TorchOps(gradients[0].device)
    found = advise(gradients, computing, ring, ring, ops, workers=args.hosts, specs=args.only or CANDIDATES)
    _print(found, computing.seconds, args)
    if args.json is not None:
        rows = [{"spec": a.spec, "bytes": a.bytes, **asdict(a.predicted), "pays_below": _finite(a)} for a in found]
        args.json.write_text(json.dumps({"hosts": args.hosts, "mbits": args.mbits, "methods": rows}, indent=1) + "\n")


def _print(found: list[Advice], computing: float, args: argparse.Namespace) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from hvd_compress.advice.advise import PLAIN

    title = f"{args.hosts} hosts, links of {args.mbits:g} Mbit/s; a step computes for {1000 * computing:.1f} ms"
    table = Table(box=box.MARKDOWN, title=title)
    table.add_column("method")
    columns = (
        "MB handed over",
        "encode, ms",
        "decode, ms",
        "waiting, ms",
        "hidden, ms",
        "step, ms",
        "pays below, Mbit/s",
    )
    for column in columns:
        table.add_column(column, justify="right")
    for advice in found:
        step = advice.predicted
        times = (step.encode, step.decode, step.waiting, step.wire - step.waiting, step.seconds)
        milliseconds = [f"{1000 * max(0.0, seconds):.1f}" for seconds in times]
        pays = "" if advice.spec in PLAIN else _rate(advice.pays_below)
        table.add_row(advice.spec, f"{advice.bytes / 1e6:.3f}", *milliseconds, pays)
    console = Console(width=400 if not sys.stdout.isatty() else None)
    console.print(table)
    best = found[0]
    plain = next(advice for advice in found if advice.spec in PLAIN)
    shorter = plain.predicted.seconds / best.predicted.seconds
    if shorter < WORTH:
        waiting, seconds = (1000 * each for each in (plain.predicted.waiting, plain.predicted.seconds))
        console.print(
            f"Compression does not pay here: {plain.spec} waits for the network for {waiting:.1f} ms of its "
            f"{seconds:.1f}, and no method makes the step {100 * (WORTH - 1):.0f} % shorter."
        )
    else:
        console.print(
            f"{best.spec} has the shortest step, {shorter:.2f} times shorter than {plain.spec}, the best without "
            f"compression; it pays below {_rate(best.pays_below)} Mbit/s."
        )


def _finite(advice: Advice) -> float | None:
    return advice.pays_below if math.isfinite(advice.pays_below) else None


def _rate(rate: float) -> str:
    return "any" if math.isinf(rate) else f"{8 * rate / 1e6:.0f}" if rate else "nowhere"
