"""mpi4py's collectives, without Horovod, for NumPy arrays and PyTorch tensors on the CPU."""

from __future__ import annotations

import functools
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from mpi4py import MPI

from hvd_compress.compressors.base import AllGather, AllReduce, Collective
from hvd_compress.ops import Ops
from hvd_compress.ops.numpy import NumpyOps
from hvd_compress.transports import Traffic, WorkerFailed

_FAILED, _LEFT = np.uint64(2**64 - 1), np.uint64(2**64 - 2)  # what a worker may send in place of a length


def _add_halves(source: Any, target: Any, _datatype: MPI.Datatype) -> None:
    total = np.frombuffer(target, np.float16)
    total += np.frombuffer(source, np.float16)


@functools.cache  # mpi4py has room for few operations
def _half_sum() -> MPI.Op:
    """Return the sum of float16 numbers, which MPI lacks."""
    return MPI.Op.Create(_add_halves, commute=True)


class _Duplicates:
    """Duplicates of a communicator, each in use by one transport at a time.

    Freeing a communicator is collective, and transports are garbage collected at other times on other ranks. So a
    duplicate is not freed with its transport: the next transport takes one that is idle on all ranks.
    """

    def __init__(self) -> None:
        self.comms: list[MPI.Comm] = []
        self.idle: list[bool] = []

    def take(self, parent: MPI.Comm, user: object) -> MPI.Comm:
        """Return a duplicate of `parent`, for as long as `user` lives; all ranks call it."""
        found = self.idle_everywhere(parent)
        place = found[0] if found else len(self.comms)
        if not found:
            self.comms.append(parent.Dup())
            self.idle.append(False)
        self.idle[place] = False
        weakref.finalize(user, self.idle.__setitem__, place, True)
        return self.comms[place]

    def idle_everywhere(self, parent: MPI.Comm) -> list[int]:
        """Return the places of those that are idle on all ranks, which all call it."""
        idle = np.array(self.idle, np.uint8)
        parent.Allreduce(MPI.IN_PLACE, idle, MPI.MIN)
        return np.flatnonzero(idle).tolist()


def _free_duplicates(parent: MPI.Comm, _key: int, duplicates: _Duplicates) -> None:
    """Free the idle duplicates of a communicator that is about to be freed itself, on all ranks."""
    if parent not in (MPI.COMM_WORLD, MPI.COMM_SELF):  # which are freed in MPI_Finalize
        for place in duplicates.idle_everywhere(parent):
            duplicates.comms[place].Free()


@functools.cache
def _duplicates_key() -> int:
    """Return the key under which a communicator keeps its duplicates."""
    return MPI.Comm.Create_keyval(delete_fn=_free_duplicates)


def _duplicates_of(comm: MPI.Comm) -> _Duplicates:
    found: Any = comm.Get_attr(_duplicates_key())
    duplicates: _Duplicates = _Duplicates() if found is None else found
    if found is None:
        comm.Set_attr(_duplicates_key(), duplicates)
    return duplicates


