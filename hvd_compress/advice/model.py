"""The time of a step on a virtual clock: the backward pass, the compressor and the network, of one worker of many.

One thread computes, encodes and decodes, as a training script's does. The network carries one collective after the
other, and goes on while the thread does something else. What neither waits for is hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Round:
    """A collective of one bucket.

    Attributes:
        kind: "allreduce" or "allgather".
        bytes: what a worker hands over.
        after: seconds of the thread to resume the compressor with what came of it: decoding.
    """

    kind: str
    bytes: int
    after: float


@dataclass(frozen=True)
class BucketCosts:
    """What one bucket costs.

    Attributes:
        coordinates: their number.
        encode: seconds of the thread up to the first collective, with the copy into the bucket.
        rounds: its collectives.
    """

    coordinates: int
    encode: float
    rounds: tuple[Round, ...]


@dataclass(frozen=True)
class Computing:
    """What the step takes on one worker without any communication.

    Attributes:
        forward, backward, optimizer: seconds. Gradients are taken to come evenly over the backward pass, by their
            coordinates.
    """

    forward: float
    backward: float
    optimizer: float

    @classmethod
    def of(cls, seconds: float, optimizer: float = 0.0) -> Computing:
        """Return a step of which only the forward and backward pass together are known: in most models 1 to 2."""
        return cls(seconds / 3, 2 * seconds / 3, optimizer)

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.forward + self.backward + self.optimizer


class Network(Protocol):
    """What carries the collectives."""

    def seconds(self, kind: str, size: int) -> float:
        """Return what a collective takes if nothing else is under way: "allreduce" or "allgather" of `size` bytes."""


@dataclass(frozen=True)
class Ring:
    """Hosts on links of one rate, with the ring algorithms.

    Attributes:
        hosts: their number, at least 1.
        rate: bytes a second of each host's link, in each direction.
        latency: seconds of one message between neighbours.
    """

    hosts: int
    rate: float
    latency: float = 0.0

    def seconds(self, kind: str, size: int) -> float:
        """See `Network`: an AllReduce sends 2 (N - 1) / N times the buffer, an AllGather N - 1 times."""
        turns = self.hosts - 1
        if kind == "allreduce":
            return 2 * turns * (size / self.hosts / self.rate + self.latency)
        return turns * (size / self.rate + self.latency)


@dataclass(frozen=True)
class Predicted:
    """A step on the virtual clock, in seconds.

    Attributes:
        seconds: all of it.
        computing: forward and backward pass and the optimizer.
        encode, decode: what the thread does for the compressor.
        waiting: what it waits for the network.
        wire: what the network works, hidden or not.
    """

    seconds: float
    computing: float
    encode: float
    decode: float
    waiting: float
    wire: float


@dataclass
class _UnderWay:
    costs: BucketCosts
    round: int
    until: float


def predict(computing: Computing, buckets: Sequence[BucketCosts], network: Network) -> Predicted:
    """Return the time of a step.

    Args:
        computing: what it takes without communication.
        buckets: in the order in which the backward pass completes them.
        network: carries their collectives.
    """
    now, free, wire = computing.forward, 0.0, 0.0
    waited = encoded = decoded = 0.0
    queue: list[_UnderWay] = []
    total = sum(bucket.coordinates for bucket in buckets)

    def start(costs: BucketCosts, number: int) -> None:
        nonlocal free, wire
        each = costs.rounds[number]
        seconds = network.seconds(each.kind, each.bytes)
        free = max(free, now) + seconds
        wire += seconds
        queue.append(_UnderWay(costs, number, free))

    for bucket in buckets:
        now += computing.backward * bucket.coordinates / total + bucket.encode
        encoded += bucket.encode
        if bucket.rounds:
            start(bucket, 0)
    while queue:
        under_way = queue.pop(0)  # the network has carried them in this order
        waited += max(0.0, under_way.until - now)
        now = max(now, under_way.until)
        after = under_way.costs.rounds[under_way.round].after
        now, decoded = now + after, decoded + after
        if under_way.round + 1 < len(under_way.costs.rounds):
            start(under_way.costs, under_way.round + 1)
    now += computing.optimizer
    return Predicted(now, computing.seconds, encoded, decoded, waited, wire)
