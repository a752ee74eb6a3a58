"""A job from its start, when all ranks agree on what it is, to its result."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection, Mapping
from types import FrameType
from typing import Any, NamedTuple, Protocol

from mpi4py import MPI

from hvd_compress.ops.layout import Layout
from hvd_compress.parameter_server.codecs import Vector
from hvd_compress.parameter_server.objectives import Objective
from hvd_compress.parameter_server.protocols import Algorithm, JobPlan, ServerPart, WorkerPart
from hvd_compress.parameter_server.runtime.bounds import Bounds
from hvd_compress.parameter_server.runtime.coordinator import Coordinator, Epoch
from hvd_compress.parameter_server.runtime.messages import Endpoint, Kind, failed_ranks, survives
from hvd_compress.parameter_server.runtime.roles import shards
from hvd_compress.parameter_server.runtime.rounds import TICK
from hvd_compress.parameter_server.runtime.saving import Saving
from hvd_compress.parameter_server.runtime.server import Coordination, RemoteCoordinator, Server
from hvd_compress.parameter_server.runtime.settings import JobSettings
from hvd_compress.parameter_server.runtime.start import agree
from hvd_compress.parameter_server.runtime.watch import JobFailed, Stalled, Told
from hvd_compress.parameter_server.runtime.worker import Dropped, Worker

EXIT_SECONDS = 0.2  # between the ends of two ranks of a job that has failed


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


class Reporter(Protocol):
    """Who shows what happens, on the coordinator's rank."""

    def epoch(self, epoch: Epoch, optimum: float | None) -> None:
        """Show an epoch; it can be resumed by now."""

    def progress(self, done: int, steps: int) -> None:
        """Show the steps done in an epoch."""

    def say(self, text: str) -> None:
        """Show a line."""


class Interrupted(BaseException):
    """Ctrl-C, or SIGTERM."""


