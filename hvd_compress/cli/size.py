"""`hvd-compress size`: how large a sketch must be, and what it sends compared with other methods."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from hvd_compress.cli.arguments import add_command
from hvd_compress.cli.sketch_sizes import sizes, verdicts


def register(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands, "size", "show how large a sketch must be and what it sends compared with other methods"
    )
    parser.add_argument("--parameters", type=int, required=True, metavar="D", help="coordinates of the gradient")
    parser.add_argument("--k", type=int, required=True, metavar="K", help="coordinates to find in each step")
    parser.add_argument("--steps", type=int, default=10_000, metavar="T", help="steps in which none may be missed")
    parser.add_argument(
        "--delta", type=float, default=0.05, metavar="X", help="probability that one is missed in any of these steps"
    )
    parser.add_argument("--workers", type=int, default=16, metavar="W", help="number of workers")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the table, and for each sketch whether it pays."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    found = sizes(args.parameters, args.k, args.steps, args.delta, args.workers)
    title = f"bytes of a step for each of {args.workers} workers: {args.parameters} parameters, k = {args.k}"
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
    for line in verdicts(found):
        console.print(line)
