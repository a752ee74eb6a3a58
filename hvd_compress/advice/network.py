"""What collectives take between the workers of a job, measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hvd_compress.advice.model import Ring
from hvd_compress.compressors import AllGather, AllReduce
from hvd_compress.ops import Ops
from hvd_compress.reduction.exchange import next_pause
from hvd_compress.transports import Transport

SIZES = (1 << 8, 1 << 14, 1 << 17, 1 << 20, 1 << 22)  # bytes that a worker hands over
REPETITIONS, SECONDS = 7, 1.0  # at most, of one size


@dataclass(frozen=True)
class Measured:
    """A network of which some collectives were timed.

    Attributes:
        hosts: the workers' number.
        points: by kind, "allreduce" and "allgather": pairs of bytes that a worker hands over and seconds, in the order
            of the bytes.
    """

    hosts: int
    points: Mapping[str, Sequence[tuple[int, float]]]

    def seconds(self, kind: str, size: int) -> float:
        """See `Network`: a straight line between neighbouring points, and beyond the last the line through both."""
        sizes, seconds = zip(*self.points[kind], strict=True)
        if size <= sizes[-1]:
            return float(np.interp(size, sizes, seconds))
        slope = (seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2])
        return float(seconds[-1] + max(0.0, slope) * (size - sizes[-1]))

    def ring(self, hosts: int) -> Ring:
        """Return the ring of other hosts with the same links, as the AllReduce shows them."""
        points = self.points["allreduce"]
        (small, quick), (large, slow) = points[0], points[-1]
        turns = 2 * (self.hosts - 1)
        rate = turns * (large - small) / self.hosts / max(slow - quick, 1e-9)
        return Ring(hosts, rate, max(0.0, quick / turns - small / self.hosts / rate))


def collectives(name: str) -> list[str]:
    """Return the names of all collectives that `measure` starts, which of each size have the same."""
    return [f"{name}.{what}" for what in ("allreduce", "allgather", "spent", "told")]


def measure(transport: Transport, ops: Ops, name: str = "advice", check: Callable[[], None] = lambda: None) -> Measured:
    """Time collectives of several sizes; all workers call it, and all get the same.

    Args:
        transport: who carries them.
        ops: the array operations of the transport's framework.
        name: begins their names; no other collectives have it.
        check: called while it waits, may raise.

    Raises:
        WorkerFailed: if another worker fails, or is gone.
    """
    spent_by, told_by = collectives(name)[2:]
    points: dict[str, list[tuple[int, float]]] = {"allreduce": [], "allgather": []}
    for kind, found in points.items():
        for size in SIZES:
            payload = ops.from_numpy(np.zeros(size // 4, np.float32))
            seconds: list[float] = []
            for repetition in range(REPETITIONS + 1):
                own: Any = AllReduce(payload) if kind == "allreduce" else AllGather(ops.to_bytes(payload))
                began = time.perf_counter()
                _carry(transport, own, f"{name}.{kind}", check)
                seconds.append(time.perf_counter() - began)
                spent = transport.gather_object(sum(seconds), spent_by, check)  # and let all begin together
                if repetition and max(spent) > SECONDS:
                    break
            found.append((size, statistics.median(seconds[1:])))
    told = transport.gather_object(points, told_by, check)
    return Measured(
        transport.workers,
        {
            kind: [(size, max(answer[kind][number][1] for answer in told)) for number, size in enumerate(SIZES)]
            for kind in points
        },
    )


def _carry(transport: Transport, collective: AllReduce | AllGather, name: str, check: Callable[[], None]) -> None:
    """Wait for a collective as an exchange does, which looks whether another worker has failed."""
    handle, pause = transport.start(collective, name), 0.0
    while not transport.done(handle):
        pause = next_pause(pause)
        transport.rest(handle, pause)
        check()
    transport.wait(handle)
