"""Checkpoints as the ranks of a job write and read them: each its own file, and all of them the same epoch."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from mpi4py import MPI

from hvd_compress.parameter_server.protocols import Algorithm
from hvd_compress.parameter_server.runtime.checkpoints import Checkpoints, Unsound, begin_run
from hvd_compress.parameter_server.runtime.coordinator import Epoch
from hvd_compress.parameter_server.runtime.roles import Roles
from hvd_compress.parameter_server.runtime.settings import JobSettings
from hvd_compress.parameter_server.runtime.start import on_one_rank, refuse
from hvd_compress.parameter_server.runtime.watch import JobFailed


class Resumed(NamedTuple):
    """Where a job goes on: what was reached by then, and the state of this rank's part; None if there is none."""

    before: Epoch | None
    state: dict[str, Any] | None


class Saving:
    """A rank's share in the checkpoints of its job; it does nothing if these have no folder.

    All ranks make one at the same time.

    Attributes:
        saved: the last epoch that can be resumed, as far as this rank knows; -1 if there is none.
    """

    def __init__(self, settings: JobSettings, algorithm: Algorithm, roles: Roles, comm: MPI.Comm) -> None:
        self.saved = -1
        self._algorithm, self._comm, self._rank = algorithm, comm, comm.Get_rank()
        self._name = f"{'server' if roles.is_server(self._rank) else 'worker'}-{self._rank}"
        self._resumed = -1
        self._files: Checkpoints | None = None
        folder = settings.checkpoint
        if folder is not None:
            names = [f"server-{rank}" for rank in roles.server_ranks]
            if algorithm.workers_keep:
                names += [f"worker-{rank}" for rank in roles.worker_ranks]
            run = on_one_rank(comm, 0, lambda: begin_run(folder))
            self._files = Checkpoints(folder, names, settings.every, run)

    def resume(self, size: int | None, say: Callable[[str], None]) -> Resumed:
        """Return where the job goes on: from the newest epoch that is complete and sound, which rank 0 chooses.

        Without a folder it goes on from nothing.

        Args:
            size: coordinates that this rank owns; None for a worker.
            say: takes a line for the user, on rank 0.
        """
        files = self._files
        if files is None:
            return Resumed(None, None)

        def choose() -> Epoch:
            found = files.latest()
            if found.job["algorithm"] != repr(self._algorithm):
                raise ValueError(f"the checkpoint is of {found.job['algorithm']}, the job of {self._algorithm!r}")
            if found.skipped:
                say(f"--resume goes on from epoch {found.epoch}, without {found.skipped}")
            return _epoch_of(found.job["epoch"])

        before = on_one_rank(self._comm, 0, choose)
        state, problem = None, None
        if self._name in files.names:
            try:
                state = files.load(before.epoch, self._name)
                if size is not None:
                    check_snapshot(self._name, state, size)
            except Unsound as error:
                problem = f"epoch-{before.epoch}: {error}"
        problems = self._comm.allgather(problem)
        refuse(self._comm, {rank: text for rank, text in enumerate(problems) if text is not None})
        self._resumed = before.epoch
        return Resumed(before, state)

    def save(self, epoch: int, state: Mapping[str, Any]) -> None:
        """Write this rank's file of an epoch, unless the job goes on from that very one."""
        if self._files is not None and epoch != self._resumed:
            with self._writing(self._files):
                self._files.save(epoch, self._name, state)

    def complete(self, epoch: Epoch) -> None:
        """Complete an epoch, on rank 0: all ranks have written their files before they sent what it was told of."""
        if self._files is None:
            return
        if epoch.epoch != self._resumed:
            record = dataclasses.asdict(epoch) | {"delays": {str(delay): n for delay, n in epoch.delays.items()}}
            with self._writing(self._files):
                self._files.save_job(epoch.epoch, {"algorithm": repr(self._algorithm), "epoch": record})
        self.saved = epoch.epoch

    @contextlib.contextmanager
    def _writing(self, files: Checkpoints) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise JobFailed(f"the checkpoint cannot be written to {files.folder}: {error}") from error


def check_snapshot(name: str, state: Mapping[str, Any], size: int) -> None:
    """Raise Unsound unless a server's state has a snapshot of so many coordinates, float32 and finite."""
    snapshot = np.asarray(state.get("snapshot"))
    if snapshot.dtype != np.float32 or snapshot.shape != (size,):
        raise Unsound(
            f"{name}.npz must hold a snapshot of shape ({size},) and float32, the coordinates that {name} owns; "
            f"it is of shape {snapshot.shape} and {snapshot.dtype}"
        )
    if not np.isfinite(snapshot).all():
        raise Unsound(f"{name}.npz holds a snapshot with values that are not finite")


def _epoch_of(record: Mapping[str, Any]) -> Epoch:
    """Return the epoch that a job.json describes; ValueError if it describes none."""
    try:
        delays = Counter({int(delay): count for delay, count in record["delays"].items()})
        return Epoch(**{**record, "delays": delays})
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"job.json describes no epoch: {error}") from error
