"""The command `hvd-compress`."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from hvd_compress import bench, sizing
from hvd_compress.compressors import Compressor, methods, parse, spec
from hvd_compress.compressors.schedule import END
from hvd_compress.ops.layout import Layout
from hvd_compress.version import __version__


def list_compressors(specs: list[str], rows: int, columns: int) -> None:
    """Print a table of compressors, with the bytes that each sends for one matrix."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    layout = Layout.of([("matrix", (rows, columns))])
    table = Table(box=box.MARKDOWN, title=f"one parameter of {rows} x {columns}: {4 * layout.size} bytes in fp32")
    for column in ("compressor", "formula", "wire format", "collectives", "unbiased", "feedback"):
        table.add_column(column, overflow="fold")
    table.add_column("bytes a step", justify="right")
    table.add_column("bits a coordinate", justify="right")
    table.add_column("paper")
    for text in specs or list(methods()):
        compressor = parse(text)
        inner = compressor.bare
        settled = inner.at(END)
        sent = settled.payload_bits(layout) // 8
        at_most = "<= " if settled.varying and sent == settled.payload_bits(layout, layout.size) // 8 else ""
        settings = (f"{item.name}={_text(getattr(inner, item.name))}" for item in fields(inner))
        table.add_row(
            f"{inner.name}({', '.join(settings)})",
            inner.formula,
            inner.wire,
            " + ".join(compressor.collectives),
            "yes" if inner.unbiased else "no",
            compressor.name if compressor is not inner else "none",
            f"{at_most}{sent}",
            f"{at_most}{8 * sent / layout.size:.3g}",
            inner.paper,
        )
    Console(width=1000 if not sys.stdout.isatty() else None).print(table)


def show_sizes(parameters: int, k: int, steps: int, delta: float, workers: int) -> None:
    """Print what a sketch for k coordinates takes, and what it sends against other methods."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    found = sizing.sizes(parameters, k, steps, delta, workers)
    title = f"bytes of a step for each of {workers} workers: {parameters} parameters, k = {k}"
    table = Table(box=box.MARKDOWN, title=title)
    table.add_column("method")
    for column in ("rows x columns", "sent", "of these, second round", "received", "times fewer than dense, sent"):
        table.add_column(column, justify="right")
    for size in found:
        shape = f"{size.rows} x {size.columns}" if size.rows else ""
        fewer, second = f"{found[-1].sent / size.sent:.3g}", str(size.second or "")
        table.add_row(size.name, shape, str(size.sent), second, str(size.received), fewer)
    console = Console(width=400 if not sys.stdout.isatty() else None)
    console.print(table)
    for line in sizing.verdicts(found):
        console.print(line)


def bench_servers(args: argparse.Namespace) -> None:
    """Time a parameter server."""
    for name in ("only", "framework", "plot"):
        if getattr(args, name) is not None:
            raise ValueError(f"--{name} does not go with --servers")
    seconds = 1.0 if args.seconds is None else args.seconds
    if not 0 < seconds < math.inf:
        raise ValueError(f"--seconds must be above 0 and finite; got {seconds}")
    import mpi4py

    mpi4py.rc.initialize = False  # only what mpirun starts is a rank
    from hvd_compress.parameter_server import bench as server_bench

    server_bench.main(
        size=args.size, seconds=seconds, threads=args.threads, repetitions=args.repetitions, json_path=args.json
    )


def _text(value: Any) -> str:
    return spec(value) if isinstance(value, Compressor) else str(value)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="hvd-compress", description="Compressed gradients for Horovod and mpi4py.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    lister = commands.add_parser(
        "list",
        help="list the compressors, and the bytes that each sends",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    lister.add_argument("specs", nargs="*", metavar="SPEC", help="the compressors (if none: all, with their defaults)")
    lister.add_argument("--rows", type=int, default=1000, help="rows of the matrix that is sent")
    lister.add_argument("--columns", type=int, default=1000, help="columns of the matrix that is sent")
    bencher = commands.add_parser(
        "bench",
        help="time the compressors, in multiples of copying the gradient once",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    bencher.add_argument("--size", type=int, help="coordinates of the gradient (if none: 25000000; see --servers)")
    bencher.add_argument("--only", nargs="+", metavar="SPEC", help="the compressors (if none: all)")
    bencher.add_argument("--threads", type=int, help="threads to use (if none: one for each core)")
    bencher.add_argument("--repetitions", type=int, default=9, help="repetitions, of which least and median are shown")
    frameworks = ("numpy", "tensorflow", "torch")
    bencher.add_argument("--framework", choices=frameworks, help="whose arrays to compress (if none: torch)")
    bencher.add_argument("--json", type=Path, metavar="FILE", help="write the times there, in seconds")
    bencher.add_argument("--plot", type=Path, metavar="FILE", help="draw the times there (PNG, PDF or SVG)")
    bencher.add_argument(
        "--servers",
        action="store_true",
        help="time a parameter server instead, alone (the least of all repetitions) and with 1 to 8 workers that "
        "mpirun starts on this machine: gradients of 20000 coordinates, mostly zeros, and of 1 and 25 million; or of "
        "--size",
    )
    bencher.add_argument("--seconds", type=float, metavar="S", help="of each job of --servers (if none: 1)")
    sizer = commands.add_parser(
        "size",
        help="tell how large a sketch must be, and what it sends against other methods",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    sizer.add_argument("--parameters", type=int, required=True, metavar="D", help="coordinates of the gradient")
    sizer.add_argument("--k", type=int, required=True, metavar="K", help="coordinates to find in each step")
    sizer.add_argument("--steps", type=int, default=10_000, metavar="T", help="steps in which none is to be missed")
    sizer.add_argument(
        "--delta", type=float, default=0.05, metavar="X", help="probability that one is missed all the same"
    )
    sizer.add_argument("--workers", type=int, default=16, metavar="W", help="their number")
    args = parser.parse_args()
    for name in ("rows", "columns", "size", "threads", "repetitions"):
        if getattr(args, name, None) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1; got {getattr(args, name)}")
    try:
        if args.command == "list":
            list_compressors(args.specs, args.rows, args.columns)
        elif args.command == "size":
            show_sizes(args.parameters, args.k, args.steps, args.delta, args.workers)
        elif args.servers:
            bench_servers(args)
        elif args.seconds is not None:
            raise ValueError("--seconds goes with --servers alone")
        else:
            bench.main(
                args.only or [],
                framework=args.framework or "torch",
                size=args.size or 25_000_000,
                threads=args.threads,
                repetitions=args.repetitions,
                json_path=args.json,
                plot_path=args.plot,
            )
    except ModuleNotFoundError as error:
        parser.error(f"{error}; install it with: pip install 'hvd-compress[bench,mpi]' torch")
    except (OSError, TypeError, ValueError) as error:
        parser.error(str(error))
