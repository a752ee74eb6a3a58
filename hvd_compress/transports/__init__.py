"""Who carries a collective, awaits it, and counts its bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hvd_compress.compressors.base import AllReduce, Collective
from hvd_compress.ops import Array, Ops

LENGTH_BYTES = 8


class Traffic:
    """The bytes of the buffers that this worker handed to each kind of collective, and got back from it.

    An AllReduce returns as many bytes as it takes; an AllGather returns the payloads of all workers, this one's
    included. How often the buffers cross a link depends on the collective's algorithm: a ring AllReduce sends 2(W-1)/W
    times the buffer, a ring AllGather W-1 times.
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
    """Another worker failed in the middle of an exchange, or is gone; the message says what is known of it."""


class Peers(Protocol):
    """The workers of a job, as one of them sees them: what any transport knows and can do.

    Attributes:
        rank: this worker's number, from 0.
        workers: their number.
        world_rank: this process's number in the whole job, of which they may be a part.
        traffic: the bytes that this worker has sent and received.
        tells: whether `fail` and `all_have_left` reach workers who wait in collectives. Otherwise reducers tell them at
            their ports.
    """

    rank: int
    workers: int
    world_rank: int
    traffic: Traffic
    tells: bool

    def renew(self) -> bool:
        """Read rank and number of workers anew; tell whether the workers may be others than before.

        No step may be under way.
        """

    def gather_object(self, item: Any, name: str, check: Callable[[], None] = lambda: None) -> list[Any]:
        """Return every worker's object (what JSON can hold), in the order of ranks.

        It waits for all workers. Its bytes are counted as an "agreement". `check` is called while it waits, and may
        raise, where the transport does not tell of failures itself.
        """

    def all_have_left(self, first: Sequence[tuple[str, str]]) -> bool:
        """Tell whether all workers call this, with the first collectives of a plan that they give up.

        It waits for all workers. If one of them starts any of these collectives instead, because it still follows the
        plan, this returns False on those who called it, and the collective fails on the other.

        Args:
            first: names of collectives, and their kind: "allreduce" or "allgather".
        """


class Transport(Peers, Protocol):
    """Carries the collectives of one worker. All workers start the same collectives under the same names.

    Attributes:
        name: begins the names of all collectives of a reducer.
        ordered: whether collectives are matched by the order in which they are started, not by name. Several may be
            under way all the same, but every worker must start them in the same order.
    """

    name: str
    ordered: bool

    def start(self, collective: Collective, name: str) -> Any:
        """Begin a collective and return a handle."""

    def done(self, handle: Any) -> bool:
        """Tell whether `wait` would return at once."""

    def rest(self, handle: Any, seconds: float) -> None:
        """Let the processor be for so long; or for longer, if the end of this collective will wake the thread."""

    def wait(self, handle: Any) -> Any:
        """Return the combined array of an AllReduce, or the list of payloads of an AllGather.

        Raises:
            WorkerFailed: if another worker called `fail`.
        """

    def fail(self, error: BaseException, names: Sequence[str], told: bool = False) -> None:
        """Let the other workers' collectives raise `WorkerFailed` with this worker's error.

        Args:
            error: why this worker cannot go on.
            names: the collectives that the others wait for, or will start next.
            told: whether all others know of the error already, so that this worker need not wait long to tell them.
        """


# --- what travels: the bytes of a collective, for transports that send buffers


def outgoing(ops: Ops, collective: Collective) -> Array:
    """Return the buffer to send: the array or payload, behind its length if the workers' lengths may differ."""
    if isinstance(collective, AllReduce):
        return collective.array
    if not collective.varying:
        return collective.payload
    length = int(collective.payload.shape[0]).to_bytes(LENGTH_BYTES, "little")
    return ops.concat([ops.from_numpy(np.frombuffer(length, np.uint8).copy()), collective.payload])


def incoming(collective: Collective, received: Array, workers: int) -> Any:
    """Return what a compressor is fed: the combined array, or the payloads that lie one behind the other.

    Raises:
        ValueError: if the bytes are not as many payloads as there are workers.
    """
    if isinstance(collective, AllReduce):
        return received
    return (split_varying if collective.varying else split_gathered)(received, workers)


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


def packed_object(item: Any) -> NDArray[np.uint8]:
    """Return an object as JSON, behind its length."""
    data = json.dumps(item).encode()
    return np.frombuffer(len(data).to_bytes(LENGTH_BYTES, "little") + data, np.uint8).copy()


def unpacked_objects(gathered: Array, workers: int) -> list[Any]:
    """Return the objects that `packed_object` has packed, one of each worker."""
    return [json.loads(np.asarray(part).tobytes()) for part in split_varying(gathered, workers)]
