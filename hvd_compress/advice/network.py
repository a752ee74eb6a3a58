"""What collectives take between the workers of a job, measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hvd_compress.advice.model import Ring
from hvd_compress.compressors import AllGather, AllReduce
from hvd_compress.ops import Ops
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


def measure(transport: Transport, ops: Ops, name: str = "advice") -> Measured:
    """Time collectives of several sizes; all workers call it, and all get the same.

    Args:
        transport: who carries them.
        ops: the array operations of the transport's framework.
        name: begins their names; no other collectives have it.
    """
    points: dict[str, list[tuple[int, float]]] = {"allreduce": [], "allgather": []}
    for kind, found in points.items():
        for size in SIZES:
            payload = ops.from_numpy(np.zeros(size // 4, np.float32))
            seconds: list[float] = []
            for repetition in range(REPETITIONS + 1):
                whole = f"{name}.{kind}.{size}.{repetition}"
                own: Any = AllReduce(payload) if kind == "allreduce" else AllGather(ops.to_bytes(payload))
                began = time.perf_counter()
                transport.wait(transport.start(own, whole))
                seconds.append(time.perf_counter() - began)
                spent = transport.gather_object(sum(seconds), f"{whole}.spent")  # and let all begin together
                if repetition and max(spent) > SECONDS:
                    break
            found.append((size, statistics.median(seconds[1:])))
    told = transport.gather_object(points, f"{name}.told")
    return Measured(
        transport.workers,
        {
            kind: [(size, max(answer[kind][number][1] for answer in told)) for number, size in enumerate(SIZES)]
            for kind in points
        },
    )
