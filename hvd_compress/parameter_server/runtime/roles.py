"""Which ranks are servers and which are workers, and which coordinates and rows each of them owns."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hvd_compress.ops.layout import Layout

LARGEST = (1 << 31) // 4 - 1024  # coordinates of a shard: MPI counts the bytes of a message in 31 bits


@dataclass(frozen=True)
class Roles:
    """The first ranks are servers, all others workers. Rank 0 is the coordinator as well.

    Raises:
        ValueError: if there is not at least one of each.
    """

    servers: int
    size: int

    def __post_init__(self) -> None:
        if not 1 <= self.servers < self.size:
            raise ValueError(
                f"servers must be in 1 to {self.size - 1}, for of the job's {self.size} ranks at least one is a "
                f"worker; got {self.servers}"
            )

    @property
    def server_ranks(self) -> range:
        return range(self.servers)

    @property
    def worker_ranks(self) -> range:
        return range(self.servers, self.size)

    def is_server(self, rank: int) -> bool:
        return rank < self.servers


@dataclass(frozen=True)
class Shard:
    """The coordinates `start` to `stop` of the model, which one server owns; `layout` has the parameters in them."""

    start: int
    stop: int
    layout: Layout

    @property
    def slice(self) -> slice:
        """Its place in the whole vector."""
        return slice(self.start, self.stop)


def shards(layout: Layout, servers: int) -> list[Shard]:
    """Cut a model into equal shards, one a server.

    Raises:
        ValueError: if there are more servers than coordinates, or so few that a shard would not fit a message.
    """
    least = -(-layout.size // LARGEST)
    if servers < least:
        raise ValueError(f"servers must be at least {least} for a model of {layout.size} coordinates; got {servers}")
    if servers > layout.size:
        raise ValueError(f"servers must be at most the model's size, {layout.size}; got {servers}")
    ends = [layout.size * i // servers for i in range(servers + 1)]
    found = []
    for start, stop in pairwise(ends):
        pieces: list[tuple[str, tuple[int, ...]]] = [
            (p.name, (min(stop, p.offset + p.size) - max(start, p.offset),))
            for p in layout.parameters
            if max(start, p.offset) < min(stop, p.offset + p.size)
        ]
        if servers == 1:
            pieces = [(p.name, p.shape) for p in layout.parameters]
        found.append(Shard(start, stop, Layout.of(pieces)))
    return found


def rows_of(rows: int, seed: int, workers: list[int]) -> dict[int, NDArray[np.int64]]:
    """Divide the rows among workers, by their ranks: a random division into parts that differ by at most one row."""
    order = np.random.Generator(np.random.Philox(seed)).permutation(rows)
    return {worker: np.sort(order[i :: len(workers)]) for i, worker in enumerate(sorted(workers))}
