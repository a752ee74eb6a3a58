"""Collectives over the process groups of torch.distributed: gloo, NCCL, or any other backend."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from hvd_compress.compressors.base import AllReduce, Collective
from hvd_compress.ops.torch import TorchOps
from hvd_compress.transports import LENGTH_BYTES, Traffic, WorkerFailed, packed_object, unpacked_objects

_OPS = {"sum": dist.ReduceOp.SUM, "mean": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}
PAUSE = 1e-3  # seconds between looks at an agreement
LOOK_EVERY = timedelta(milliseconds=100)  # at whether another worker has failed; a look takes 0.25 ms of a core


@dataclass
class Handle:
    """A collective under way; where lengths vary, first the gather of the `lengths`, then that of the payloads."""

    collective: Collective
    name: str
    work: dist.Work
    received: list[Tensor]
    lengths: list[int] | None = None


class ProcessGroupTransport:
    """Collectives over groups of its own, of the same processes and backend as a given one.

    A process group matches collectives by their order alone. So all workers start the same ones in the same order, and
    no others in these groups: DDP's, and the script's, stay in theirs. Agreements have a second group, over gloo: a
    worker that does not follow the plan meets no collective of those who do. All workers make the groups together in
    their first step. After an error they leave them, for in there collectives are still waited for, and make others.

    Args:
        group: the processes; None stands for all.

    Raises:
        RuntimeError: if torch.distributed is not initialized.
        ValueError: if this process is not in the group.
    """

    name = "hvd_compress.group"
    ordered = True
    tells = False

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise RuntimeError("call torch.distributed.init_process_group() first, in a job that torchrun has started")
        self.group: Any = dist.group.WORLD if group is None else group
        self.rank, self.workers = dist.get_rank(self.group), dist.get_world_size(self.group)
        self.world_rank = dist.get_rank()
        if self.rank < 0:
            raise ValueError("this process is not in the process group that was given")
        self.traffic = Traffic()
        self._groups: tuple[dist.ProcessGroup, dist.ProcessGroup] | None = None
        self._met = False

    def _made(self) -> tuple[dist.ProcessGroup, dist.ProcessGroup]:
        """Return the group of the exchanges and that of the agreements."""
        if self._groups is None:
            self._meet()
            given: dict[str, Any] = {"timeout": _timeout_of(self.group)}
            if self.workers < dist.get_world_size():
                given |= {"ranks": dist.get_process_group_ranks(self.group), "use_local_synchronization": True}
            backend = dist.get_backend_config(self.group)
            if "cpu:" not in backend:  # the roll call's bytes are the host's
                backend += ",cpu:gloo"
            self._groups = dist.new_group(backend=backend, **given), dist.new_group(backend="gloo", **given)
        return self._groups

    def _meet(self) -> None:
        """Wait in the given group for all workers, before the first groups are made: there one who is gone is noticed.

        And let all have as many groups: PyTorch names one of some processes by the number that each has, and with
        different names they would wait for each other. From then on they make the same ones.
        """
        if not self._met:
            counts: list[int] = [0] * self.workers
            with _failures("in which all workers meet first"):
                dist.all_gather_object(counts, len(distributed_c10d._world.pg_names), self.group)
            for _ in range(max(counts) - counts[self.rank]):
                dist.new_group([dist.get_rank()], backend="gloo", use_local_synchronization=True)
            self._met = True

    def renew(self) -> bool:
        return False

    def start(self, collective: Collective, name: str) -> Handle:
        group, _ = self._made()
        if isinstance(collective, AllReduce):
            total = self._own_share(collective)
            with _failures(name):
                return Handle(collective, name, dist.all_reduce(total, _OPS[collective.op], group, True), [total])
        with _failures(name):
            own = collective.payload
            if collective.varying:
                own = torch.tensor([own.shape[0]], device=own.device)
            return Handle(collective, name, *self._gather(own, group))

    def _own_share(self, collective: AllReduce) -> Tensor:
        """Return what is summed: of a mean the share of this worker, so that nothing is left to be divided."""
        array: Tensor = collective.array
        if collective.op == "mean":
            share = array if collective.spare else TorchOps(array.device).new(array.shape, array.dtype)
            return torch.div(array, self.workers, out=share)
        return array if collective.spare else TorchOps(array.device).copy(array)

    def _gather(self, own: Tensor, group: dist.ProcessGroup) -> tuple[dist.Work, list[Tensor]]:
        received = [torch.empty_like(own) for _ in range(self.workers)]
        return dist.all_gather(received, own.contiguous(), group, True), received

    def done(self, handle: Handle) -> bool:
        """As of any transport; where lengths vary, asking brings it on: the worker does so in the common order."""
        if not handle.work.is_completed():
            return False
        collective = handle.collective
        if isinstance(collective, AllReduce) or not collective.varying or handle.lengths is not None:
            return True
        with _failures(handle.name):
            handle.work.wait()
            handle.lengths = [int(length) for length in handle.received]
            filled = torch.nn.functional.pad(collective.payload, (0, max(handle.lengths) - collective.payload.shape[0]))
            handle.work, handle.received = self._gather(filled, self._made()[0])
        return handle.work.is_completed()

    def rest(self, handle: Handle, seconds: float) -> None:
        if handle.received[0].is_cuda:  # waiting would hold up the stream, not the thread
            time.sleep(seconds)
        else:
            with suppress(RuntimeError):  # that it has not ended in time; if it has failed, `wait` will say so
                handle.work.wait(LOOK_EVERY)

    def wait(self, handle: Handle) -> Any:
        with _failures(handle.name):
            while not self.done(handle):
                handle.work.wait()
            handle.work.wait()
        collective, received, lengths = handle.collective, handle.received, handle.lengths
        if isinstance(collective, AllReduce):
            (total,) = received
            self.traffic.count("allreduce", total.nbytes, total.nbytes)
            return total
        sent = received[0].nbytes + (LENGTH_BYTES if lengths is not None else 0)
        self.traffic.count(collective.kind, sent, sent * self.workers)
        return received if lengths is None else [p[:length] for p, length in zip(received, lengths, strict=True)]

    def gather_object(self, item: Any, name: str, check: Callable[[], None] = lambda: None) -> list[Any]:
        _, group = self._made()
        own = torch.from_numpy(packed_object(item))

        def gathered(part: Tensor) -> list[Tensor]:
            with _failures(name):
                work, received = self._gather(part, group)
                while not work.is_completed():
                    check()
                    time.sleep(PAUSE)
                work.wait()
            return received

        lengths = [int(length) for length in gathered(torch.tensor([own.shape[0]]))]
        parts = gathered(torch.nn.functional.pad(own, (0, max(lengths) - own.shape[0])))
        sent = LENGTH_BYTES + max(lengths)
        self.traffic.count("agreement", sent, sent * self.workers)
        return unpacked_objects(torch.cat([p[:length] for p, length in zip(parts, lengths, strict=True)]), self.workers)

    def all_have_left(self, first: Sequence[tuple[str, str]]) -> bool:
        return True  # those who have not are told at their ports

    def fail(self, error: BaseException, names: Sequence[str], told: bool = False) -> None:
        """Leave the groups, in which others may wait; they are told at their ports, and leave them as well.

        Gloo's groups end only when all their collectives have, which may be never, and the process with them: so they
        are kept from ending.
        """
        for group in self._groups or ():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))
        self._groups = None


@contextmanager
def _failures(name: str) -> Iterator[None]:
    """Let an error of the backend say what was waited for."""
    try:
        yield
    except WorkerFailed:
        raise
    except RuntimeError as error:
        raise WorkerFailed(
            f"another worker is gone, or has not come in time, to the collective {name}: {error}"
        ) from None


def _timeout_of(group: dist.ProcessGroup) -> timedelta | None:
    """Return how long the collectives of a group may take; None, PyTorch's default, if that is not known."""
    for device in ("cpu", "cuda"):
        with suppress(AttributeError, RuntimeError):  # there is no public way to ask
            timeout: timedelta = group._get_backend(torch.device(device)).options._timeout
            return timeout
    return None
