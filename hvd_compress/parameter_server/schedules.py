"""When a server gives out its model, and when it applies what comes back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from hvd_compress.parameter_server.roles import Roles


class Ticket(NamedTuple):
    """A model that a worker was given: its number, the worker, and the steps that had been done by then."""

    number: int
    worker: int
    version: int


class Schedule:
    """The steps of one epoch on one server.

    Attributes:
        steps: of the epoch.
        version: steps that are done.
        given: models that were given out, by number, and neither answered nor withdrawn.
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

    def give(self, worker: int) -> Ticket:
        """Give out the model."""
        ticket = Ticket(self._tickets, worker, self.version)
        self._tickets += 1
        self.given[ticket.number] = ticket
        return ticket

    def next_step(self, answered: Mapping[int, object], workers: set[int]) -> list[Ticket]:
        """Return the tickets, of those that are answered, that make up the next step: none if it must wait."""
        raise NotImplementedError

    def step(self, tickets: list[Ticket]) -> None:
        """Do a step with the answers to these tickets."""
        for ticket in tickets:
            del self.given[ticket.number]
            self.delays[self.version - ticket.version] += 1
        self.version += 1

    def withdraw(self, ticket: Ticket) -> None:
        """Take a ticket back that will not be answered."""
        del self.given[ticket.number]


class BoundedDelay(Schedule):
    """Every answer is a step, done as it comes, at most `most` steps after its model was given out.

    An answer that came early waits if, were it applied, one that is still out could not keep the bound. An epoch has
    as many answers as steps. With a bound of 0 there is one worker at a time.
    """

    def __init__(self, steps: int, most: int) -> None:
        super().__init__(steps)
        self.most = most

    @staticmethod
    def check(most: int, roles: Roles) -> None:
        """Raise ValueError if servers could wait for each other: each for the answer of another worker."""
        workers = len(roles.worker_ranks)
        if roles.servers > 1 and most < 2 * workers - 1:
            raise ValueError(
                f"max_delay must be at least {2 * workers - 1} with several servers and {workers} workers, for each "
                f"may have two models out; got {most}"
            )

    @property
    def exhausted(self) -> bool:
        """Whether as many models were given out as there are steps."""
        return self.version + len(self.given) >= self.steps

    def may_give(self, worker: int) -> bool:
        """Tell whether the model could keep the bound behind all that are out, should they come in their order."""
        return len(self.given) <= self.most

    def next_step(self, answered: Mapping[int, object], workers: set[int]) -> list[Ticket]:
        """Return the first ticket that may come before the others."""
        out = sorted(self.given.values(), key=lambda ticket: (ticket.version, ticket.number))
        for number in answered:
            others = (ticket for ticket in out if ticket.number != number)
            if all(self.version + 1 + i <= ticket.version + self.most for i, ticket in enumerate(others)):
                return [self.given[number]]
        return []


class Synchronous(Schedule):
    """A step takes one answer of every worker, in the order of ranks."""

    @property
    def exhausted(self) -> bool:
        """Whether all steps are done."""
        return self.version >= self.steps

    def may_give(self, worker: int) -> bool:
        """Tell whether the worker has not had this step's model."""
        return all(ticket.worker != worker for ticket in self.given.values())

    def next_step(self, answered: Mapping[int, object], workers: set[int]) -> list[Ticket]:
        """Return all tickets once every worker has answered."""
        tickets = sorted((self.given[number] for number in answered), key=lambda ticket: ticket.worker)
        return tickets if {ticket.worker for ticket in tickets} >= workers else []
