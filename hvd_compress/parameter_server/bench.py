"""`hvd-compress bench --servers`: how many pushes a second a server applies, and what that costs it.

`main` starts this module under mpirun, once for each number of workers; without any, the server's work is timed alone.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from hvd_compress.bench import Clock
from hvd_compress.ops.layout import Layout
from hvd_compress.ops.numpy import NumpyOps
from hvd_compress.parameter_server.algorithms.asylpg import DoubleQuantization, VarianceReduced
from hvd_compress.parameter_server.algorithms.common import delay_bound
from hvd_compress.parameter_server.codecs import Vector
from hvd_compress.parameter_server.objectives import Regularizer
from hvd_compress.parameter_server.protocols import JobPlan
from hvd_compress.parameter_server.runtime.job import leave, run
from hvd_compress.parameter_server.runtime.messages import HEADER, Bytes
from hvd_compress.parameter_server.runtime.roles import Roles, Shard
from hvd_compress.parameter_server.runtime.schedules import BoundedDelay, Ticket
from hvd_compress.parameter_server.runtime.settings import JobSettings

WORKERS = (1, 2, 4, 8)
DENSE = (1_000_000, 25_000_000)
SPARSE = (20_000, 1_000)  # coordinates, and how many of a gradient's are not zero: some rows of TF-IDF
FORMATS: dict[str, dict[str, Any]] = {
    "floats": {"variant": "full-precision"},
    "8 bits": {"bits": 8},
    "4 bits": {"bits": 4},
}
SETTINGS: dict[str, Any] = {"step": 1e-3, "batch": 1}
REGULARIZER = Regularizer(l2=1e-4)
BLOCK = 1 << 26  # bytes of a message of the plain stream
LEAST = 5e-3  # seconds of what is timed at once, or it is repeated


class Vectors(NamedTuple):
    """Gradients of so many coordinates, of which so many are not zero."""

    size: int
    nonzeros: int

    @property
    def name(self) -> str:
        """What tables call them."""
        return f"{self.size}, {self.nonzeros} not zero" if self.nonzeros < self.size else str(self.size)

    def snapshot_gradient(self) -> Vector:
        """Return that of all rows, which has no zeros."""
        return np.resize(np.random.default_rng(0).standard_normal(1 << 16, np.float32), self.size)

    def gradient(self, seed: int) -> Vector:
        """Return that of a batch."""
        random = np.random.default_rng(seed)
        numbers = np.resize(random.standard_normal(1 << 16, np.float32), self.nonzeros)
        if self.nonzeros == self.size:
            return numbers
        gradient = np.zeros(self.size, np.float32)
        gradient[random.choice(self.size, self.nonzeros, replace=False)] = numbers
        return gradient


ONE = Vectors(1, 1)


class Prepared:
    """An objective that computes nothing."""

    rows = 1000
    regularizer = REGULARIZER

    def __init__(self, vectors: Vectors) -> None:
        self.layout = Layout.flat(vectors.size)
        self._gradient = vectors.snapshot_gradient()

    def initial(self, seed: int) -> Vector:
        """Return zeros."""
        return np.zeros(self.layout.size, np.float32)

    def take(self, rows: NDArray[np.int64]) -> Prepared:
        """Return the same."""
        return self

    def gradient(self, x: Vector, rows: NDArray[np.int64] | None = None) -> tuple[float, Vector]:
        """Return what was made beforehand."""
        return 0.0, self._gradient

    def value(self, x: Vector) -> float:
        """Return 0."""
        return 0.0

    def smoothness(self, batch: int) -> float | None:
        """Return None."""
        return None

    def right(self, x: Vector, index: int = 0, parts: int = 1) -> tuple[int, int] | None:
        """Return None."""
        return None

    def description(self) -> dict[str, Any]:
        """Return nothing."""
        return {}


class Resent(VarianceReduced):
    """A worker's part that costs next to nothing: it decodes no model, and sends what was encoded beforehand."""

    def __init__(self, of: VarianceReduced, payload: Bytes, x: Vector) -> None:
        super().__init__(of.shards, of._new, of.down)
        self._payload, self._x = payload, x

    def model(self, shard: int, payload: Bytes) -> Vector:
        """Return what was made beforehand."""
        return self._x

    def answer(self, x: Vector, part: Any, rows: NDArray[np.int64]) -> list[Bytes]:
        """Return what was encoded beforehand."""
        return [self._payload]