def run(
    algorithm: Algorithm,
    load: Callable[[], Objective],
    settings: JobSettings,
    console: Reporter,
    optimum: Callable[[Objective], float | None] = lambda objective: None,
    comm: MPI.Comm = MPI.COMM_WORLD,
) -> Result | None:
    """Run a job on all ranks of a communicator; return its result on rank 0, None on others.

    Bad settings or data end the process with exit status 2 and a message, as argparse does; a server or all workers
    that are lost, silent or send nonsense with 1; Ctrl-C with 130. Where there is a checkpoint folder, the last epoch
    that was shown can be resumed, however the job ends. A rank in which something unexpected is raised shows it and
    kills itself, so that the others go on or end as when any rank dies.

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
        return _Job(algorithm, load, settings, console, optimum, comm).run()
    except (JobFailed, MPI.Exception) as error:
        text = str(error)
        if isinstance(error, MPI.Exception):
            dead = sorted(failed_ranks(comm)) if survives() else []
            text = f"{', '.join(f'rank {rank}' for rank in dead) or 'another rank'} is gone ({error})"
        if comm.Get_rank():  # the coordinator speaks first, if it is there
            time.sleep(1)
        if not isinstance(error, Told):
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
        if status:  # Open MPI's prterun hangs now and then if ranks of a job that has failed end at the same moment
            time.sleep(EXIT_SECONDS * MPI.COMM_WORLD.Get_rank())
        os._exit(status)
    if status:
        MPI.COMM_WORLD.Abort(status)


class _Job:
    """One rank of a job: all ranks make one together, and end it together if they do not agree."""

    def __init__(
        self,
        algorithm: Algorithm,
        load: Callable[[], Objective],
        settings: JobSettings,
        console: Reporter,
        optimum: Callable[[Objective], float | None],
        comm: MPI.Comm,
    ) -> None:
        self.algorithm, self.settings, self.console = algorithm, settings, console
        self.rank = comm.Get_rank()
        self.plan, self.start, self.objective, self.processes = agree(
            algorithm, settings, load, optimum, comm, console.say
        )
        self.roles = self.plan.roles
        self.shards = shards(self.plan.layout, self.roles.servers)
        self.saving = Saving(settings, algorithm, self.roles, comm)
        self.before: Epoch | None = None
        self.server_part: ServerPart | None = None
        self.worker_part: WorkerPart | None = None
        if self.roles.is_server(self.rank):
            shard = self.shards[self.rank]
            start = self.start[shard.slice].copy()
            self.server_part = algorithm.server_part(self.plan, shard, start, self.rank)
        else:
            self.worker_part = algorithm.worker_part(self.plan, self.shards, self.rank)
        if settings.resume:
            self.before = self.saving.resume(self._load, console.say)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._interrupt)
        self.endpoint = Endpoint(comm, settings.timeout)

    def _load(self, state: Mapping[str, Any], new: Collection[int], like: int) -> None:
        """Let this rank's part resume; see `Saving.resume`."""
        if self.server_part is not None:
            self.server_part.load(state)
            for worker in new:
                self.server_part.join(worker, like)
        elif self.worker_part is not None:
            (self.worker_part.join if self.rank in new else self.worker_part.load)(state)

    def run(self) -> Result | None:
        try:
            return self._run()
        except Told:
            raise
        except JobFailed as error:
            self._say_last(str(error))
            if isinstance(error, Stalled):
                self._kill(error.rank)
            raise

    def _say_last(self, text: str) -> None:
        """Let others know that this rank cannot go on: not every MPI tells them of a process that ends by itself."""
        for rank in [0] if self.rank else range(1, self.roles.size):
            self.endpoint.send_text(rank, Kind.FAILED, 0, text)
        self.endpoint.flush(TICK)

    def _run(self) -> Result | None:
        if not self.roles.is_server(self.rank):
            self._work()
            return None
        if self.rank:
            self._serve(RemoteCoordinator())
            return None
        return self._coordinate()

    def _work(self) -> None:
        assert self.objective is not None
        assert self.worker_part is not None
        self.endpoint.most = Bounds(self.roles, self.rank, self.shards, 0)
        worker = Worker(
            self.endpoint,
            self.roles,
            self.shards,
            self.objective,
            self.worker_part,
            batch=self.settings.batch,
            seed=self.settings.seed,
            ahead=self.algorithm.ahead,
            delay=self.settings.slow if self.rank == self.roles.size - 1 else 0.0,
            saved=self.saving.save,
        )
        try:
            worker.run()
        except Dropped as error:
            print(f"rank {self.rank}: {error}", file=sys.stderr, flush=True)
            self._say_last(str(error))

    def _serve(self, coordination: Coordination) -> None:
        plan, part = self.plan, self.server_part
        assert part is not None
        new_schedule = self.algorithm.schedule(plan)
        steps = new_schedule().steps
        self.endpoint.most = Bounds(self.roles, self.rank, self.shards, steps, part.answer_bytes)
        server = Server(
            self.endpoint,
            self.roles,
            part,
            plan.regularizer,
            new_schedule,
            plan.rows,
            self.saving.save,
            coordination,
        )
        server.run()

    def _coordinate(self) -> Result:
        """Serve beside the coordinator; return what came of the job."""
        coordinator = Coordinator(
            self.roles,
            self.plan.rows,
            epochs=self.settings.epochs,
            finished=self._finished,
            log=self.console.say,
            kill=self._kill,
            progress=self.console.progress,
            before=self.before,
        )
        self._serve(coordinator)
        assert coordinator.model is not None
        assert coordinator.last is not None
        record = _record(coordinator.last, self.plan, self.algorithm.name, self.settings.seed)
        return Result(record, self.plan.layout, coordinator.model)

    def _finished(self, epoch: Epoch, workers: Collection[int]) -> bool:
        """Complete an epoch's checkpoint, show it, and tell whether the target is reached."""
        target, optimum = self.settings.target, self.plan.optimum
        self.saving.complete(epoch, workers)
        self.console.epoch(epoch, optimum)
        return target is not None and epoch.objective - (optimum or 0.0) <= target

    def _kill(self, rank: int) -> None:
        """End a silent rank's process if it is on this machine: the launcher would wait for it at the job's end."""
        node, process = self.processes[rank]
        if node == MPI.Get_processor_name():
            with contextlib.suppress(ProcessLookupError):  # another rank was faster
                os.kill(process, signal.SIGKILL)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """End this rank at once: the launcher may leave no time, and nothing is left to be saved."""
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        if self.saving.saved < 0:
            raise Interrupted("interrupted")
        raise Interrupted(f"interrupted; {self.settings.checkpoint} has epoch {self.saving.saved}, go on with --resume")


def _record(epoch: Epoch, plan: JobPlan, name: str, seed: int) -> dict[str, Any]:
    """Return a job's result for JSON."""
    return {
        "algorithm": name,
        "objective": epoch.objective,
        "suboptimality": None if plan.optimum is None else epoch.objective - plan.optimum,
        "accuracy": epoch.right / epoch.tested if epoch.tested else None,
        "bits_up": epoch.bits_up,
        "bits_down": epoch.bits_down,
        "seconds": epoch.seconds,
        "epochs": epoch.epoch,
        "steps": epoch.steps,
        "workers": len(plan.roles.worker_ranks),
        "workers_left": epoch.workers,
        "servers": plan.roles.servers,
        "max_delay": max(epoch.delays, default=0),
        "delays": {str(delay): count for delay, count in sorted(epoch.delays.items())},
        "seed": seed,
    }
