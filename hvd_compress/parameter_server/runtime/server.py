"""A server's loop: rounds of a snapshot, the workers' parts of the gradient, and steps on the server's shard."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hvd_compress.parameter_server.codecs import Malformed, affine
from hvd_compress.parameter_server.objectives import Regularizer
from hvd_compress.parameter_server.protocols import ServerPart, StepSchedule, Ticket
from hvd_compress.parameter_server.runtime.messages import Endpoint, Kind, Message
from hvd_compress.parameter_server.runtime.roles import Roles
from hvd_compress.parameter_server.runtime.rounds import TICK, GradientPart, JobFailed, Report, Round


class Coordination:
    """What a server tells the coordinator, and hears from other servers.

    Beside the first server that is the coordinator itself (`coordinator.Coordinator`), beside the others it is
    `RemoteCoordinator`. Each is handed the server, to call `begin`, `announce`, `begin_steps` and `drop`.
    """

    def begin(self, server: Server) -> None:
        """The server's loop begins."""

    def hear(self, server: Server, message: Message) -> None:
        """Take a message of another server."""

    def gradient_complete(self, server: Server) -> None:
        """The parts of all workers are there: the steps may begin."""

    def stepped(self, server: Server, steps: int) -> None:
        """Some steps were done."""

    def exhausted(self, server: Server, worker: int) -> bool:
        """A worker asks for a model, and the epoch has no more; return whether the worker was told so."""
        return False

    def served(self, server: Server) -> None:
        """Every worker that may have a model has one."""

    def dropped(self, server: Server, worker: int, reason: str) -> None:
        """A worker was dropped."""

    def tick(self, server: Server) -> None:
        """Called between messages, at least every TICK seconds."""

    def leave(self, server: Server) -> None:
        """The server has stopped; return when its rank may end."""

    def say(self, text: str) -> None:
        """Show the user a line."""


class RemoteCoordinator(Coordination):
    """The coordinator, which is on another rank: the server does as it says, and reports to it."""

    def hear(self, server: Server, message: Message) -> None:
        if message.kind == Kind.START:
            server.announce(Round(**message.json()))
        elif message.kind == Kind.DROP:
            server.drop(message.number, "was dropped by the coordinator")
        elif message.kind == Kind.STOP:
            server.stopped = True

    def gradient_complete(self, server: Server) -> None:
        """Report, and begin the steps: the coordinator gives no model before all servers have reported."""
        server.endpoint.send_json(0, Kind.REPORT, server.round, server.report)
        server.begin_steps()

    def leave(self, server: Server) -> None:
        """Hand in the shard, and wait until the coordinator has it."""
        server.endpoint.send(0, Kind.SNAPSHOT, 0, 0, server.part.snapshot.view(np.uint8))
        server.listen_until(lambda message: message.kind == Kind.BYE)


