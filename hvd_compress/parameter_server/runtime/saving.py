"""Checkpoints as the ranks of a job write and read them: each its own file, and all of them the same epoch."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from mpi4py import MPI

from hvd_compress.parameter_server.protocols import Algorithm
from hvd_compress.parameter_server.runtime.checkpoints import Checkpoint, Checkpoints, Unsound, begin_run
from hvd_compress.parameter_server.runtime.coordinator import Epoch
from hvd_compress.parameter_server.runtime.roles import Roles
from hvd_compress.parameter_server.runtime.settings import JobSettings
from hvd_compress.parameter_server.runtime.start import on_one_rank, refuse
from hvd_compress.parameter_server.runtime.watch import JobFailed


class Saving:
    """A rank's share in the checkpoints of its job; it does nothing if these have no folder.

    All ranks make one at the same time.

    Attributes:
        saved: the last epoch that can be resumed, as far as this rank knows; -1 if there is none.
    """

    def __init__(self, settings: JobSettings, algorithm: Algorithm, roles: Roles, comm: MPI.Comm) -> None:
        self.saved = -1
        self._algorithm, self._roles, self._comm, self._rank = algorithm, roles, comm, comm.Get_rank()
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

    def resume(
        self, load: Callable[[Mapping[str, Any], Collection[int], int], None], say: Callable[[str], None]
    ) -> Epoch | None:
        """Return where the job goes on: from the newest epoch that is complete and sound, which rank 0 chooses.

        Without a folder it goes on from nothing, and returns None.

        Args:
            load: takes this rank's state; the workers that have none, as they were gone by then; and the worker that
                these begin like. They are given its state instead of one of their own. It raises LookupError,
                TypeError or ValueError if the state is not one of this job.
            say: takes a line for the user, on rank 0.
        """
        files = self._files
        if files is None:
            return None

        def choose() -> tuple[Epoch, list[int]]:
            found = files.latest()
            if _lasting(found.job["algorithm"]) != _lasting(repr(self._algorithm)):
                raise ValueError(f"the checkpoint is of {found.job['algorithm']}, the job of {self._algorithm!r}")
            before = _epoch_of(found, files.folder)
            workers = [rank for rank in self._roles.worker_ranks if f"worker-{rank}" in found.names]
            if self._algorithm.workers_keep and not workers:
                raise ValueError(f"epoch-{found.epoch} of {files.folder} has no state of a worker of this job")
            if found.skipped:
                say(f"--resume goes on from epoch {found.epoch}, without {found.skipped}")
            return before, workers

        before, workers = on_one_rank(self._comm, 0, choose)
        new = sorted({*self._roles.worker_ranks} - {*workers}) if workers else []
        problem = None
        if self._name in files.names:
            name = f"worker-{workers[0]}" if self._rank in new else self._name
            try:
                load(files.load(before.epoch, name), new, workers[0] if workers else 0)
            except Unsound as error:
                problem = f"epoch-{before.epoch}: {error}"
            except (LookupError, TypeError, ValueError) as error:
                problem = f"epoch-{before.epoch}: {name}.npz does not hold what {name} of this job saves: {error}"
        problems = self._comm.allgather(problem)
        refuse(self._comm, {rank: text for rank, text in enumerate(problems) if text is not None})
        self._resumed = before.epoch
        return before

    def save(self, epoch: int, state: Mapping[str, Any]) -> None:
        """Write this rank's file of an epoch, unless the job goes on from that very one."""
        if self._files is not None and epoch != self._resumed:
            with self._writing(self._files):
                self._files.save(epoch, self._name, state)

    def complete(self, epoch: Epoch, workers: Collection[int]) -> None:
        """Complete an epoch, on rank 0: the workers that are left, and all servers, have written their files by now."""
        if self._files is None:
            return
        if epoch.epoch != self._resumed:
            record = dataclasses.asdict(epoch) | {"delays": {str(delay): n for delay, n in epoch.delays.items()}}
            with self._writing(self._files):
                gone = [f"worker-{rank}" for rank in self._roles.worker_ranks if rank not in workers]
                self._files.save_job(epoch.epoch, {"algorithm": repr(self._algorithm), "epoch": record}, gone)
        self.saved = epoch.epoch

    @contextlib.contextmanager
    def _writing(self, files: Checkpoints) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise JobFailed(f"the checkpoint cannot be written to {files.folder}: {error}") from error


def _lasting(algorithm: str) -> str:
    """Return an algorithm's settings without the number of epochs, which may be another when a job goes on."""
    return re.sub(r"\bepochs=\d+, ", "", algorithm)


def _epoch_of(found: Checkpoint, folder: Path) -> Epoch:
    """Return the epoch that a job.json describes; ValueError if it describes none."""
    record = found.job["epoch"]
    try:
        delays = Counter({int(delay): count for delay, count in record["delays"].items()})
        epoch = Epoch(**{**record, "delays": delays})
        counts = (epoch.right, epoch.tested, epoch.bits_up, epoch.bits_down, epoch.steps, epoch.workers)
        if epoch.epoch != found.epoch or not all(isinstance(n, int) and n >= 0 for n in (*counts, *delays.values())):
            raise ValueError("its numbers are not those of this epoch")
        return dataclasses.replace(epoch, objective=float(epoch.objective), seconds=float(epoch.seconds))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / f'epoch-{found.epoch}'}/job.json describes no epoch: {error}") from error
