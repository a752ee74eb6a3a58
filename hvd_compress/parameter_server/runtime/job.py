"""A job from its start, when all ranks agree on what it is, to its result."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Protocol

import numpy as np
from mpi4py import MPI

from hvd_compress.ops.layout import Layout
from hvd_compress.parameter_server.codecs import Vector
from hvd_compress.parameter_server.objectives import Objective
from hvd_compress.parameter_server.protocols import Algorithm, JobPlan
from hvd_compress.parameter_server.runtime.checkpoints import Checkpoints, Unsound, begin_run
from hvd_compress.parameter_server.runtime.messages import Endpoint, survives
from hvd_compress.parameter_server.runtime.roles import Roles, Shard, shards
from hvd_compress.parameter_server.runtime.server import Coordinator, Epoch, JobFailed, Server
from hvd_compress.parameter_server.runtime.worker import Dropped, Worker
from hvd_compress.reduction.agreement import WorkersDisagree, check_agreement
from hvd_compress.version import __version__


class Result(NamedTuple):
    """What came of a job.

    Attributes:
        record: of the last epoch, for JSON.
        layout: of the model.
        model: the last snapshot, float32 of shape (layout.size,).
    """

    record: dict[str, Any]
    layout: Layout
    model: Vector


@dataclasses.dataclass(frozen=True)
class Settings:
    """What every job needs to know.

    Attributes:
        servers: their number; all other ranks are workers.
        batch: rows of a worker's batch.
        epochs: most epochs.
        target: suboptimality at which the job is done, or None; without an optimum, the objective itself.
        seed: of everything random.
        timeout: seconds of silence after which a worker is dropped.
        checkpoint: folder for checkpoints, or None.
        every: epochs from one checkpoint that is kept and flushed to disk to the next. In between, the last two
            epochs are kept, so that a job that is killed can always go on; a power failure may take these.
        resume: whether to go on from the last checkpoint.
        slow: seconds that the last worker sleeps in each step.
    """

    servers: int = 1
    batch: int = 64
    epochs: int = 50
    target: float | None = None
    seed: int = 0
    timeout: float = 120.0
    checkpoint: Path | None = None
    every: int = 1
    resume: bool = False
    slow: float = 0.0


class Console(Protocol):
    """Who shows what happens, on the coordinator's rank."""

    def epoch(self, epoch: Epoch, optimum: float | None) -> None:
        """Show an epoch."""

    def progress(self, done: int, steps: int) -> None:
        """Show the steps done in an epoch."""

    def say(self, text: str) -> None:
        """Show a line."""


class Interrupted(BaseException):
    """Ctrl-C, or SIGTERM."""


def run(
    algorithm: Algorithm,
    load: Callable[[], Objective],
    settings: Settings,
    console: Console,
    optimum: Callable[[Objective], float | None] = lambda objective: None,
    comm: MPI.Comm = MPI.COMM_WORLD,
) -> Result | None:
    """Run a job on all ranks of a communicator; return its result on rank 0, None on others.

    Bad settings or data end the process with exit status 2 and a message, as argparse does; a lost server or all
    workers lost with 1; Ctrl-C with 130. Where there is a checkpoint folder, the last epoch that was shown can be
    resumed, however the job ends. A rank in which something unexpected is raised shows it and kills itself, so that
    the others go on or end as when any rank dies.

    Args:
        algorithm: what to run.
        load: gives a worker the objective with all its data.
        settings: of the job.
        console: shows what happens.
        optimum: gives P*; the first worker calls it.
        comm: the ranks.
    """
    comm.Set_errhandler(MPI.ERRORS_RETURN)
    try:
        return _Job(algorithm, settings, console, comm).run(load, optimum)
    except (JobFailed, MPI.Exception) as error:
        text = f"another rank is gone ({error})" if isinstance(error, MPI.Exception) else str(error)
        if comm.Get_rank():  # the coordinator speaks first, if it is there
            time.sleep(1)
        print(text, file=sys.stderr, flush=True)
        leave(1)
    except Exception:  # a bug: the others must not wait for this rank, but see it die
        traceback.print_exc()
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    except Interrupted as interrupt:
        print(f"rank {comm.Get_rank()}: {interrupt}", file=sys.stderr, flush=True)
        os._exit(130)
    return None