@contextmanager
def abort_on_error(comm: MPI.Comm = MPI.COMM_WORLD) -> Iterator[None]:
    """End all ranks of a job, with exit code 1, if this one leaves the block with an exception, which is printed."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:
            raise
        traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        comm.Abort(1)


class Handle(NamedTuple):
    """A collective under way."""

    collective: Collective
    request: MPI.Request
    buffers: tuple[Any, ...]
    name: str


class MPITransport:
    """Collectives over a duplicate of an MPI communicator, which all its ranks make together.

    MPI ends nothing by itself when a rank raises an exception: within an exchange the others are told, but outside of
    it they wait for ever. Start such programs with ``mpirun -np 2 python -m mpi4py program.py``, which ends all ranks
    then, or put the training inside of `abort_on_error`.

    MPI matches collectives by their order: all workers must start the same ones in the same order, and each starts
    with an agreement of eight bytes, the length of what is to come or the sign that a worker has failed.
    """

    name = "hvd_compress.transport"
    ordered = True
    tells = True

    def __init__(self, comm: MPI.Comm = MPI.COMM_WORLD, ops: Ops | None = None) -> None:
        self.comm = _duplicates_of(comm).take(comm, self)
        self.rank, self.workers = comm.Get_rank(), comm.Get_size()
        self.world_rank = MPI.COMM_WORLD.Get_rank()
        self.ops: Ops = NumpyOps() if ops is None else ops
        self.traffic = Traffic()

    def start(self, collective: Collective, name: str) -> Handle:
        """Begin a collective; it returns once the workers have agreed on the lengths.

        Raises:
            WorkerFailed: if another worker called `fail`, or follows another plan.
            ValueError: if the workers' arrays differ in length.
        """
        array = collective.array if isinstance(collective, AllReduce) else collective.payload
        own = np.ascontiguousarray(self.ops.to_numpy(array))
        lengths = self._agree(np.uint64(own.nbytes))
        if not (isinstance(collective, AllGather) and collective.varying) and len(set(lengths.tolist())) != 1:
            listed = ", ".join(f"rank {rank}: {length}" for rank, length in enumerate(lengths))
            raise ValueError(f"{name}: the workers' arrays differ in their bytes ({listed})")
        if isinstance(collective, AllReduce):
            total = np.empty_like(own)
            request = self._iallreduce(own, total, collective.op)
            return Handle(collective, request, (own, total), name)
        gathered = np.empty(int(lengths.sum()), np.uint8)
        request = self.comm.Iallgatherv(own, [gathered, lengths.astype(np.int64)])
        return Handle(collective, request, (own, gathered, lengths), name)

    def _iallreduce(self, own: Any, total: Any, op: str) -> MPI.Request:
        if own.dtype != np.float16:
            return self.comm.Iallreduce(own, total, MPI.MAX if op == "max" else MPI.SUM)
        if op == "max":
            raise TypeError("MPI has no float16 maximum")
        kind = MPI.BYTE.Create_contiguous(2).Commit()
        request = self.comm.Iallreduce([own, own.size, kind], [total, own.size, kind], _half_sum())
        kind.Free()
        return request

    def _agree(self, length: np.uint64) -> Any:
        lengths = np.empty(self.workers, np.uint64)
        self.comm.Allgather(np.array([length]), lengths)
        self.traffic.count("agreement", length.nbytes, lengths.nbytes)
        if _FAILED in lengths:
            raise WorkerFailed(self._explain(None))
        if _LEFT in lengths and length != _LEFT:
            return self._agree(length)  # those who have left the plan say next that they cannot go on
        return lengths

    def _explain(self, error: BaseException | None) -> str:
        text = f"{type(error).__name__}: {error}" if error is not None else None
        texts = self.comm.allgather(text)
        return "; ".join(f"rank {rank} failed with {text}" for rank, text in enumerate(texts) if text is not None)

    def done(self, handle: Handle) -> bool:
        return bool(handle.request.Test())

    def rest(self, handle: Handle, seconds: float) -> None:
        time.sleep(seconds)

    def wait(self, handle: Handle) -> Any:
        handle.request.Wait()
        if isinstance(handle.collective, AllReduce):
            own, total = handle.buffers
            self.traffic.count("allreduce", own.nbytes, own.nbytes)
            if handle.collective.op == "mean":
                total = (total / self.workers).astype(total.dtype)
            return self.ops.from_numpy(total)
        own, gathered, lengths = handle.buffers
        self.traffic.count(handle.collective.kind, own.nbytes, gathered.nbytes)
        ends = np.cumsum(lengths.astype(np.int64))
        return list(map(self.ops.from_numpy, np.split(gathered, ends[:-1])))

    def renew(self) -> bool:
        return False

    def all_have_left(self, first: Sequence[tuple[str, str]]) -> bool:
        return bool((self._agree(_LEFT) == _LEFT).all())

    def gather_object(self, item: Any, name: str, check: Callable[[], None] = lambda: None) -> list[Any]:
        self._agree(np.uint64(0))
        return self.comm.allgather(item)

    def fail(self, error: BaseException, names: Sequence[str], told: bool = False) -> None:
        """Let the other workers' next collective raise `WorkerFailed`."""
        if isinstance(error, WorkerFailed):
            return
        lengths = np.empty(self.workers, np.uint64)
        self.comm.Allgather(np.array([_FAILED]), lengths)
        self._explain(error)
