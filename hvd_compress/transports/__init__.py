"""Who carries a collective, awaits it, and counts its bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from hvd_compress.compressors.base import Collective
from hvd_compress.ops import Array

LENGTH_BYTES = 8


class Traffic:
    """The bytes of the buffers that this worker handed to each kind of collective, and got back from it.

    An AllReduce returns as many bytes as it takes; an AllGather returns the payloads of all workers, this one's
    included. How often the buffers cross a link is the collective's affair: a ring AllReduce sends 2(W-1)/W times
    the buffer, a ring AllGather W-1 times.
    """

    def __init__(self) -> None:
        self.collectives: dict[str, dict[str, int]] = {}

    def count(self, kind: str, sent: int, received: int) -> None:
        """Add one finished collective of a kind: "allreduce", "allgather", or what else a transport needs."""
        entry = self.collectives.setdefault(kind, {"calls": 0, "sent": 0, "received": 0})
        entry["calls"] += 1
        entry["sent"] += sent
        entry["received"] += received

    @property
    def sent(self) -> int:
        """Bytes handed over, all collectives together."""
        return sum(entry["sent"] for entry in self.collectives.values())

    @property
    def received(self) -> int:
        """Bytes that came back, all collectives together."""
        return sum(entry["received"] for entry in self.collectives.values())


class WorkerFailed(RuntimeError):
    """Another worker failed in the middle of an exchange; the message names it and its error."""


class Transport(Protocol):
    """Carries the collectives of one worker. All workers start the same collectives under the same names."""

    rank: int
    workers: int
    traffic: Traffic

    def start(self, collective: Collective, name: str) -> Any:
        """Begin a collective and return a handle."""

    def done(self, handle: Any) -> bool:
        """Tell whether `wait` would return at once."""

    def wait(self, handle: Any) -> Any:
        """Return the combined array of an AllReduce, or the list of payloads of an AllGather.

        Raises:
            WorkerFailed: if another worker called `fail`.
        """

    def gather_object(self, item: Any, name: str) -> list[Any]:
        """Return every worker's object (what JSON can hold), in the order of ranks; counted as an agreement."""

    def fail(self, error: BaseException, names: Sequence[str]) -> None:
        """Tell the other workers, who wait or will wait for collectives of these names, that this one cannot go on."""


def split_gathered(gathered: Array, workers: int) -> list[Array]:
    """Cut equally long payloads that lie one behind the other.

    Raises:
        ValueError: if the bytes do not divide among the workers.
    """
    length, rest = divmod(gathered.shape[0], workers)
    if rest:
        raise ValueError(f"{gathered.shape[0]} bytes came in from {workers} workers, of unequal lengths")
    return [gathered[i * length : (i + 1) * length] for i in range(workers)]


def split_varying(gathered: Array, workers: int) -> list[Array]:
    """Cut payloads that each follow their length, a little-endian 64-bit number.

    Raises:
        ValueError: if the lengths do not add up to the bytes that came in.
    """
    payloads, start = [], 0
    for _ in range(workers):
        length = int.from_bytes(bytes(gathered[start : start + LENGTH_BYTES].tolist()), "little")
        start += LENGTH_BYTES
        if start + length > gathered.shape[0]:
            break
        payloads.append(gathered[start : start + length])
        start += length
    if len(payloads) != workers or start != gathered.shape[0]:
        raise ValueError(f"the {gathered.shape[0]} bytes that came in are not {workers} payloads with their lengths")
    return payloads
