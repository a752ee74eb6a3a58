"""A job from its start, when all ranks agree on what it is, to its result."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Protocol

import numpy as np
from mpi4py import MPI

from hvd_compress.ops.layout import Layout
from hvd_compress.parameter_server.checkpoints import Checkpoints
from hvd_compress.parameter_server.codecs import Vector
from hvd_compress.parameter_server.messages import Endpoint, survives
from hvd_compress.parameter_server.methods import Method
from hvd_compress.parameter_server.objectives import Objective, Regularizer
from hvd_compress.parameter_server.roles import Roles, Shard, shards
from hvd_compress.parameter_server.schedules import Schedule
from hvd_compress.parameter_server.server import Coordinator, Epoch, JobFailed, Server
from hvd_compress.parameter_server.worker import Answer, Dropped, Worker
from hvd_compress.reduction.agreement import WorkersDisagree, check_agreement
from hvd_compress.version import __version__


class Plan(NamedTuple):
    """What all ranks know once the workers have agreed.

    Attributes:
        layout: of the model.
        rows: of all workers together.
        regularizer: h.
        smoothness: of f on a mean of `batch` rows, or None.
        optimum: P*, or None.
        roles: of the ranks.
    """

    layout: Layout
    rows: int
    regularizer: Regularizer
    smoothness: float | None
    optimum: float | None
    roles: Roles


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


class Algorithm(Protocol):
    """What a job runs."""

    @property
    def name(self) -> str:
        """What results call it."""

    @property
    def ahead(self) -> bool:
        """Whether a worker asks for its next model before it has answered the last one."""

    @property
    def workers_keep(self) -> bool:
        """Whether workers have something to keep from epoch to epoch, without which the job cannot go on."""

    def check(self, plan: Plan) -> None:
        """Raise ValueError if the settings do not go with the plan."""

    def method(self, plan: Plan, shard: Shard, start: Vector, rank: int) -> Method:
        """Return a server's part."""

    def answer(self, plan: Plan, shards: list[Shard], rank: int) -> Answer:
        """Return a worker's part."""

    def schedule(self, plan: Plan) -> Callable[[], Schedule]:
        """Return what makes the schedule of an epoch."""


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
        every: epochs from one checkpoint to the next.
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
    workers lost with 1; Ctrl-C with 130, after a checkpoint. A rank in which something unexpected is raised shows it
    and kills itself, so that the others go on or end as when any rank dies.

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
        self.recent: deque[tuple[int, Mapping[str, Any]]] = deque(maxlen=2)
        self.records: dict[int, Epoch] = {}
        self.checkpoints: Checkpoints | None = None
        self.name = ""
        self.processes: list[tuple[str, int]] = []

    def run(self, load: Callable[[], Objective], optimum: Callable[[Objective], float | None]) -> Result | None:
        settings = self.settings
        objective, plan, start = self._agree(load, optimum)
        roles, own = plan.roles, shards(plan.layout, plan.roles.servers)
        self.name = f"server-{self.rank}" if roles.is_server(self.rank) else f"worker-{self.rank}"
        first, before = 0, None
        if settings.checkpoint is not None:
            names = [f"server-{rank}" for rank in roles.server_ranks]
            if self.algorithm.workers_keep:
                names += [f"worker-{rank}" for rank in roles.worker_ranks]
            self.checkpoints = Checkpoints(settings.checkpoint, names)
            if settings.resume:
                first, before = self._resume()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._interrupt)
        endpoint = Endpoint(self.comm)
        if not roles.is_server(self.rank):
            self._work(endpoint, plan, own, objective, first)
            return None
        method = self.algorithm.method(plan, own[self.rank], start[own[self.rank].slice].copy(), self.rank)
        if before is not None:
            assert self.checkpoints is not None
            method.load(self.checkpoints.load(first, self.name))
        args = (endpoint, roles, method, plan.regularizer, self.algorithm.schedule(plan), plan.rows, settings.timeout)
        if self.rank:
            Server(*args, self._saved).run()
            return None
        last: list[Epoch] = []

        def finished(epoch: Epoch) -> bool:
            last[:] = [epoch]
            self.records[epoch.epoch] = epoch
            self.console.epoch(epoch, plan.optimum)
            self._write(epoch.epoch)
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

    def _work(self, endpoint: Endpoint, plan: Plan, own: list[Shard], objective: Objective | None, first: int) -> None:
        assert objective is not None
        settings = self.settings
        answer = self.algorithm.answer(plan, own, self.rank)
        if first and self.algorithm.workers_keep:
            assert self.checkpoints is not None
            answer.load(self.checkpoints.load(first, self.name))
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
    ) -> tuple[Objective | None, Plan, Vector]:
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
                plan = Plan(*known, optimum(objective), roles)
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

    def _saved(self, epoch: int, state: Mapping[str, Any]) -> None:
        self.recent.append((epoch, state))
        if self.rank:
            self._write(epoch)

    def _write(self, epoch: int, force: bool = False) -> None:
        """Write this rank's part of a checkpoint, if one is due."""
        if self.checkpoints is None or (epoch % self.settings.every and not force):
            return
        for number, state in self.recent:
            if number == epoch:
                self.checkpoints.save(epoch, self.name, state)
        if self.rank == 0:
            record = dataclasses.asdict(self.records[epoch]) | {"delays": dict(self.records[epoch].delays)}
            self.checkpoints.save_job(epoch, {"algorithm": repr(self.algorithm), "epoch": record})

    def _resume(self) -> tuple[int, Epoch]:
        """Return the epoch to go on from, and what was reached by then."""
        problems: dict[int, str] = {}
        assert self.checkpoints is not None
        try:
            epoch, job = self.checkpoints.latest()
            if job["algorithm"] != repr(self.algorithm):
                raise ValueError(f"the checkpoint is of {job['algorithm']}, the job of {self.algorithm!r}")
        except (OSError, ValueError) as error:
            problems = {self.rank: str(error)}
        everyone = self.comm.allgather(problems)
        self._refuse({rank: text for found in everyone for rank, text in found.items()})
        record = job["epoch"]
        record["delays"] = Counter({int(delay): count for delay, count in record["delays"].items()})
        return epoch, Epoch(**record)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        saved = [epoch for epoch, _ in self.recent if self.rank or epoch in self.records]
        if self.checkpoints is None or not saved:
            raise Interrupted("interrupted")
        for epoch in reversed(saved):  # there may be time for one only
            self._write(epoch, force=True)
        raise Interrupted(f"interrupted; {self.settings.checkpoint} has epoch {saved[-1]}, go on with --resume")

    def _record(self, epoch: Epoch, plan: Plan) -> dict[str, Any]:
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