def leave(status: int = 0) -> None:
    """End a rank of a job; every rank calls this last.

    Where the MPI goes on without dead ranks, MPI_Finalize may wait for them for ever: there the process just ends.
    Elsewhere a status other than 0 ends all ranks.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if survives():
        os._exit(status)
    if status:
        MPI.COMM_WORLD.Abort(status)


class _Job:
    def __init__(self, algorithm: Algorithm, settings: Settings, console: Console, comm: MPI.Comm) -> None:
        self.algorithm, self.settings, self.console, self.comm = algorithm, settings, console, comm
        self.rank = comm.Get_rank()
        self.checkpoints: Checkpoints | None = None
        self.resumed = self.saved = -1  # the epoch from which it goes on, and the last that the whole job has saved
        self.name = ""
        self.processes: list[tuple[str, int]] = []

    def run(self, load: Callable[[], Objective], optimum: Callable[[Objective], float | None]) -> Result | None:
        settings = self.settings
        objective, plan, start = self._agree(load, optimum)
        roles, own = plan.roles, shards(plan.layout, plan.roles.servers)
        self.name = f"server-{self.rank}" if roles.is_server(self.rank) else f"worker-{self.rank}"
        first, before, kept = 0, None, None
        if settings.checkpoint is not None:
            names = [f"server-{rank}" for rank in roles.server_ranks]
            if self.algorithm.workers_keep:
                names += [f"worker-{rank}" for rank in roles.worker_ranks]
            self.checkpoints = Checkpoints(
                settings.checkpoint, names, settings.every, self._begin_run(settings.checkpoint)
            )
            if settings.resume:
                first, before, kept = self._resume(own)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._interrupt)
        endpoint = Endpoint(self.comm)
        if not roles.is_server(self.rank):
            self._work(endpoint, plan, own, objective, kept)
            return None
        method = self.algorithm.server_part(plan, own[self.rank], start[own[self.rank].slice].copy(), self.rank)
        if kept is not None:
            method.load(kept)
        args = (endpoint, roles, method, plan.regularizer, self.algorithm.schedule(plan), plan.rows, settings.timeout)
        if self.rank:
            Server(*args, self._saved).run()
            return None
        last: list[Epoch] = []

        def finished(epoch: Epoch) -> bool:
            last[:] = [epoch]
            self._save_job(epoch)
            self.console.epoch(epoch, plan.optimum)
            return settings.target is not None and epoch.objective - (plan.optimum or 0.0) <= settings.target

        coordinator = Coordinator(
            *args,
            self._saved,
            epochs=settings.epochs,
            finished=finished,
            log=self.console.say,
            kill=self._kill,
            progress=self.console.progress,
            first=first,
            before=before,
        )
        coordinator.run()
        assert coordinator.model is not None
        return Result(self._record(last[0], plan), plan.layout, coordinator.model)

    def _kill(self, worker: int) -> None:
        """End the process of a silent worker on this machine, for which the job would be waited for at its end."""
        node, process = self.processes[worker]
        if node == MPI.Get_processor_name():
            os.kill(process, signal.SIGKILL)

    def _work(
        self,
        endpoint: Endpoint,
        plan: JobPlan,
        own: list[Shard],
        objective: Objective | None,
        kept: Mapping[str, Any] | None,
    ) -> None:
        assert objective is not None
        settings = self.settings
        answer = self.algorithm.worker_part(plan, own, self.rank)
        if kept is not None:
            answer.load(kept)
        worker = Worker(
            endpoint,
            plan.roles,
            own,
            objective,
            answer,
            batch=settings.batch,
            seed=settings.seed,
            ahead=self.algorithm.ahead,
            delay=settings.slow if self.rank == plan.roles.size - 1 else 0.0,
            saved=self._saved,
        )
        try:
            worker.run()
        except Dropped as error:
            print(f"rank {self.rank}: {error}", file=sys.stderr, flush=True)

    def _agree(
        self, load: Callable[[], Objective], optimum: Callable[[Objective], float | None]
    ) -> tuple[Objective | None, JobPlan, Vector]:
        """Let the workers load their data, and all ranks compare what they mean."""
        settings, comm = self.settings, self.comm
        objective: Objective | None = None
        error: str | None = None
        mine: dict[str, Any] = {}
        roles: Roles | None = None
        try:
            roles = Roles(settings.servers, comm.Get_size())
            if not roles.is_server(self.rank):
                objective = load()
                mine = {
                    "version": __version__,
                    "algorithm": repr(self.algorithm),
                    "settings": repr(dataclasses.replace(settings, slow=0.0)),
                    "parameters": [f"{p.name} {p.shape}" for p in objective.layout.parameters],
                    **objective.description(),
                }
        except (OSError, TypeError, ValueError) as problem:
            error = str(problem)
        everyone = comm.allgather((mine, error, (MPI.Get_processor_name(), os.getpid())))
        problems = {rank: text for rank, (_, text, _) in enumerate(everyone) if text is not None}
        self.processes = [place for _, _, place in everyone]
        if not problems and roles is not None:
            try:
                check_agreement([everyone[rank][0] for rank in roles.worker_ranks], list(roles.worker_ranks))
            except WorkersDisagree as problem:
                problems[0] = str(problem)
        self._refuse(problems)
        assert roles is not None
        plan = None
        if objective is not None and self.rank == roles.servers:
            try:
                smoothness = objective.smoothness(settings.batch)
                known = (objective.layout, objective.rows, objective.regularizer, smoothness)
                plan = JobPlan(*known, optimum(objective), roles)
                shards(plan.layout, roles.servers)
                self.algorithm.check(plan)
            except (OSError, ValueError) as problem:
                error = str(problem)
        plan, error = comm.bcast((plan, error), root=roles.servers)
        self._refuse({} if error is None else {0: error})
        assert plan is not None
        start = np.empty(plan.layout.size, np.float32)
        if objective is not None and self.rank == roles.servers:
            start[:] = objective.initial(settings.seed)
        comm.Bcast(start, root=roles.servers)
        return objective, plan, start

    def _refuse(self, problems: Mapping[int, str]) -> None:
        """End the job if there is a problem; all ranks call this with the same ones."""
        if not problems:
            return
        if self.rank == 0:
            texts: dict[str, list[str]] = {}
            for rank, text in problems.items():
                texts.setdefault(text, []).append(str(rank))
            for text, ranks in texts.items():
                where = f" (ranks {', '.join(ranks)})" if len(ranks) < self.comm.Get_size() and ranks != ["0"] else ""
                print(f"{Path(sys.argv[0]).name}: error: {text}{where}", file=sys.stderr, flush=True)
        sys.stderr.flush()
        self.comm.Barrier()  # nobody ends the job before the message is out
        os._exit(2)

    # --- checkpoints

    def _begin_run(self, folder: Path) -> str:
        """Return the name of this run, which no other run that saves there has."""
        run, error = "", None
        if self.rank == 0:
            try:
                run = begin_run(folder)
            except OSError as problem:
                error = str(problem)
        run, error = self.comm.bcast((run, error))
        self._refuse({} if error is None else {0: error})
        return run

    def _saved(self, epoch: int, state: Mapping[str, Any]) -> None:
        """Write this rank's part of a checkpoint, unless the job goes on from that very one."""
        if self.checkpoints is not None and epoch != self.resumed:
            with _writing(self.checkpoints):
                self.checkpoints.save(epoch, self.name, state)

    def _save_job(self, epoch: Epoch) -> None:
        """Complete a checkpoint: all ranks have saved their parts, or else the epoch would not be over."""
        if self.checkpoints is not None and epoch.epoch != self.resumed:
            record = dataclasses.asdict(epoch) | {"delays": {str(delay): n for delay, n in epoch.delays.items()}}
            with _writing(self.checkpoints):
                self.checkpoints.save_job(epoch.epoch, {"algorithm": repr(self.algorithm), "epoch": record})
        self.saved = epoch.epoch

    def _resume(self, own: list[Shard]) -> tuple[int, Epoch, dict[str, Any] | None]:
        """Return the epoch to go on from, what was reached by then, and what this rank has kept, if it keeps anything.

        Rank 0 chooses the epoch.
        """
        assert self.checkpoints is not None
        found, before, error = None, None, None
        if self.rank == 0:
            try:
                found = self.checkpoints.latest()
                if found.job["algorithm"] != repr(self.algorithm):
                    raise ValueError(f"the checkpoint is of {found.job['algorithm']}, the job of {self.algorithm!r}")
                before = _epoch_of(found.job["epoch"])
                if found.skipped:
                    self.console.say(f"--resume goes on from epoch {found.epoch}, without {found.skipped}")
            except (OSError, ValueError) as problem:
                error = str(problem)
        found, before, error = self.comm.bcast((found, before, error))
        self._refuse({} if error is None else {0: error})
        kept = None
        if self.name in self.checkpoints.names:
            try:
                kept = self.checkpoints.load(found.epoch, self.name)
                if self.rank < len(own) and kept["snapshot"].shape != (own[self.rank].layout.size,):
                    raise Unsound(
                        f"{self.name}.npz holds {kept['snapshot'].size} coordinates of the model, and the job's "
                        f"{self.name} owns {own[self.rank].layout.size}"
                    )
            except Unsound as problem:
                error = f"epoch-{found.epoch}: {problem}"
        problems = self.comm.allgather(error)
        self._refuse({rank: text for rank, text in enumerate(problems) if text is not None})
        self.resumed = found.epoch
        return found.epoch, before, kept

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """End this rank. There may be no time for anything else, and nothing is left to be saved."""
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        if self.checkpoints is None or self.saved < 0:
            raise Interrupted("interrupted")
        raise Interrupted(f"interrupted; {self.settings.checkpoint} has epoch {self.saved}, go on with --resume")

    def _record(self, epoch: Epoch, plan: JobPlan) -> dict[str, Any]:
        roles = plan.roles
        return {
            "algorithm": self.algorithm.name,
            "objective": epoch.objective,
            "suboptimality": None if plan.optimum is None else epoch.objective - plan.optimum,
            "accuracy": epoch.right / epoch.tested if epoch.tested else None,
            "bits_up": epoch.bits_up,
            "bits_down": epoch.bits_down,
            "seconds": epoch.seconds,
            "epochs": epoch.epoch,
            "steps": epoch.steps,
            "workers": len(roles.worker_ranks),
            "workers_left": epoch.workers,
            "servers": roles.servers,
            "max_delay": max(epoch.delays, default=0),
            "delays": {str(delay): count for delay, count in sorted(epoch.delays.items())},
            "seed": self.settings.seed,
        }


@contextlib.contextmanager
def _writing(checkpoints: Checkpoints) -> Iterator[None]:
    """Say what went wrong if a checkpoint cannot be written."""
    try:
        yield
    except OSError as error:
        raise JobFailed(f"the checkpoint cannot be written to {checkpoints.folder}: {error}") from error


def _epoch_of(record: Mapping[str, Any]) -> Epoch:
    """Return the epoch that a job.json describes.

    Raises:
        ValueError: if it describes none.
    """
    try:
        delays = Counter({int(delay): count for delay, count in record["delays"].items()})
        return Epoch(**{**record, "delays": delays})
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"job.json describes no epoch: {error}") from error
