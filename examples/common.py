"""What the training scripts have in common: their command line, their progress bar, and the object they end with."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
from lines import Lines
from tqdm import tqdm

from hvd_compress import methods, parse, spec
from hvd_compress.status import Status

RANKS = ("OMPI_COMM_WORLD_RANK", "HOROVOD_RANK", "RANK")  # where launchers say which one a process is
RATES = {"sgd": 0.1, "momentum": 0.05, "adam": 0.001}


def arguments(
    description: str, models: Sequence[str], tasks: Sequence[str] = datasets.IMAGES, line: list[str] | None = None
) -> argparse.Namespace:
    """Read the command line, or one that is given."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--task", choices=tasks, default="digits", help="the data set")
    text = ", or the file of text (if none: this project's documents)" if "text" in tasks else ""
    parser.add_argument(
        "--data", metavar="DIR", help=f"folder with the files of mnist or cifar10; digits needs none{text}"
    )
    gpt = "gpt for text, mlp for others" if "text" in tasks else "mlp"
    parser.add_argument("--model", choices=sorted(models), help=f"the network (if none: {gpt})")
    parser.add_argument(
        "--compression", metavar="SPEC", default="none", help=f"a compressor: {', '.join(methods())}, with settings"
    )
    parser.add_argument(
        "--rule",
        metavar="PATTERN=SPEC",
        action="append",
        default=[],
        help="another compressor for parameters of these names, such as '*.bias=none'; may be repeated, the first "
        "that matches decides",
    )
    parser.add_argument("--optimizer", choices=sorted(RATES), default="momentum", help="momentum is SGD with 0.9")
    rates = ", ".join(f"{rate} for {name}" for name, rate in RATES.items())
    parser.add_argument(
        "--lr", type=float, help=f"learning rate at the start, falling to 0 linearly (if none: {rates})"
    )
    parser.add_argument(
        "--epochs", type=int, help="passes over the training data (if none: 10; 3 of mnist and cifar10)"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="examples a step on each worker")
    parser.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="use only the first N training examples (if none, nor --epochs: 2048 for resnet9 on mnist and cifar10)",
    )
    parser.add_argument("--status", metavar="FILE", help="keep FILE up to date for `hvd-compress watch FILE`")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the order of the data and the compressor")
    args = parser.parse_args(line)
    args.model = args.model or ("gpt" if args.task == "text" else "mlp")
    for name in ("epochs", "batch_size", "limit"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1; got {value}")
    if args.epochs is None:  # what two cores do in less than two minutes
        large = args.task in ("mnist", "cifar10")
        args.epochs = 3 if large else 10
        if large and args.model == "resnet9" and args.limit is None:
            args.limit = 2048
    if args.status is not None and not Path(args.status).absolute().parent.is_dir():
        parser.error(f"--status must be a file in a folder that exists; got {args.status}")
    for rule in args.rule:
        if "=" not in rule:
            parser.error(f"--rule must be PATTERN=SPEC; got {rule}")
    return args


def threads(workers: int) -> int:
    """Return how many threads a worker takes, of some `workers` on this machine; OMP_NUM_THREADS says otherwise."""
    return int(os.environ.get("OMP_NUM_THREADS") or max(1, len(os.sched_getaffinity(0)) // workers))


def learning_rate(args: argparse.Namespace) -> float:
    """Return the learning rate at the start."""
    return float(RATES[args.optimizer] if args.lr is None else args.lr)


def momentum(args: argparse.Namespace) -> float:
    """Return SGD's momentum: none where the compressor keeps it."""
    return 0.9 if args.optimizer == "momentum" and not parse(args.compression).has_momentum else 0.0


def rules(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Return the rules as an optimizer takes them."""
    pairs = (rule.split("=", 1) for rule in args.rule)
    return [(pattern, compression) for pattern, compression in pairs]


def closing(args: argparse.Namespace, stats: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return what came of a training: `stats` are those of its compression."""
    counted = ("bytes_sent", "dense_bytes", "compression_seconds", "communication_seconds", "collectives")
    said = {name: getattr(args, name) for name in ("task", "model", "optimizer", "seed")}
    return {
        **more,
        **{name: stats[name] for name in counted},
        "compression": spec(parse(args.compression)),
        "rules": args.rule,
        **said,
    }


def say_loading(what: str) -> None:
    """Say on rank 0 that the job has begun, before what takes seconds to import."""
    rank = next((os.environ[name] for name in RANKS if name in os.environ), "0")
    if rank == "0":
        print(f"loading {what} ...", file=sys.stderr, flush=True)


class Progress(tqdm):  # type: ignore[type-arg]
    """A progress bar that says after the first steps how long the others will take, and tells `status` of each."""

    status = Status(None)
    _since: float | None = None  # the first step, which takes longer
    _said = False

    def update(self, n: float | None = 1) -> bool | None:
        """Count steps."""
        shown = super().update(n)
        if self.disable or self._said or self.total is None:
            return shown
        now = time.perf_counter()
        if self._since is None:
            self._since, self._counted = now, self.n
        elif now - self._since >= 1:
            self._said = True
            each = (now - self._since) / (self.n - self._counted)
            left = tqdm.format_interval(each * (self.total - self.n))
            print(f"{self.total} steps of {each:.2g} s: {left} to go", file=sys.stderr, flush=True)
        return shown

    def step_ended(self, stats: Callable[..., dict[str, Any]], loss: Any = None) -> None:
        """Count a step: `stats` is its optimizer's ``compression_stats``."""
        numbers = {} if loss is None else {"loss": float(loss)}
        if numbers:
            self.set_postfix(loss=f"{numbers['loss']:.3f}", refresh=False)
        self.update()
        self.status.tell(lambda: stats(phases=True, per_bucket=True), int(self.n), **numbers)

    def close(self) -> None:
        """End the bar, and what `status` tells."""
        super().close()
        self.status.end()


def progress_bar(total: int, args: argparse.Namespace, rank: int, ranks: int) -> Progress:
    """Return a progress bar on rank 0: one that redraws itself, or under a launcher a line every few seconds.

    Open MPI 5 forwards whole lines only: what redraws itself would be seen at the end, all at once.
    """
    lines = {"file": Lines(), "mininterval": 3.0} if ranks > 1 else {}
    progress = Progress(total=total, unit="step", disable=rank != 0, desc=args.compression, **lines)
    progress.status = Status(args.status if rank == 0 else None, total)
    return progress


def run_job(hvd: Any, prepare: Callable[[], tuple[Any, ...]], train: Callable[..., dict[str, Any]]) -> int:
    """Prepare, train, and print what came of it on rank 0; return 2 for bad input, and exit with 130 at Ctrl-C.

    Args:
        hvd: Horovod's module for the framework, initialized.
        prepare: returns what `train` takes.
        train: returns what came of it.
    """
    try:
        prepared = prepare()
    except (OSError, TypeError, ValueError) as error:
        if hvd.rank() == 0:
            print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return 2
    try:
        result = train(*prepared)
    except KeyboardInterrupt:
        if hvd.rank() == 0:
            print("interrupted", file=sys.stderr)
        os._exit(130)  # the other workers are stopping as well: there is nobody to take leave of
    if hvd.rank() == 0:
        print(json.dumps(result), flush=True)
    return 0
