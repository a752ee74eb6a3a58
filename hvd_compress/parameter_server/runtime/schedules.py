"""The two schedules of steps: asynchronous with a bound on the delay, and synchronous."""

from __future__ import annotations

from collections.abc import Mapping

from hvd_compress.parameter_server.protocols import StepSchedule, Ticket
from hvd_compress.parameter_server.runtime.roles import Roles


class BoundedDelay(StepSchedule):
    """Every answer is a step, applied as it comes, at most `most` steps after its model was given out.

    An answer waits if, were it applied, an older model that is still out could not keep the bound. An epoch has as many
    answers as steps. With a bound of 0 one worker computes at a time.
    """

    def __init__(self, steps: int, most: int) -> None:
        super().__init__(steps)
        self.most = most

    @staticmethod
    def check(most: int, roles: Roles) -> None:
        """Raise ValueError if servers could deadlock, each waiting for the answer of another worker."""
        workers = len(roles.worker_ranks)
        if roles.servers > 1 and most < 2 * workers - 1:
            raise ValueError(
                f"max_delay must be at least {2 * workers - 1} with several servers and {workers} workers, for each "
                f"may have two models out; got {most}"
            )

    @property
    def exhausted(self) -> bool:
        return self.version + len(self.given) >= self.steps

    def may_give(self, worker: int) -> bool:
        """Tell whether the model could keep the bound if all that are out are answered before it."""
        return len(self.given) <= self.most

    def next_step(self, answered: Mapping[int, object], workers: set[int]) -> list[Ticket]:
        """Return the first answered ticket after whose step all others can still keep the bound, in their order."""
        out = sorted(self.given.values(), key=lambda ticket: (ticket.version, ticket.number))
        for number in answered:
            others = (ticket for ticket in out if ticket.number != number)
            if all(self.version + 1 + i <= ticket.version + self.most for i, ticket in enumerate(others)):
                return [self.given[number]]
        return []


class Synchronous(StepSchedule):
    """A step takes one answer of every worker, in the order of ranks."""

    @property
    def exhausted(self) -> bool:
        return self.version >= self.steps

    def may_give(self, worker: int) -> bool:
        """Tell whether the worker has not had this step's model."""
        return all(ticket.worker != worker for ticket in self.given.values())

    def next_step(self, answered: Mapping[int, object], workers: set[int]) -> list[Ticket]:
        tickets = sorted((self.given[number] for number in answered), key=lambda ticket: ticket.worker)
        return tickets if {ticket.worker for ticket in tickets} >= workers else []
