"""Horovod's collectives on PyTorch tensors, several under way at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import horovod.torch as hvd
import torch
from horovod.common.exceptions import HorovodInternalError

from hvd_compress.compressors.base import AllReduce, Collective
from hvd_compress.ops.torch import TorchOps
from hvd_compress.transports import Traffic, WorkerFailed, incoming, outgoing, packed_object, unpacked_objects
from hvd_compress.transports.horovod import MISFIT, REFUSED
from hvd_compress.transports.initialized import initialized

_OPS = {"sum": hvd.Sum, "mean": hvd.Average, "max": hvd.Max}
EXPLAIN_SECONDS = 30.0  # that a worker waits for the others' errors
TOLD_SECONDS = 5.0  # if all others know of its own


class _Failed(WorkerFailed, HorovodInternalError):
    """What makes an elastic job go on without the worker that failed."""


@contextmanager
def _failures() -> Iterator[None]:
    """Let an error of Horovod say that it is another worker's."""
    try:
        yield
    except HorovodInternalError as error:
        raise error if isinstance(error, _Failed) else _Failed(str(error)) from None


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

    ordered = False
    tells = True

    def __init__(
        self, process_set: Any = hvd.global_process_set, name: str = "hvd_compress", *, explains: bool = True
    ) -> None:
        self.explains = explains
        self.process_set = process_set
        self.name = name
        self.traffic = Traffic()
        self._read()

    def _read(self) -> None:
        self._initialized = initialized()
        self.rank, self.workers = self.process_set.rank(), self.process_set.size()
        self.world_rank = hvd.rank()

    def renew(self) -> bool:
        if self._initialized == initialized():
            return False
        self._read()
        return True

    @_failures()
    def start(self, collective: Collective, name: str) -> Handle:
        if isinstance(collective, AllReduce):
            array = collective.array
            handle = hvd.allreduce_async(array, name=name, op=_OPS[collective.op], process_set=self.process_set)
        else:
            array = outgoing(TorchOps(collective.payload.device), collective)
            handle = hvd.allgather_async(array, name=name, process_set=self.process_set)
        return Handle(collective, handle, array.nbytes)

    def done(self, handle: Handle) -> bool:
        return hvd.poll(handle.horovod)

    def rest(self, handle: Handle, seconds: float) -> None:
        time.sleep(seconds)

    def wait(self, handle: Handle) -> Any:
        result = self._result(handle.horovod)
        self.traffic.count(handle.collective.kind, handle.sent, result.nbytes)
        return incoming(handle.collective, result, self.workers)

    @_failures()
    def _result(self, handle: int) -> Any:
        try:
            return hvd.synchronize(handle)
        except HorovodInternalError as error:
            # Another worker's error reaches this one as a refused collective: `fail` submits what does not fit. After
            # any other error Horovod shuts down, and what is started then may wait for ever.
            explanation = self._explain(None) if REFUSED in str(error) else ""
            if explanation:
                raise _Failed(explanation) from None
            raise

    def fail(self, error: BaseException, names: Sequence[str], told: bool = False) -> None:
        """Make the other workers' collectives of these names fail, and tell them why.

        Horovod keeps sums and gathers of one name apart, so `MISFIT` is submitted as both; the unmatched submission
        stays pending and is harmless.
        """
        if isinstance(error, WorkerFailed) or self.workers == 1:
            return
        for name in names:
            for kind in ("allreduce", "allgather"):
                with suppress(ValueError):  # it is pending since an earlier failure
                    self._submit_misfit(name, kind)
        self._explain(error, TOLD_SECONDS if told else EXPLAIN_SECONDS)

    def all_have_left(self, first: Sequence[tuple[str, str]]) -> bool:
        for name, kind in first[:1]:  # a worker that follows the plan starts all of them sooner or later
            try:
                result = hvd.synchronize(self._submit_misfit(name, kind))
            except HorovodInternalError:
                return False
            self.traffic.count("agreement", MISFIT.nbytes, result.nbytes)
        return True

    def _submit_misfit(self, name: str, kind: str) -> int:
        submit = hvd.allgather_async if kind == "allgather" else partial(hvd.allreduce_async, op=hvd.Sum)
        return submit(torch.from_numpy(MISFIT.copy()), name=name, process_set=self.process_set)

    def gather_object(self, item: Any, name: str, check: Callable[[], None] = lambda: None) -> list[Any]:
        return self._unpacked(self._result(self._begin_gather(item, name)))

    @_failures()
    def _begin_gather(self, item: Any, name: str) -> int:
        payload = torch.from_numpy(packed_object(item))
        self.traffic.count("agreement", payload.nbytes, 0)
        return hvd.allgather_async(payload, name=name, process_set=self.process_set)

    def _unpacked(self, gathered: torch.Tensor) -> list[Any]:
        self.traffic.collectives["agreement"]["received"] += gathered.nbytes
        return unpacked_objects(gathered, self.workers)

    def _explain(self, error: BaseException | None, seconds: float = EXPLAIN_SECONDS) -> str:
        """Exchange the workers' errors; return them as text, or nothing if that takes too long."""
        if not self.explains:
            return ""
        text = f"{type(error).__name__}: {error}" if error is not None else None
        handle = self._begin_gather(text, f"{self.name}.failure")
        deadline = time.monotonic() + seconds
        while not hvd.poll(handle):
            if time.monotonic() > deadline:
                return ""
            time.sleep(0.005)
        failed = enumerate(self._unpacked(hvd.synchronize(handle)))
        return "; ".join(f"rank {rank} failed with {text}" for rank, text in failed if text is not None)
