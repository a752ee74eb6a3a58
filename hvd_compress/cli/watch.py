"""`hvd-compress watch`: a running job's bytes, times and residuals, live."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hvd_compress.cli.arguments import add_command, check_positive

LATE = 10.0  # seconds without news, after which that is said


def register(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "watch", "show what a running job sends, and where its time goes")
    parser.add_argument("file", type=Path, metavar="FILE", help="what the job writes: --status FILE of the examples")
    parser.add_argument("--interval", type=float, default=1.0, metavar="S", help="seconds between two looks")
    parser.add_argument("--once", action="store_true", help="print the present state and end")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Show the file until the job has ended, or until Ctrl-C."""
    check_positive(args, "interval")
    told = read(args.file)
    console = Console(width=None if sys.stdout.isatty() else 120)
    if args.once:
        console.print(shown(told))
        return
    try:
        with Live(shown(told), console=console, auto_refresh=False) as live:
            while not told.get("ended"):
                time.sleep(args.interval)
                told = read(args.file)
                live.update(shown(told), refresh=True)
    except KeyboardInterrupt:
        return  # the job goes on


def read(path: Path) -> dict[str, Any]:
    """Return what a job has written.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is no file of a job.
    """
    try:
        told = json.loads(path.read_text())
    except ValueError:
        told = None
    if not isinstance(told, dict) or not {"stats", "step", "began", "written", "steps"} <= told.keys():
        raise ValueError(f"{path} is not what a job writes with --status, or hvd_compress.status.Status")
    return told


def shown(told: dict[str, Any]) -> RenderableType:
    """Return what is shown of a job."""
    stats = told["stats"]
    step = f"step {told['step']:,}" + (f" of {told['steps']:,}" if told["steps"] else "")
    numbers = [f"{name} {number:.4g}" for name, number in told.get("numbers", {}).items()]
    parts: list[RenderableType] = [Text(", ".join([step, f"{told['written'] - told['began']:.0f} s", *numbers]))]
    if stats:
        sent = f"{_bytes(stats['bytes_sent'])} sent, {stats['ratio']:.1f} times fewer than fp32"
        parts.append(Text(f"{sent}; residual norm {stats['residual_norm']:.4g}"))
    if "phases" in stats:
        parts.append(_phases(stats["phases"]))
    if stats.get("buckets"):
        parts.append(_buckets(stats["buckets"]))
    silent = time.time() - told["written"]
    if told.get("ended"):
        parts.append(Text("the job has ended"))
    elif silent > LATE:
        parts.append(Text(f"no news for {silent:.0f} s"))
    return Group(*parts)


def _phases(phases: dict[str, Any]) -> Table:
    table = Table("phase", title="where the time goes")
    table.add_column("seconds", justify="right")
    table.add_column("share", justify="right")
    total = phases["seconds"] or 1.0
    for name, seconds in phases.items():
        exposed = seconds["exposed"] if isinstance(seconds, dict) else seconds
        if name != "seconds" and exposed is not None:
            table.add_row(name, f"{exposed:.2f}", f"{100 * exposed / total:.0f} %")
    return table


def _buckets(buckets: list[dict[str, Any]]) -> Table:
    table = Table("bucket", title="buckets")
    table.add_column("compression", overflow="fold")
    for column in ("parameters", "coordinates", "sent", "residual norm"):
        table.add_column(column, justify="right")
    for bucket in buckets:
        name, number = bucket["name"].rpartition(".")[2], len(bucket["parameters"])
        cells = (
            f"{number}",
            f"{bucket['coordinates']:,}",
            _bytes(bucket["bytes_sent"]),
            f"{bucket['residual_norm']:.4g}",
        )
        table.add_row(name, bucket["compression"], *cells)
    return table


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            return f"{number:.3g} {unit}"
        number /= 1000
    raise AssertionError
