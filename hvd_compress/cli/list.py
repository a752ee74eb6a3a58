"""`hvd-compress list`: the compressors, and the bytes that each sends for one matrix."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from typing import Any

from hvd_compress.cli.arguments import add_command, check_positive
from hvd_compress.compressors import Compressor, methods, parse, spec
from hvd_compress.compressors.schedule import END
from hvd_compress.ops.layout import Layout

COLUMNS = (
    "compressor",
    "formula",
    "wire format",
    "collectives",
    "unbiased",
    "feedback",
    "bytes a step",
    "bits a coordinate",
    "paper",
)


def register(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "list", "list the compressors and the bytes that each of them sends")
    parser.add_argument("specs", nargs="*", metavar="SPEC", help="the compressors (if none: all, with their defaults)")
    parser.add_argument("--rows", type=int, default=1000, help="rows of the matrix that is sent")
    parser.add_argument("--columns", type=int, default=1000, help="columns of the matrix that is sent")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the table."""
    check_positive(args, "rows", "columns")
    from rich import box
    from rich.console import Console
    from rich.table import Table

    layout = Layout.of([("matrix", (args.rows, args.columns))])
    title = f"one parameter of {args.rows} x {args.columns}: {4 * layout.size} bytes in fp32"
    table = Table(box=box.MARKDOWN, title=title)
    for column in COLUMNS:
        number = column in ("bytes a step", "bits a coordinate")
        table.add_column(column, overflow="fold", justify="right" if number else "left")
    for text in args.specs or methods():
        table.add_row(*cells(parse(text), layout))
    Console(width=1000 if not sys.stdout.isatty() else None).print(table)


def cells(compressor: Compressor, layout: Layout) -> tuple[str, ...]:
    """Return a row of the table."""
    inner = compressor.bare
    settled = inner.at(END)
    sent = settled.payload_bits(layout) // 8
    # A payload of varying length has an upper bound if sending every coordinate costs no more.
    at_most = "<= " if settled.varying and sent == settled.payload_bits(layout, layout.size) // 8 else ""
    settings = (f"{item.name}={_text(getattr(inner, item.name))}" for item in fields(inner))
    return (
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


def _text(value: Any) -> str:
    return spec(value) if isinstance(value, Compressor) else str(value)
