"""The memory that a step of each compressor takes beyond gradient, residual and mean, relative to the gradient.

    python -m benchmarks.memory

Linux only: it is the peak of the resident set over steps with feedback, each compressor in a process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from hvd_compress.cli.compressor_bench import default_specs

ROOT = Path(__file__).parents[2]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--size", type=int, default=25_000_000, help="coordinates of the gradient")
    parser.add_argument("--only", nargs="+", action="extend", metavar="SPEC", help="the compressors (if none: all)")
    args = parser.parse_args()
    table = Table(box=box.MARKDOWN, title=f"{args.size} coordinates: peak beyond gradient, state and mean")
    for column in ("compressor", "MB", "of it payload", "beyond the payload, of the gradient"):
        table.add_column(column, justify="left" if column == "compressor" else "right")
    specs = args.only or default_specs(args.size)
    for spec in track(specs, "compressors", console=Console(stderr=True), transient=True):
        command = [sys.executable, "-m", "benchmarks.memory.step", str(args.size), spec]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        extra, payload, gradient = map(int, done.stdout.split())
        table.add_row(spec, f"{extra / 1e6:.1f}", f"{payload / 1e6:.1f}", f"{(extra - payload) / gradient:.1%}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