class Timed(BoundedDelay):
    """As many steps as fit into a time that begins with the first, and at least some; then no model is given out."""

    def __init__(self, seconds: float, least: int, most: int) -> None:
        super().__init__(0, most)
        self.seconds, self.least = seconds, least
        self._moments: list[float] = []
        self.rate = 0.0

    @property
    def exhausted(self) -> bool:
        """Whether the time is up."""
        if not self.rate and len(self._moments) > self.least:
            past = time.perf_counter() - self._moments[0]
            if past >= self.seconds:
                self.rate = (len(self._moments) - 1) / (self._moments[-1] - self._moments[0])
        return self.rate > 0

    def step(self, tickets: list[Ticket]) -> None:
        """Do a step, and note when."""
        super().step(tickets)
        self._moments.append(time.perf_counter())


@dataclass(frozen=True)
class Resending(DoubleQuantization):
    """Double quantization whose workers resend, for a time."""

    vectors: Vectors = ONE
    seconds: float = 1.0
    schedules: list[Timed] = field(default_factory=list, repr=False)

    def payload(self, shard: Shard, rank: int) -> Bytes:
        """Return what a worker sends."""
        return self._up(shard, (self.seed, rank)).encode(self.vectors.gradient(rank))

    def worker_part(self, plan: JobPlan, shards: list[Shard], rank: int) -> Resent:
        """Return a worker's part."""
        of = super().worker_part(plan, shards, rank)
        return Resent(of, self.payload(shards[0], rank), np.zeros(plan.layout.size, np.float32))

    def schedule(self, plan: JobPlan) -> Callable[[], Timed]:
        """Return what makes schedules, and keeps them."""

        def new() -> Timed:
            self.schedules.append(Timed(self.seconds, len(plan.roles.worker_ranks), delay_bound(self.max_delay, plan)))
            return self.schedules[-1]

        return new


class Quiet:
    """Shows nothing, but what is wrong."""

    def epoch(self, epoch: Any, optimum: float | None) -> None:
        """Do nothing."""

    def progress(self, done: int, steps: int) -> None:
        """Do nothing."""

    def say(self, text: str) -> None:
        """Show a line."""
        print(text, file=sys.stderr, flush=True)


# --- a rank


def pushes(algorithm: Resending) -> float | None:
    """Run a job; return the pushes a second on rank 0, and None on others."""
    if run(algorithm, lambda: Prepared(algorithm.vectors), JobSettings(batch=1, epochs=1, timeout=60), Quiet()) is None:
        return None
    return max(schedule.rate for schedule in algorithm.schedules)


def stream(seconds: float) -> float:
    """Return the bytes a second that messages carry between rank 0 and all others, both ways at once."""
    comm = MPI.COMM_WORLD
    out, into = np.ones(BLOCK, np.uint8), np.ones((comm.size - 1, BLOCK), np.uint8)
    rounds, began = -1, 0.0  # the first is a warm-up
    while comm.bcast(rounds < 1 or time.perf_counter() - began < seconds):
        if comm.rank:
            comm.Sendrecv(out, 0, recvbuf=into[0], source=0)
        else:
            others = range(1, comm.size)
            received = [comm.Irecv(into[other - 1], other) for other in others]
            MPI.Request.Waitall([*received, *(comm.Isend(out, other) for other in others)])
        rounds += 1
        began = began or time.perf_counter()
    return 2 * (comm.size - 1) * BLOCK * rounds / (time.perf_counter() - began)


def alone(algorithm: Resending, repetitions: int) -> dict[str, Any]:
    """Return the least seconds of a server's work on one push, on one model, and of copying the coordinates once."""
    objective, ops = Prepared(algorithm.vectors), NumpyOps()
    size = objective.layout.size
    plan = JobPlan(objective.layout, objective.rows, REGULARIZER, None, None, Roles(1, 2))
    shard = Shard(0, size, objective.layout)
    method = algorithm.server_part(plan, shard, objective.initial(0), 0)
    method.begin(0, objective.gradient(method.snapshot)[1])
    payload, copied, source = algorithm.payload(shard, 1), ops.zeros(size), ops.zeros(size)
    timed: dict[str, Callable[[], Any]] = {
        "push_s": lambda: method.step([method.decode(1, payload)]),
        "model_s": lambda: method.model(1),
        "copy_s": lambda: (ops.kernels.copy if ops.kernels else np.copyto)(copied, source),
    }
    least = {name: _least(work, repetitions) for name, work in timed.items()}
    return least | {"push_bytes": payload.nbytes + HEADER.size, "model_bytes": method.model(1).nbytes + HEADER.size}


