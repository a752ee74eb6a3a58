"""What an algorithm is to the runtime: a server's part, a worker's part, and a schedule of an epoch's steps.

An epoch begins with a snapshot of the model, which every worker gets exactly. If either part wants it, the workers
compute the full gradient there. Then come the steps: a server gives a worker its model (`ServerPart.model`), the worker
answers it (`WorkerPart.answer`), and the server applies answers (`ServerPart.step`), when the schedule says so. Every
server does that with the shard of the model that it owns. Payloads are one-dimensional uint8 arrays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hvd_compress.ops.layout import Layout
from hvd_compress.parameter_server.codecs import Bytes, Malformed, Vector
from hvd_compress.parameter_server.objectives import Objective, Regularizer
from hvd_compress.parameter_server.runtime.roles import Roles, Shard


class JobPlan(NamedTuple):
    """What all ranks know once the workers have agreed.

    Attributes:
        layout: of the model.
        rows: of all workers together.
        regularizer: h.
        smoothness: of f on a mean of `batch` rows, or None if there is no bound on it.
        optimum: P*, or None if it is not known.
        roles: of the ranks.
    """

    layout: Layout
    rows: int
    regularizer: Regularizer
    smoothness: float | None
    optimum: float | None
    roles: Roles


class Algorithm(Protocol):
    """The settings of an algorithm; checkpoints and workers are compared by its `repr`."""

    @property
    def name(self) -> str:
        """What results call it."""

    @property
    def ahead(self) -> bool:
        """Whether a worker asks for its next model before it has answered the last one."""

    @property
    def workers_keep(self) -> bool:
        """Whether workers have state that lasts from epoch to epoch: a checkpoint is then complete only with theirs."""

    def check(self, plan: JobPlan) -> None:
        """Raise ValueError if the settings do not go with the plan."""

    def server_part(self, plan: JobPlan, shard: Shard, start: Vector, rank: int) -> ServerPart:
        """Return a server's part, for the shard that it owns; `start` is the shard of the initial model."""
        ...

    def worker_part(self, plan: JobPlan, shards: list[Shard], rank: int) -> WorkerPart:
        """Return a worker's part; there is a shard for each server."""
        ...

    def schedule(self, plan: JobPlan) -> Callable[[], StepSchedule]:
        """Return what makes the schedule of an epoch on one server."""
        ...


class ServerPart(Protocol):
    """A server's part of an algorithm, for the coordinates that it owns.

    Attributes:
        snapshot: what the workers hold exactly since the epoch's beginning, float32 of shape (shard's size,).
        wants_gradient: whether it needs the gradient of f at the snapshot.
    """

    snapshot: Vector
    wants_gradient: bool

    def begin(self, epoch: int, gradient: Vector | None) -> None:
        """Begin an epoch; `gradient` is that of f at the snapshot, if it is wanted."""
        return None

    def start(self, worker: int) -> Bytes:
        """Return what gives a worker the snapshot."""
        ...

    def model(self, worker: int) -> Bytes:
        """Return what a worker is sent for it to compute at."""
        ...

    def decode(self, worker: int, payload: Bytes) -> Any:
        """Return what a worker has sent.

        Raises:
            Malformed: if it is nothing that a worker can have meant; nothing was changed by it.
        """
        ...

    def answer_bytes(self) -> int:
        """Return the most bytes of an answer now, if they can be more than `codecs.vector_bytes` of the shard."""
        return 0

    def ask(self, answers: Sequence[Any]) -> Bytes | None:
        """Return what else those who answered are asked for before there is a step; None for nothing."""
        return None

    def step(self, answers: Sequence[Any]) -> None:
        """Do a step with the mean of some answers."""

    def end(self) -> None:
        """End the epoch: take the next snapshot."""

    def state(self) -> dict[str, Any]:
        """Return what `load` needs to resume from the last `end`: arrays that will not change, and numbers."""
        ...

    def load(self, state: Mapping[str, Any]) -> None:
        """Resume from a state.

        Raises:
            LookupError, TypeError, ValueError: if it is not one of this shard.
        """

    def join(self, worker: int, like: int) -> None:
        """After `load`: take in a worker that has no state and begins where another worker is."""
        return None


class WorkerPart(Protocol):
    """A worker's part of an algorithm.

    Attributes:
        wants_gradient: whether the full gradient at the snapshot is computed.
        rounds: answers to each server in a step: the first, and replies to what it asks for then.
    """

    wants_gradient: bool
    rounds: int = 1

    def begin(self, epoch: int, snapshot: Vector) -> None:
        """Begin an epoch."""
        return None

    def state(self) -> dict[str, Any] | None:
        """Return what `load` needs to resume from the last `begin`; None if nothing is kept from epoch to epoch."""
        return None

    def load(self, state: Mapping[str, Any]) -> None:
        """Resume from a state.

        Raises:
            LookupError, TypeError, ValueError: if it is not one of these shards.
        """
        return None

    def join(self, state: Mapping[str, Any]) -> None:
        """Begin where another worker is that saved this state, with what all workers have in common.

        Raises:
            LookupError, TypeError, ValueError: as `load` does.
        """
        return None

    def start(self, shard: int, payload: Bytes) -> Vector:
        """Return a shard of the snapshot that came in; Malformed if it is none."""
        ...

    def model(self, shard: int, payload: Bytes) -> Vector:
        """Return a shard of the model that came in; Malformed if it is none."""
        ...

    def answer(self, x: Vector, part: Objective, rows: NDArray[np.int64]) -> list[Bytes]:
        """Return what goes to each server for a batch: `rows` of a part of the objective, at x."""
        ...

    def reply(self, shard: int, payload: Bytes) -> Bytes:
        """Return what a server has asked for."""
        raise Malformed("a server asks for more, and there is nothing more")


class Ticket(NamedTuple):
    """A model that a worker was given: its number, the worker, and the steps that had been done by then."""

    number: int
    worker: int
    version: int


class StepSchedule:
    """When a server gives out its model, and which answers make up a step, in one epoch.

    Attributes:
        steps: of the epoch.
        version: steps that are done.
        given: models that were given out, by number, and neither applied nor withdrawn.
        delays: how often a step was done so many steps after its model was given out.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.version = 0
        self.given: dict[int, Ticket] = {}
        self.delays: Counter[int] = Counter()
        self._tickets = 0

    @property
    def exhausted(self) -> bool:
        """Whether enough models were given out for all steps."""
        raise NotImplementedError

    def may_give(self, worker: int) -> bool:
        """Tell whether a worker may be given the model now; if not, it waits."""
        raise NotImplementedError

    def next_step(self, answered: Mapping[int, object], workers: set[int]) -> list[Ticket]:
        """Return the tickets, of those that are answered, that make up the next step: none if it must wait.

        Args:
            answered: answers that have come and are not applied, by the number of their ticket, as they came.
            workers: who is there.
        """
        raise NotImplementedError

    def give(self, worker: int) -> Ticket:
        """Give out the model."""
        ticket = Ticket(self._tickets, worker, self.version)
        self._tickets += 1
        self.given[ticket.number] = ticket
        return ticket

    def step(self, tickets: list[Ticket]) -> None:
        """Count a step with the answers to these tickets."""
        for ticket in tickets:
            del self.given[ticket.number]
            self.delays[self.version - ticket.version] += 1
        self.version += 1

    def withdraw(self, ticket: Ticket) -> None:
        """Take a ticket back that will not be answered."""
        del self.given[ticket.number]
