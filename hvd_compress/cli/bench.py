"""`hvd-compress bench`: time the compressors, or with `--servers` a parameter server."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from hvd_compress.cli.arguments import add_command, check_positive

SIZE = 25_000_000  # coordinates


def register(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "bench", "time the compressors, in multiples of copying the gradient once")
    parser.add_argument("--size", type=int, help=f"coordinates of the gradient (if none: {SIZE}; see --servers)")
    parser.add_argument("--only", nargs="+", action="extend", metavar="SPEC", help="the compressors (if none: all)")
    parser.add_argument("--threads", type=int, help="threads to use (if none: one for each core)")
    parser.add_argument("--repetitions", type=int, default=9, help="repetitions; their least and median are shown")
    frameworks = ("numpy", "tensorflow", "torch")
    parser.add_argument("--framework", choices=frameworks, help="whose arrays to compress (if none: torch)")
    devices = ("cpu", "cuda")
    parser.add_argument("--device", choices=devices, help="where PyTorch's tensors are (if none: cpu)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the times to this file, in seconds")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the times to this file (PNG, PDF or SVG)")
    parser.add_argument(
        "--servers",
        action="store_true",
        help="time a parameter server instead: alone (the least of all repetitions), and with 1 to 8 workers that "
        "mpirun starts on this machine; gradients have 20000 coordinates, mostly zeros, 1 million and 25 million, or "
        "--size coordinates",
    )
    parser.add_argument("--seconds", type=float, metavar="S", help="seconds of each job of --servers (if none: 1)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Check the arguments, and time what they ask for."""
    check_positive(args, "size", "threads", "repetitions")
    (_time_servers if args.servers else _time_compressors)(args)


def _time_compressors(args: argparse.Namespace) -> None:
    if args.seconds is not None:
        raise ValueError("--seconds goes with --servers alone")
    framework, device = args.framework or "torch", args.device or "cpu"
    if device == "cuda" and framework != "torch":
        raise ValueError(f"--device cuda goes with --framework torch alone; got {framework}")
    from hvd_compress.cli import compressor_bench

    compressor_bench.main(
        args.only or [],
        framework=framework,
        device=device,
        size=args.size or SIZE,
        threads=args.threads,
        repetitions=args.repetitions,
        json_path=args.json,
        plot_path=args.plot,
    )


def _time_servers(args: argparse.Namespace) -> None:
    for name in ("only", "framework", "device", "plot"):
        if getattr(args, name) is not None:
            raise ValueError(f"--{name} does not go with --servers")
    seconds = 1.0 if args.seconds is None else args.seconds
    if not 0 < seconds < math.inf:
        raise ValueError(f"--seconds must be above 0 and finite; got {seconds}")
    from hvd_compress.cli import server_bench

    server_bench.main(
        size=args.size, seconds=seconds, threads=args.threads, repetitions=args.repetitions, json_path=args.json
    )
