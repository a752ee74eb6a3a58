"""How a job starts: all ranks load, compare what they mean to do, and go on together or not at all."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from mpi4py import MPI

from hvd_compress.parameter_server.codecs import Vector
from hvd_compress.parameter_server.objectives import Objective
from hvd_compress.parameter_server.protocols import Algorithm, JobPlan
from hvd_compress.parameter_server.runtime.roles import Roles, shards
from hvd_compress.parameter_server.runtime.settings import JobSettings
from hvd_compress.reduction.agreement import WorkersDisagree, check_agreement
from hvd_compress.version import __version__

Found = TypeVar("Found")

HERE = 1  # the tag by which ranks say that they have come
PAUSE = 0.01  # seconds between looks


class Start(NamedTuple):
    """What a rank begins with.

    Attributes:
        plan: of the job.
        model: to begin with, float32 of shape (plan.layout.size,).
        objective: of all rows; None on servers.
        processes: the node and the process of each rank.
    """

    plan: JobPlan
    model: Vector
    objective: Objective | None
    processes: list[tuple[str, int]]


def agree(
    algorithm: Algorithm,
    settings: JobSettings,
    load: Callable[[], Objective],
    optimum: Callable[[Objective], float | None],
    comm: MPI.Comm,
    say: Callable[[str], None],
) -> Start:
    """Let the workers load their data, and all ranks compare what they mean; refuse the job if they do not agree.

    Args:
        algorithm: of the job.
        settings: of the job.
        load: gives a worker the objective with all its data.
        optimum: gives P*; the first worker calls it.
        comm: the ranks.
        say: shows a line, on rank 0.
    """
    rank = comm.Get_rank()
    objective: Objective | None = None
    error: str | None = None
    mine: dict[str, Any] = {}
    roles: Roles | None = None
    try:
        roles = Roles(settings.servers, comm.Get_size())
        if not roles.is_server(rank):
            objective = load()
            mine = {
                "version": __version__,
                "algorithm": repr(algorithm),
                "settings": repr(dataclasses.replace(settings, slow=0.0)),
                "parameters": [f"{p.name} {p.shape}" for p in objective.layout.parameters],
                **objective.description(),
            }
    except (ArithmeticError, ImportError, MemoryError, OSError, TypeError, ValueError) as problem:
        error = str(problem) or type(problem).__name__
    wait_for_all(comm, settings.timeout, say)
    everyone = comm.allgather((mine, error, (MPI.Get_processor_name(), os.getpid())))
    problems = {rank: text for rank, (_, text, _) in enumerate(everyone) if text is not None}
    if not problems and roles is not None:
        try:
            check_agreement([everyone[rank][0] for rank in roles.worker_ranks], list(roles.worker_ranks))
        except WorkersDisagree as problem:
            problems[0] = str(problem)
    refuse(comm, problems)
    assert roles is not None

    def make_plan() -> JobPlan:
        assert objective is not None
        smoothness = objective.smoothness(settings.batch)
        known = (objective.layout, objective.rows, objective.regularizer, smoothness)
        plan = JobPlan(*known, optimum(objective), roles)
        shards(plan.layout, roles.servers)
        algorithm.check(plan)
        return plan

    plan = on_one_rank(comm, roles.servers, make_plan)
    model = np.empty(plan.layout.size, np.float32)
    if objective is not None and rank == roles.servers:
        model[:] = objective.initial(settings.seed)
    comm.Bcast(model, root=roles.servers)
    return Start(plan, model, objective, [place for _, _, place in everyone])


def wait_for_all(comm: MPI.Comm, seconds: float, say: Callable[[str], None]) -> None:
    """Let rank 0 wait until all ranks call this, and name those who have not, time and again."""
    nothing = [bytearray(), MPI.BYTE]
    if comm.Get_rank():
        comm.Send(nothing, 0, HERE)
        return
    coming = {rank: comm.Irecv(nothing, rank, HERE) for rank in range(1, comm.Get_size())}
    began, said = time.monotonic(), 0
    while missing := [rank for rank, request in coming.items() if not request.Test()]:
        waited = time.monotonic() - began
        if waited >= (said + 1) * seconds:
            said = int(waited / seconds)
            who = f"rank{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}"
            say(f"waiting for {who} for {waited:.0f} s: the data are still loaded there, or the process is stopped")
        time.sleep(PAUSE)


def on_one_rank(comm: MPI.Comm, root: int, work: Callable[[], Found]) -> Found:
    """Return on all ranks what `work` returns on one; refuse the job if it raises OSError or ValueError there."""
    found: Found | None = None
    error: str | None = None
    if comm.Get_rank() == root:
        try:
            found = work()
        except (OSError, ValueError) as problem:
            error = str(problem)
    found, error = comm.bcast((found, error), root=root)
    refuse(comm, {} if error is None else {0: error})
    return found


def refuse(comm: MPI.Comm, problems: Mapping[int, str]) -> None:
    """End the job with exit status 2 if there is a problem; all ranks call this with the same ones, by rank.

    Each is told by the rank that has it, by the first of them if several have the same.
    """
    if not problems:
        return
    rank = comm.Get_rank()
    ranks = [other for other, text in problems.items() if text == problems.get(rank)]
    if rank == min(ranks, default=None):
        where = ""
        if len(ranks) < comm.Get_size() and ranks != [0]:
            where = f" (rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))})"
        print(f"{Path(sys.argv[0]).name}: error: {problems[rank]}{where}", file=sys.stderr, flush=True)
    sys.stderr.flush()
    comm.Barrier()  # nobody ends the job before the message is out
    os._exit(2)
