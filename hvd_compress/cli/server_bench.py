"""How many pushes a second a parameter server applies, and what a push costs it.

Each number of workers is a job under mpirun (see `server_bench_rank`); in a job without workers the server's own work
is timed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

WORKERS = (1, 2, 4, 8)
DENSE = (1_000_000, 25_000_000)  # coordinates
SPARSE = (20_000, 1_000)  # coordinates and nonzeros, about those of a batch of TF-IDF rows
FORMATS: dict[str, dict[str, Any]] = {
    "floats": {"variant": "full-precision"},
    "8 bits": {"bits": 8},
    "4 bits": {"bits": 4},
}


class GradientShape(NamedTuple):
    """How many coordinates a batch's gradient has, and how many of them are not zero."""

    size: int
    nonzeros: int

    @property
    def name(self) -> str:
        """The label in tables."""
        return f"{self.size}, {self.nonzeros} not zero" if self.nonzeros < self.size else str(self.size)


def start(workers: int, given: dict[str, Any]) -> dict[str, Any]:
    """Run a job with one server and this many workers, and return its report.

    Raises:
        OSError: if there is no mpirun, or it fails.
        ModuleNotFoundError: if there is no mpi4py.
    """
    import mpi4py  # noqa: F401  # fails here rather than on each rank; without `MPI`, which would start MPI

    mpirun = shutil.which("mpirun")
    if mpirun is None:
        raise FileNotFoundError("--servers needs Open MPI: there is no mpirun on the PATH")
    options = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    options += ["--map-by", ":OVERSUBSCRIBE", "--bind-to", "none", "--with-ft", "ulfm", "-np", str(workers + 1)]
    command = [mpirun, *options, sys.executable, "-m", "hvd_compress.cli.server_bench_rank", json.dumps(given)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    found = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not found:
        raise ChildProcessError(f"mpirun failed with {workers} workers:\n{done.stderr.strip()}")
    return json.loads(found[-1])


def tables(report: dict[str, Any]) -> list[Any]:
    """Return a report as two tables: the server alone, and with workers."""
    from rich import box
    from rich.table import Table

    title = f"A server alone, {report['threads']} threads: multiples of one copy of the coordinates (microseconds)"
    own = Table(box=box.MARKDOWN, title=title)
    for column in ("coordinates", "format"):
        own.add_column(column)
    for column in ("bytes of a push", "of a model", "copy", "push", "model", "both", "pushes a second at most"):
        own.add_column(column, justify="right")
    title = "Pushes a second (times as many as with floats; part of what the loopback carries)"
    jobs = Table(box=box.MARKDOWN, title=title)
    for column in ("coordinates", "format"):
        jobs.add_column(column)
    for workers in report["workers"]:
        jobs.add_column(f"{workers} worker{'s' if workers > 1 else ''}", justify="right")
    jobs.add_row("loopback", "MB/s", *(f"{rate / 1e6:.0f}" for rate in report["stream"]))
    for result in report["results"]:
        copy, push, model = (result[f"{name}_s"] for name in ("copy", "push", "model"))
        cells = [f"{each / copy:.2f} ({1e6 * each:.0f})" for each in (push, model, push + model)]
        names = (result["vectors"], result["format"])
        sent = (result["push_bytes"], result["model_bytes"])
        own.add_row(*names, *map(str, sent), f"{1e6 * copy:.1f}", *cells, f"{1 / (push + model):.0f}")
        columns = zip(result["pushes"], result["times_floats"], report["stream"], strict=True)
        jobs.add_row(
            *names, *(f"{rate:.4g} ({times:.2f}; {rate * sum(sent) / most:.0%})" for rate, times, most in columns)
        )
    return [own, jobs]


def main(*, size: int | None, seconds: float, threads: int | None, repetitions: int, json_path: Path | None) -> None:
    """Run the benchmark, print its tables, and write the report if a file is given."""
    from rich.console import Console
    from rich.progress import track

    shapes = [GradientShape(*SPARSE), *(GradientShape(d, d) for d in DENSE)]
    if size is not None:
        shapes = [GradientShape(size, size)]
    threads = threads or len(os.sched_getaffinity(0))
    given = {"shapes": shapes, "seconds": seconds, "threads": threads, "repetitions": repetitions}
    console = Console(stderr=True)
    reports: list[dict[str, Any]] = []
    try:
        counts = track((0, *WORKERS), "workers", console=console, transient=True)
        reports.extend(start(workers, given) for workers in counts)
    except KeyboardInterrupt:
        console.print("interrupted: the tables show the results until then")
    if not reports:
        return
    report = merged(shapes, reports) | {"threads": threads, "seconds": seconds}
    for table in tables(report):
        Console(width=None if sys.stdout.isatty() else 400).print(table)
    if json_path is not None:
        json_path.write_text(json.dumps(report, indent=1) + "\n")


def merged(shapes: Sequence[GradientShape], reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return one report of those of all jobs: first the one without workers, then one for each of `WORKERS`."""
    own, *jobs = reports
    results: list[dict[str, Any]] = []
    for i, shape in enumerate(shapes):
        for j, name in enumerate(FORMATS):
            place = i * len(FORMATS) + j
            rates = [job["results"][place] for job in jobs]
            floats = [job["results"][i * len(FORMATS)] for job in jobs]
            times = [rate / plain for rate, plain in zip(rates, floats, strict=True)]
            found = {"vectors": shape.name, "format": name, **own["results"][place]}
            results.append(found | {"pushes": rates, "times_floats": times})
    stream = [job["stream"] for job in jobs]
    return {"workers": WORKERS[: len(jobs)], "stream": stream, "results": results}
