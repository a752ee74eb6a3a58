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
from hvd_compress.parameter_server.runtime.messages import Endpoint, Kind, Message, Refused
from hvd_compress.parameter_server.runtime.roles import Roles
from hvd_compress.parameter_server.runtime.rounds import TICK, GradientPart, Report, Round
from hvd_compress.parameter_server.runtime.watch import JobFailed, Stalled, Told, Watch


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
            server.announce(Round.decode(message.json(), server.roles))
        elif message.kind == Kind.DROP:
            server.drop(message.number, "was dropped by the coordinator")
        elif message.kind == Kind.STOP:
            server.stopped = True
        elif message.kind == Kind.FAILED:
            raise Told(message.text())

    def gradient_complete(self, server: Server) -> None:
        """Report, and begin the steps: the coordinator gives no model before all servers have reported."""
        server.endpoint.send_json(0, Kind.REPORT, server.round, server.report)
        server.begin_steps()

    def leave(self, server: Server) -> None:
        """Hand in the shard, and wait until the coordinator has it.

        Raises:
            JobFailed: if the coordinator is gone or silent.
        """
        server.endpoint.send(0, Kind.SNAPSHOT, 0, 0, server.part.snapshot.view(np.uint8))
        if not server.listen_until(lambda message: message is not None and message.kind == Kind.BYE):
            server.watch.look()
            raise Stalled(0, server.endpoint.timeout)


class Server:
    """One server's loop.

    Attributes:
        endpoint: of this rank.
        roles: of all ranks.
        watch: looks after the other servers.
        part: the server's part of the algorithm.
        workers: who is there.
        round, epoch: that have begun; messages of other rounds are dropped, or wait for theirs.
        stepping: whether the gradient is complete and steps are being done.
        stopped: whether the job is done.
        schedule: of the epoch.
        parts: of the gradient that have come, by worker.
        report: what all epochs up to this one's beginning have cost.

    Args:
        endpoint: see above.
        roles: see above.
        part: see above.
        regularizer: h, for its value.
        new_schedule: makes the schedule of an epoch.
        rows: of all workers together.
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
        saved: Callable[[int, Mapping[str, Any]], None],
        coordination: Coordination,
    ) -> None:
        self.endpoint, self.roles, self.part = endpoint, roles, part
        self.watch = Watch(endpoint, roles)
        self._regularizer, self._rows = regularizer, rows
        self._new_schedule, self._saved, self._coordination = new_schedule, saved, coordination
        self.schedule = new_schedule()
        self.workers = set(roles.worker_ranks)
        self.round = self.epoch = 0
        self.stepping = self.stopped = False
        self.parts: dict[int, GradientPart] = {}
        self.report = Report(0, 0, 0.0, {})
        self._delays: Counter[int] = Counter()
        self._waiting: list[int] = []  # workers that have asked for a model, which they may not have yet
        self._answers: dict[int, Any] = {}  # that are not applied, by the number of their ticket
        self._early: list[Message] = []  # of a round that has not begun
        self._next: Round | None = None
        self._incomplete = False  # whether a worker was dropped before the gradient was complete: the round is void

    def run(self) -> None:
        """Serve until the job is done.

        Raises:
            JobFailed: if another server is gone, silent or sends nonsense, or no worker is left.
        """
        self._coordination.begin(self)
        while not self.stopped:
            message = self._receive()
            self.watch.look()
            for worker in self.endpoint.dead & self.workers:
                self.drop(worker, "is gone")
            if message is not None:
                self._take(message)
            self._coordination.tick(self)
        self._coordination.leave(self)

    def listen_until(self, done: Callable[[Message | None], bool]) -> bool:
        """Take messages until `done` returns True, and return whether it did: not after the timeout.

        `done` is told None when a rank is found dead; a rank that left earlier could be taken for that.
        """
        until = time.monotonic() + self.endpoint.timeout
        while time.monotonic() < until and 0 not in self.endpoint.dead:
            if done(self._receive()):
                return True
        return False

    def _receive(self) -> Message | None:
        try:
            return self.endpoint.wait(TICK)
        except Refused as error:
            self._refuse(error.source, error)
            return None

    def _take(self, message: Message) -> None:
        sender = message.source
        try:
            if self.roles.is_server(sender):
                self._coordination.hear(self, message)
            elif sender in self.workers:
                if message.kind == Kind.FAILED:
                    self.drop(sender, "has ended")
                elif message.round > self.round:
                    self._keep(message)
                elif message.round == self.round:
                    self._from_worker(message)
        except Malformed as error:
            self._refuse(sender, error)
        self._begin_next()

    def _refuse(self, sender: int, error: Malformed) -> None:
        """Go on without a worker that sent nonsense.

        Raises:
            JobFailed: if it was a server.
        """
        if self.roles.is_server(sender):
            raise JobFailed(f"server {sender} sent a message that was refused: {error}")
        if sender in self.workers:
            self.endpoint.send_text(sender, Kind.REFUSED, self.round, str(error))
            self.drop(sender, f"sent a message that was refused: {error}")

    def _keep(self, message: Message) -> None:
        """Keep a worker's message until its round begins.

        Raises:
            Malformed: if no worker can have sent it by now. Beside the coordinator none is ahead. Elsewhere they may
                be by the round of the next epoch and by those that began it again, one for each worker that died, and
                in each of these a worker can do no more than ask for the snapshot.
        """
        last = self.round + (1 + len(self.roles.worker_ranks) if self.endpoint.rank else 0)
        if message.round > last:
            raise Malformed(f"a message of round {message.round} came in; the last that can have begun is {last}")
        kept = {(early.source, early.round) for early in self._early}
        if message.kind != Kind.SNAPSHOT or (message.source, message.round) in kept:
            raise Malformed(f"a message of kind {message.kind.name} of round {message.round}, not yet due, came in")
        self._early.append(message)

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
            if worker in self._waiting or sum(ticket.worker == worker for ticket in self._unanswered()) > 1:
                raise Malformed("a request for a model came in, while others are not answered")
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
        ranks = self.roles.worker_ranks
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
                        self.endpoint.send(ticket.worker, Kind.ASK, self.round, ticket.number, asked)
                    else:  # it died after its answer
                        self.schedule.withdraw(ticket)
        if self.schedule.version > before:
            self._coordination.stepped(self, self.schedule.version - before)

    # --- who is there

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
