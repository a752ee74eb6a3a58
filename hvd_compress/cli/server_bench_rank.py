"""What `hvd-compress bench --servers` runs on each rank; `server_bench` starts it with mpirun.

The only argument is a JSON object: what `server_bench.main` passes on.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from hvd_compress.cli.clock import Clock
from hvd_compress.cli.server_bench import FORMATS, GradientShape
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
from hvd_compress.transports.mpi import abort_on_error

SETTINGS: dict[str, Any] = {"step": 1e-3, "batch": 1}
REGULARIZER = Regularizer(l2=1e-4)
BLOCK = 1 << 26  # bytes of one message when the loopback itself is timed
SHORTEST = 5e-3  # seconds; what is faster is repeated within one timing
ONE = GradientShape(1, 1)  # a default, since fields of the base class have some


def snapshot_gradient(shape: GradientShape) -> Vector:
    """Return a dense gradient, as that of all rows is."""
    return np.resize(np.random.default_rng(0).standard_normal(1 << 16, np.float32), shape.size)


def batch_gradient(shape: GradientShape, seed: int) -> Vector:
    """Return a gradient with as many nonzeros as `shape` says, as that of a batch has."""
    random = np.random.default_rng(seed)
    numbers = np.resize(random.standard_normal(1 << 16, np.float32), shape.nonzeros)
    if shape.nonzeros == shape.size:
        return numbers
    gradient = np.zeros(shape.size, np.float32)
    gradient[random.choice(shape.size, shape.nonzeros, replace=False)] = numbers
    return gradient


class Prepared:
    """An objective that computes nothing: its gradient was made beforehand."""

    rows = 1000
    regularizer = REGULARIZER

    def __init__(self, shape: GradientShape) -> None:
        self.layout = Layout.flat(shape.size)
        self._gradient = snapshot_gradient(shape)

    def initial(self, seed: int) -> Vector:
        return np.zeros(self.layout.size, np.float32)

    def take(self, rows: NDArray[np.int64]) -> Prepared:
        return self

    def gradient(self, x: Vector, rows: NDArray[np.int64] | None = None) -> tuple[float, Vector]:
        return 0.0, self._gradient

    def value(self, x: Vector) -> float:
        return 0.0

    def smoothness(self, batch: int) -> float | None:
        return None

    def right(self, x: Vector, index: int = 0, parts: int = 1) -> tuple[int, int] | None:
        return None

    def description(self) -> dict[str, Any]:
        return {}


class Resent(VarianceReduced):
    """A worker that costs next to nothing: it decodes no model and always sends the same encoded gradient."""

    def __init__(self, of: VarianceReduced, payload: Bytes, x: Vector) -> None:
        super().__init__(of.shards, of._new, of.down)
        self._payload, self._x = payload, x

    def model(self, shard: int, payload: Bytes) -> Vector:
        return self._x

    def answer(self, x: Vector, part: Any, rows: NDArray[np.int64]) -> list[Bytes]:
        return [self._payload]


class Timed(BoundedDelay):
    """Gives out models for a time, counted from the first step, then measures the rate and gives out no more.

    Attributes:
        rate: steps a second; 0 until the time is up.

    Args:
        seconds: the time.
        least: steps that are measured even if they take longer.
        most: models that may be out at once.
    """

    def __init__(self, seconds: float, least: int, most: int) -> None:
        super().__init__(0, most)
        self.seconds, self.least = seconds, least
        self._moments: list[float] = []
        self.rate = 0.0

    @property
    def exhausted(self) -> bool:
        if not self.rate and len(self._moments) > self.least:
            past = time.perf_counter() - self._moments[0]
            if past >= self.seconds:
                self.rate = (len(self._moments) - 1) / (self._moments[-1] - self._moments[0])
        return self.rate > 0

    def step(self, tickets: list[Ticket]) -> None:
        super().step(tickets)
        self._moments.append(time.perf_counter())


@dataclass(frozen=True)
class Resending(DoubleQuantization):
    """Double quantization for a time, with workers that resend one encoded gradient."""

    shape: GradientShape = ONE
    seconds: float = 1.0
    schedules: list[Timed] = field(default_factory=list, repr=False)

    def payload(self, shard: Shard, rank: int) -> Bytes:
        """Return what a worker sends: its encoded gradient."""
        return self._up(shard, (self.seed, rank)).encode(batch_gradient(self.shape, rank))

    def worker_part(self, plan: JobPlan, shards: list[Shard], rank: int) -> Resent:
        of = super().worker_part(plan, shards, rank)
        return Resent(of, self.payload(shards[0], rank), np.zeros(plan.layout.size, np.float32))

    def schedule(self, plan: JobPlan) -> Callable[[], Timed]:
        """Return a function that makes schedules; they are kept in `schedules`."""

        def new() -> Timed:
            self.schedules.append(Timed(self.seconds, len(plan.roles.worker_ranks), delay_bound(self.max_delay, plan)))
            return self.schedules[-1]

        return new


class Quiet:
    """A console that shows messages alone."""

    def epoch(self, epoch: Any, optimum: float | None) -> None:
        pass

    def progress(self, done: int, steps: int) -> None:
        pass

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def pushes(algorithm: Resending) -> float | None:
    """Run a job; return the pushes a second on rank 0, None on the others."""
    if run(algorithm, lambda: Prepared(algorithm.shape), JobSettings(batch=1, epochs=1, timeout=60), Quiet()) is None:
        return None
    return max(schedule.rate for schedule in algorithm.schedules)


def stream(seconds: float) -> float:
    """Return the bytes a second that messages carry between rank 0 and all others, both ways at once."""
    comm = MPI.COMM_WORLD
    out, into = np.ones(BLOCK, np.uint8), np.ones((comm.size - 1, BLOCK), np.uint8)
    rounds, began = -1, 0.0  # the first round is a warm-up
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
    """Time a server without workers.

    Returns:
        The least seconds of decoding and applying a push, of encoding a model and of copying the coordinates once, and
        the bytes of push and model with their headers.
    """
    objective, ops = Prepared(algorithm.shape), NumpyOps()
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
    """Return the least seconds that `work` takes; several calls are timed together where one is too short."""
    clock, count = Clock(), 1

    def times() -> None:
        for _ in range(count):
            work()

    while not clock.seconds or clock.seconds[-1] < SHORTEST:
        count *= 2
        clock.time(times)
    clock.seconds.clear()
    for _ in range(repetitions):
        clock.time(times)
    return clock.least / count


def main(given: dict[str, Any]) -> None:
    """Time all shapes and formats with the workers of this job, or without any; rank 0 prints the report as JSON."""
    ops, workers = NumpyOps(), MPI.COMM_WORLD.size - 1
    if ops.kernels:
        ops.kernels.set_threads(given["threads"])
    report: dict[str, Any] = {"results": []}
    if workers:
        report["stream"] = stream(given["seconds"])
    for shape in given["shapes"]:
        for settings in FORMATS.values():
            algorithm = Resending(**SETTINGS, **settings, shape=GradientShape(*shape), seconds=given["seconds"])
            if workers:
                report["results"].append(pushes(algorithm))
            else:
                report["results"].append(alone(algorithm, given["repetitions"]))
    if MPI.COMM_WORLD.rank == 0:
        print(json.dumps(report), flush=True)
    leave()


if __name__ == "__main__":
    with abort_on_error():
        main(json.loads(sys.argv[1]))
