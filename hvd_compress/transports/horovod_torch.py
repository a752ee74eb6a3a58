"""Horovod's collectives on PyTorch tensors, several under way at once."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import horovod.torch as hvd
import torch
from horovod.common.exceptions import HorovodInternalError
from torch import Tensor

from hvd_compress.compressors.base import AllReduce, Collective
from hvd_compress.transports import LENGTH_BYTES, Traffic, WorkerFailed, split_gathered, split_varying

_OPS = {"sum": hvd.Sum, "mean": hvd.Average, "max": hvd.Max}
EXPLAIN_SECONDS = 30.0


class Handle(NamedTuple):
    """A collective under way."""

    collective: Collective
    horovod: int
    sent: int


class HorovodTransport:
    """Collectives over a Horovod process set.

    Args:
        process_set: the Horovod processes that take part.
        name: distinguishes this transport's messages about failures from others'.
        explains: whether all workers wait here when one fails, so that its error can be told to the others.
    """

    def __init__(
        self, process_set: Any = hvd.global_process_set, name: str = "hvd_compress", *, explains: bool = True
    ) -> None:
        self.explains = explains
        self.process_set = process_set
        self.name = name
        self.rank, self.workers = process_set.rank(), process_set.size()
        self.traffic = Traffic()

    def start(self, collective: Collective, name: str) -> Handle:
        """Begin a collective."""
        if isinstance(collective, AllReduce):
            array = collective.array
            handle = hvd.allreduce_async(array, name=name, op=_OPS[collective.op], process_set=self.process_set)
        else:
            array = collective.payload
            if collective.varying:
                length = len(array).to_bytes(LENGTH_BYTES, "little")
                array = torch.cat([torch.tensor(list(length), dtype=torch.uint8, device=array.device), array])
            handle = hvd.allgather_async(array, name=name, process_set=self.process_set)
        return Handle(collective, handle, array.nbytes)

    def done(self, handle: Handle) -> bool:
        """Tell whether `wait` would return at once."""
        return hvd.poll(handle.horovod)

    def wait(self, handle: Handle) -> Any:
        """Return the combined tensor, or the list of payloads."""
        try:
            result = hvd.synchronize(handle.horovod)
        except HorovodInternalError as error:
            # Another worker's error reaches this one as a refused collective: `fail` submits what does not fit.
            explanation = self._explain(None)
            if explanation:
                raise WorkerFailed(explanation) from None
            raise error
        if isinstance(handle.collective, AllReduce):
            self.traffic.count("allreduce", handle.sent, result.nbytes)
            return result
        self.traffic.count("allgather", handle.sent, result.nbytes)
        split = split_varying if handle.collective.varying else split_gathered
        return split(result, self.workers)

    def fail(self, error: BaseException, names: Sequence[str]) -> None:
        """Make the other workers' collectives of these names fail, and tell them why.

        Horovod refuses, on every worker, a collective whose dtype differs between workers. No compressor sends int32 of
        five axes, so submitting that makes whatever the others submit fail. Horovod keeps sums and gathers of one name
        apart, so it is submitted as both; the one that nobody else submits waits in vain, and harms nobody.
        """
        if isinstance(error, (WorkerFailed, HorovodInternalError)) or self.workers == 1:
            return
        odd = _odd()
        for name in names:
            for submit in (partial(hvd.allreduce_async, op=hvd.Sum), hvd.allgather_async):
                with suppress(ValueError):  # it waits there since an earlier failure
                    submit(odd, name=name, process_set=self.process_set)
        self._explain(error)

    def all_have_left(self, name: str, kind: str) -> bool:
        """Tell whether all workers call this; one that starts a collective of this name and kind fails, like here.

        It waits for all of them, and counts as an agreement.
        """
        submit = hvd.allgather_async if kind == "allgather" else partial(hvd.allreduce_async, op=hvd.Sum)
        odd = _odd()
        try:
            result = hvd.synchronize(submit(odd, name=name, process_set=self.process_set))
        except HorovodInternalError:
            return False
        self.traffic.count("agreement", odd.nbytes, result.nbytes)
        return True

    def gather_object(self, item: Any, name: str) -> list[Any]:
        """Return every worker's object (as JSON has it), in the order of ranks; counted as an agreement."""
        return self._finish_gather(self._begin_gather(item, name))

    def _begin_gather(self, item: Any, name: str) -> int:
        data = json.dumps(item).encode()
        framed = len(data).to_bytes(LENGTH_BYTES, "little") + data
        payload = torch.frombuffer(bytearray(framed), dtype=torch.uint8)
        self.traffic.count("agreement", payload.nbytes, 0)
        return hvd.allgather_async(payload, name=name, process_set=self.process_set)

    def _finish_gather(self, handle: int) -> list[Any]:
        gathered: Tensor = hvd.synchronize(handle)
        self.traffic.collectives["agreement"]["received"] += gathered.nbytes
        return [json.loads(bytes(part.tolist())) for part in split_varying(gathered, self.workers)]

    def _explain(self, error: BaseException | None) -> str:
        """Exchange the workers' errors; return them as text, or nothing if that takes too long."""
        if not self.explains:
            return ""
        text = f"{type(error).__name__}: {error}" if error is not None else None
        handle = self._begin_gather(text, f"{self.name}.failure")
        deadline = time.monotonic() + EXPLAIN_SECONDS
        while not hvd.poll(handle):
            if time.monotonic() > deadline:
                return ""
            time.sleep(0.005)
        failed = enumerate(self._finish_gather(handle))
        return "; ".join(f"rank {rank} failed with {text}" for rank, text in failed if text is not None)


def _odd() -> Tensor:
    """Return what no compressor sends."""
    return torch.zeros(1, 1, 1, 1, 1, dtype=torch.int32)