def _least(work: Callable[[], Any], repetitions: int) -> float:
    """Return the least seconds that something takes."""
    clock, count = Clock(), 1

    def times() -> None:
        for _ in range(count):
            work()

    while not clock.seconds or clock.seconds[-1] < LEAST:
        count *= 2
        clock.time(times)
    clock.seconds.clear()
    for _ in range(repetitions):
        clock.time(times)
    return clock.least / count


def rank(given: dict[str, Any]) -> None:
    """Time everything with the workers that are there; rank 0 prints it, as JSON."""
    ops, workers = NumpyOps(), MPI.COMM_WORLD.size - 1
    if ops.kernels:
        ops.kernels.set_threads(given["threads"])
    report: dict[str, Any] = {"results": []}
    if workers:
        report["stream"] = stream(given["seconds"])
    for vectors in given["vectors"]:
        for settings in FORMATS.values():
            algorithm = Resending(**SETTINGS, **settings, vectors=Vectors(*vectors), seconds=given["seconds"])
            if workers:
                report["results"].append(pushes(algorithm))
            else:
                report["results"].append(alone(algorithm, given["repetitions"]))
    if MPI.COMM_WORLD.rank == 0:
        print(json.dumps(report), flush=True)
    leave()


# --- the command


def start(workers: int, given: dict[str, Any]) -> dict[str, Any]:
    """Run this module with so many workers; return what it reports.

    Raises:
        OSError: if there is no mpirun, or it fails.
    """
    mpirun = shutil.which("mpirun")
    if mpirun is None:
        raise FileNotFoundError("--servers needs Open MPI: there is no mpirun on the PATH")
    options = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    options += ["--map-by", ":OVERSUBSCRIBE", "--bind-to", "none", "--with-ft", "ulfm", "-np", str(workers + 1)]
    command = [mpirun, *options, sys.executable, "-m", "hvd_compress.parameter_server.bench", json.dumps(given)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    found = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not found:
        raise ChildProcessError(f"mpirun failed with {workers} workers:\n{done.stderr.strip()}")
    return json.loads(found[-1])


def tables(report: dict[str, Any]) -> list[Any]:
    """Return a report as two tables: of the server alone, and with workers."""
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
    """Run the benchmark, show its tables, and write the report if it is asked for."""
    from rich.console import Console
    from rich.progress import track

    vectors = [Vectors(*SPARSE), *(Vectors(d, d) for d in DENSE)] if size is None else [Vectors(size, size)]
    threads = threads or len(os.sched_getaffinity(0))
    given = {"vectors": vectors, "seconds": seconds, "threads": threads, "repetitions": repetitions}
    console = Console(stderr=True)
    reports: list[dict[str, Any]] = []
    try:
        counts = track((0, *WORKERS), "workers", console=console, transient=True)
        reports.extend(start(workers, given) for workers in counts)
    except KeyboardInterrupt:
        console.print("interrupted: the tables have what was done")
    if not reports:
        return
    report = merged(vectors, reports) | {"threads": threads, "seconds": seconds}
    for table in tables(report):
        Console(width=None if sys.stdout.isatty() else 400).print(table)
    if json_path is not None:
        json_path.write_text(json.dumps(report, indent=1) + "\n")


def merged(vectors: Sequence[Vectors], reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the reports of the server alone and of numbers of workers as one, by vectors and formats."""
    own, *jobs = reports
    results: list[dict[str, Any]] = []
    for i, each in enumerate(vectors):
        for j, name in enumerate(FORMATS):
            place = i * len(FORMATS) + j
            rates = [job["results"][place] for job in jobs]
            floats = [job["results"][i * len(FORMATS)] for job in jobs]
            times = [rate / plain for rate, plain in zip(rates, floats, strict=True)]
            found = {"vectors": each.name, "format": name, **own["results"][place]}
            results.append(found | {"pushes": rates, "times_floats": times})
    stream = [job["stream"] for job in jobs]
    return {"workers": WORKERS[: len(jobs)], "stream": stream, "results": results}


if __name__ == "__main__":
    try:
        rank(json.loads(sys.argv[1]))
    except Exception:  # the other ranks would wait
        traceback.print_exc()
        sys.stderr.flush()
        MPI.COMM_WORLD.Abort(1)
