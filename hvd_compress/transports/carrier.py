"""A transport for one exchange whose collectives somebody else performs: Horovod's optimizer, or TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hvd_compress.compressors.base import AllReduce, Collective
from hvd_compress.ops import Array, Ops
from hvd_compress.transports import LENGTH_BYTES, Traffic, split_gathered, split_varying


class Carrier:
    """It keeps what is to be combined or gathered in `array`, and is brought the `result`.

    Attributes:
        array: what the compressor handed over last; before a payload of varying length there is that length.
        result: what the collective made of it: the combined array, or all workers' arrays one behind the other.
    """

    def __init__(self, ops: Ops, rank: int = 0, workers: int = 1, traffic: Traffic | None = None) -> None:
        self.ops, self.rank, self.workers = ops, rank, workers
        self.traffic = Traffic() if traffic is None else traffic
        self.array: Array = None
        self.result: Array = None

    def start(self, collective: Collective, name: str) -> Collective:
        """Keep the array."""
        if isinstance(collective, AllReduce):
            self.array = collective.array
        elif collective.varying:
            length = collective.payload.shape[0].to_bytes(LENGTH_BYTES, "little")
            header = self.ops.from_numpy(np.frombuffer(length, np.uint8).copy())
            self.array = self.ops.concat([header, collective.payload])
        else:
            self.array = collective.payload
        return collective

    def done(self, handle: Collective) -> bool:
        """Tell that the result is there: nobody asks before."""
        return True

    def wait(self, handle: Collective) -> Any:
        """Return the result, or the list of payloads in it."""
        sent, received = self.array.nbytes, self.result.nbytes
        if isinstance(handle, AllReduce):
            self.traffic.count("allreduce", sent, received)
            return self.result
        self.traffic.count("allgather", sent, received)
        return (split_varying if handle.varying else split_gathered)(self.result, self.workers)

    def gather_object(self, item: Any, name: str) -> list[Any]:
        """Refuse: whoever performs the collectives has seen to it that the workers agree."""
        raise NotImplementedError

    def fail(self, error: BaseException, names: Sequence[str]) -> None:
        """Leave it to whoever performs the collectives."""