class Server:
    """One server's loop.

    Attributes:
        endpoint: of this rank.
        part: the server's part of the algorithm.
        timeout: seconds of silence after which a worker is dropped from which something is due.
        workers: who is there.
        round, epoch: that have begun; messages of other rounds are dropped, or wait for theirs.
        stepping: whether the gradient is complete and steps are being done.
        stopped: whether the job is done.
        schedule: of the epoch.
        parts: of the gradient that have come, by worker.
        report: what all epochs up to this one's beginning have cost.
        heard: when each worker was heard, or given something to do, for the last time.

    Args:
        endpoint: see above.
        roles: of all ranks.
        part: see above.
        regularizer: h, for its value.
        new_schedule: makes the schedule of an epoch.
        rows: of all workers together.
        timeout: see above.
        saved: told of each epoch's number and the state of the part at its beginning.
        coordination: the coordinator, beside this server or on another rank.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        roles: Roles,
        part: ServerPart,
        regularizer: Regularizer,
        new_schedule: Callable[[], StepSchedule],
        rows: int,
        timeout: float,
        saved: Callable[[int, Mapping[str, Any]], None],
        coordination: Coordination,
    ) -> None:
        self.endpoint, self.part, self.timeout = endpoint, part, timeout
        self._roles, self._regularizer, self._rows = roles, regularizer, rows
        self._new_schedule, self._saved, self._coordination = new_schedule, saved, coordination
        self.schedule = new_schedule()
        self.workers = set(roles.worker_ranks)
        self.round = self.epoch = 0
        self.stepping = self.stopped = False
        self.parts: dict[int, GradientPart] = {}
        self.report = Report(0, 0, 0.0, {})
        self.heard = dict.fromkeys(self.workers, time.monotonic())
        self._delays: Counter[int] = Counter()
        self._waiting: list[int] = []  # workers that have asked for a model, which they may not have yet
        self._answers: dict[int, Any] = {}  # that are not applied, by the number of their ticket
        self._early: list[Message] = []  # of a round that has not begun
        self._next: Round | None = None
        self._incomplete = False  # whether a worker was dropped before the gradient was complete: the round is void

    def run(self) -> None:
        """Serve until the job is done.

        Raises:
            JobFailed: if another server is dead, or no worker is left.
        """
        self._coordination.begin(self)
        while not self.stopped:
            message = self._receive()
            for rank in self.endpoint.dead & (self.workers | set(self._roles.server_ranks)):
                if self._roles.is_server(rank):
                    raise JobFailed(f"server {rank} is gone; start again with --resume to go on from the checkpoint")
                self.drop(rank, "is gone")
            if message is not None:
                self._take(message)
            self._coordination.tick(self)
        self._coordination.leave(self)

    def listen_until(self, done: Callable[[Message], bool]) -> None:
        """Take messages until `done` says that one is the last, or until the timeout.

        A rank that left earlier could be taken for dead.
        """
        until = time.monotonic() + self.timeout
        while time.monotonic() < until and 0 not in self.endpoint.dead:
            message = self._receive()
            if message is not None and done(message):
                return

    def _receive(self) -> Message | None:
        try:
            return self.endpoint.wait(TICK)
        except Malformed as error:
            self._coordination.say(str(error))
            return None

    def _take(self, message: Message) -> None:
        worker = message.source
        if self._roles.is_server(worker):
            self._coordination.hear(self, message)
        elif worker in self.workers:
            self.heard[worker] = time.monotonic()
            if message.round > self.round:
                self._early.append(message)
            elif message.round == self.round:
                try:
                    self._from_worker(message)
                except Malformed as error:
                    text = np.frombuffer(str(error).encode(), np.uint8)
                    self.endpoint.send(worker, Kind.REFUSED, self.round, 0, text)
                    self.drop(worker, f"sent a message that was refused: {error}")
            self._begin_next()

    def _from_worker(self, message: Message) -> None:
        worker = message.source
        if message.kind == Kind.SNAPSHOT:
            self.endpoint.send(worker, Kind.SNAPSHOT, self.round, 0, self.part.start(worker))
        elif message.kind == Kind.PART:
            if self.stepping:
                raise Malformed("a part of the gradient came in, which is complete")
            size = self.part.snapshot.size if self.part.wants_gradient else 0
            self.parts[worker] = GradientPart.decode(message.payload, size)
            if self.gradient_complete:
                self._coordination.gradient_complete(self)
        elif message.kind == Kind.MODEL:
            self._waiting.append(worker)
            self._serve()
        elif message.kind == Kind.PUSH:
            ticket = self.schedule.given.get(message.number)
            if not self.stepping or ticket is None or ticket.worker != worker or message.number in self._answers:
                raise Malformed(f"an answer to the model of number {message.number}, which is not awaited, came in")
            self._answers[message.number] = self.part.decode(worker, message.payload)
            self._serve()
        elif message.kind == Kind.WITHDRAW:
            self._withdraw(worker)
            self._serve()
        else:
            raise Malformed(f"a message of kind {message.kind.name} came in, which no worker sends a server")

    # --- rounds

    def announce(self, announced: Round) -> None:
        """Begin a round as soon as all its workers are done with the one before."""
        self._next = announced
        self._begin_next()

    def _begin_next(self) -> None:
        """Begin the round that was announced if a message of it has come from every worker.

        Messages keep their order: nothing of the round before can come then.
        """
        announced = self._next
        if announced is None:
            return
        there = {message.source for message in self._early if message.round == announced.round}
        if announced.epoch > self.epoch and self.round and not set(announced.workers) & self.workers <= there:
            return
        self._next = None
        self.begin(announced)

    def begin(self, announced: Round) -> None:
        """Begin a round; if it is one of a new epoch, end the epoch before."""
        if self.stepping and announced.epoch > self.epoch:
            for ticket in self._unanswered():
                self.schedule.withdraw(ticket)
            self._do_steps()
            self._delays += self.schedule.delays
            self.part.end()
        self.round, self.epoch, self.stepping = announced.round, announced.epoch, False
        self.schedule = self._new_schedule()
        self.parts.clear()
        self._waiting.clear()
        self._answers.clear()
        self._incomplete = False
        self._saved(self.epoch, self.part.state())
        self.report = self._cost()
        early, self._early = self._early, []
        for message in early:
            if message.source in self.workers:
                self._take(message)

    def _cost(self) -> Report:
        ranks = self._roles.worker_ranks
        return Report(
            8 * sum(self.endpoint.received[rank] for rank in ranks),
            8 * sum(self.endpoint.sent[rank] for rank in ranks),
            self._regularizer.value(self.part.snapshot),
            {str(delay): count for delay, count in self._delays.items()},
        )

    @property
    def gradient_complete(self) -> bool:
        """Whether the parts of all workers are there, with all rows, and the steps have not begun."""
        return not self.stepping and not self._incomplete and self.parts.keys() >= self.workers

    # --- steps

    def begin_steps(self) -> None:
        """Begin the steps of the epoch, with the mean of all rows' gradients."""
        gradient = None
        if self.part.wants_gradient:
            total = np.zeros_like(self.part.snapshot)
            for worker in sorted(self.parts):
                part = self.parts[worker].gradient
                assert part is not None
                affine(total, 1.0, part, 1.0, total)
            gradient = total / np.float32(self._rows)
        self.parts.clear()
        self.part.begin(self.epoch, gradient)
        self.stepping = True
        self._serve()

    def _serve(self) -> None:
        """Do the steps that can be done, and give the model to the workers that wait for it and may have it."""
        if not self.stepping:
            return
        self._do_steps()
        waiting, self._waiting = self._waiting, []
        for worker in waiting:
            if self.schedule.exhausted:
                if not self._coordination.exhausted(self, worker):
                    self._waiting.append(worker)
            elif self.schedule.may_give(worker):
                ticket = self.schedule.give(worker)
                self.heard[worker] = time.monotonic()
                self.endpoint.send(worker, Kind.MODEL, self.round, ticket.number, self.part.model(worker))
            else:
                self._waiting.append(worker)
        self._coordination.served(self)

    def _do_steps(self) -> None:
        before = self.schedule.version
        while tickets := self.schedule.next_step(self._answers, self.workers):
            answers = [self._answers.pop(ticket.number) for ticket in tickets]
            asked = self.part.ask(answers)
            if asked is None:
                self.part.step(answers)
                self.schedule.step(tickets)
            else:
                for ticket in tickets:
                    if ticket.worker in self.workers:
                        self.heard[ticket.worker] = time.monotonic()
                        self.endpoint.send(ticket.worker, Kind.ASK, self.round, ticket.number, asked)
                    else:  # it died after its answer
                        self.schedule.withdraw(ticket)
        if self.schedule.version > before:
            self._coordination.stepped(self, self.schedule.version - before)

    # --- who is there

    def owing(self) -> set[int]:
        """Return the workers from which something is due: an answer, or a part of the gradient."""
        if self.stepping:
            return {ticket.worker for ticket in self._unanswered()}
        return self.workers - self.parts.keys()

    def drop(self, worker: int, reason: str) -> None:
        """Go on without a worker."""
        if worker not in self.workers:
            return
        self.workers.discard(worker)
        self._withdraw(worker)
        self.parts.pop(worker, None)
        self._incomplete = self._incomplete or not self.stepping
        self._coordination.dropped(self, worker, reason)
        if self.workers:
            self._serve()
            self._begin_next()

    def _unanswered(self) -> list[Ticket]:
        return [ticket for number, ticket in self.schedule.given.items() if number not in self._answers]

    def _withdraw(self, worker: int) -> None:
        """Take back the models that a worker has not answered, and its request for another."""
        for ticket in self._unanswered():
            if ticket.worker == worker:
                self.schedule.withdraw(ticket)
        self._waiting = [other for other in self._waiting if other != worker]
