"""The servers: each owns a shard of the model; the first of them, the coordinator, also says what is to be done."""

from __future__ import annotations

import struct
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from hvd_compress.parameter_server.codecs import OPS, Vector, affine
from hvd_compress.parameter_server.objectives import Regularizer
from hvd_compress.parameter_server.protocols import ServerPart, StepSchedule, Ticket
from hvd_compress.parameter_server.runtime.messages import Bytes, Endpoint, Kind, Malformed, Message
from hvd_compress.parameter_server.runtime.roles import Roles

PART = struct.Struct("<dqq")  # sum of losses, test rows classified right, test rows
TICK = 0.25  # seconds between two looks at who has been silent for too long


class JobFailed(RuntimeError):
    """The job cannot go on; the message says why."""


@dataclass
class Epoch:
    """What was reached after so many epochs, and at what cost.

    Attributes:
        epoch: epochs that are done.
        objective: P of the snapshot.
        right, tested: of the test rows how many are classified right, and how many there are.
        bits_up, bits_down: of all messages between workers and servers until the epoch's end, headers included.
        seconds: from the job's beginning to the epoch's end.
        steps: that were done, of the first server.
        delays: how many steps had so many others between their model and themselves, since the job's beginning.
        workers: that are there.
    """

    epoch: int
    objective: float
    right: int
    tested: int
    bits_up: int
    bits_down: int
    seconds: float
    steps: int
    workers: int
    delays: Counter[int] = field(default_factory=Counter)


class _Report(NamedTuple):
    up: int
    down: int
    penalty: float
    delays: dict[str, int]


class Server:
    """One server's loop: rounds of a snapshot, the workers' parts of the gradient, and steps.

    Args:
        endpoint: of this rank.
        roles: of all ranks.
        method: what to do with the shard.
        regularizer: h, for its value.
        schedule: makes the schedule of an epoch.
        rows: of all workers together.
        timeout: seconds of silence after which a worker is dropped from whom something is due.
        saved: told of each epoch's number and the state of the method at its beginning.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        roles: Roles,
        method: ServerPart,
        regularizer: Regularizer,
        schedule: Callable[[], StepSchedule],
        rows: int,
        timeout: float,
        saved: Callable[[int, Mapping[str, Any]], None],
    ) -> None:
        self.endpoint, self.roles, self.method = endpoint, roles, method
        self.regularizer, self.rows, self.timeout = regularizer, rows, timeout
        self._new_schedule, self._saved = schedule, saved
        self.schedule = schedule()
        self.workers = set(roles.worker_ranks)
        self.round = self.epoch = 0
        self.delays: Counter[int] = Counter()
        self.stepping = self.stopped = False
        self._parts: dict[int, tuple[float, int, int, Vector | None]] = {}
        self._pending: list[int] = []
        self._answered: dict[int, Any] = {}
        self._stashed: list[Message] = []
        self._next: dict[str, Any] | None = None
        self._heard = {worker: time.monotonic() for worker in self.workers}
        self._incomplete = False  # whether the part of a worker that was dropped is missing: the round will not do
        self._cost = _Report(0, 0, 0.0, {})

    def run(self) -> None:
        """Serve until the job is done.

        Raises:
            JobFailed: if another server is dead, or no worker is left.
        """
        while not self.stopped:
            message = self._received()
            for rank in self.endpoint.dead & (self.workers | set(self.roles.server_ranks)):
                if self.roles.is_server(rank):
                    raise JobFailed(f"server {rank} is gone; start again with --resume to go on from the checkpoint")
                self.drop(rank, "is gone")
            if message is not None:
                self._take(message)
            self._tick()

    def _leave(self, done: Callable[[Message], bool]) -> None:
        """Take messages until one is the last, or the time is up: who leaves earlier could be thought dead."""
        until = time.monotonic() + self.timeout
        while time.monotonic() < until and 0 not in self.endpoint.dead:
            message = self._received()
            if message is not None and done(message):
                return

    def _received(self) -> Message | None:
        try:
            return self.endpoint.wait(TICK)
        except Malformed as error:
            self._log(str(error))
            return None

    def _take(self, message: Message) -> None:
        if self.roles.is_server(message.source):
            self._from_server(message)
        elif message.source in self.workers:
            self._heard[message.source] = time.monotonic()
            if message.round > self.round:
                self._stashed.append(message)
            elif message.round == self.round:
                try:
                    self._from_worker(message)
                except Malformed as error:
                    self.endpoint.send(
                        message.source, Kind.REFUSED, self.round, 0, np.frombuffer(str(error).encode(), np.uint8)
                    )
                    self.drop(message.source, f"sent a message that was refused: {error}")
            self._begin_next()

    def _from_server(self, message: Message) -> None:
        if message.kind == Kind.START:
            self._next = message.json()
            self._begin_next()
        elif message.kind == Kind.DROP:
            self.drop(message.number, "was dropped by the coordinator")
        elif message.kind == Kind.STOP:
            self.stopped = True
            self.endpoint.send(0, Kind.SNAPSHOT, 0, 0, self.method.snapshot.view(np.uint8))
            self._leave(lambda message: message.kind == Kind.BYE)

    # --- a round: snapshot and parts

    def _begin_next(self) -> None:
        """Begin the round that the coordinator has announced, once all its workers are done with the one before."""
        if self._next is None:
            return
        announced = self._next
        there = {message.source for message in self._stashed if message.round == announced["round"]}
        if announced["epoch"] > self.epoch and self.round and not set(announced["workers"]) & self.workers <= there:
            return
        self._next = None
        self._begin(announced)

    def _begin(self, announced: dict[str, Any]) -> None:
        """Begin a round; if it is one of a new epoch, end the epoch before."""
        if self.stepping and announced["epoch"] > self.epoch:
            for ticket in self._unanswered():
                self.schedule.withdraw(ticket)
            self._do_steps()
            self.delays += self.schedule.delays
            self.method.end()
        self.round, self.epoch, self.stepping = announced["round"], announced["epoch"], False
        self.schedule = self._new_schedule()
        self._parts.clear()
        self._pending.clear()
        self._answered.clear()
        self._incomplete = False
        self._saved(self.epoch, self.method.state())
        self._cost = self._report()
        stashed, self._stashed = self._stashed, []
        for message in stashed:
            if message.source in self.workers:
                self._take(message)

    def _report(self) -> _Report:
        """Return what the epochs so far have cost."""
        ranks = self.roles.worker_ranks
        return _Report(
            8 * sum(self.endpoint.received[rank] for rank in ranks),
            8 * sum(self.endpoint.sent[rank] for rank in ranks),
            self.regularizer.value(self.method.snapshot),
            {str(delay): count for delay, count in self.delays.items()},
        )

    def _from_worker(self, message: Message) -> None:
        worker = message.source
        if message.kind == Kind.SNAPSHOT:
            self.endpoint.send(worker, Kind.SNAPSHOT, self.round, 0, self.method.start(worker))
        elif message.kind == Kind.PART:
            if self.stepping:
                raise Malformed("a part of the gradient came in, which is complete")
            self._parts[worker] = self._part(message.payload)
            if self._parts.keys() >= self.workers and not self._incomplete:
                self._complete()
        elif message.kind == Kind.MODEL:
            self._pending.append(worker)
            self._serve()
        elif message.kind == Kind.PUSH:
            ticket = self.schedule.given.get(message.number)
            if not self.stepping or ticket is None or ticket.worker != worker or message.number in self._answered:
                raise Malformed(f"an answer to the model of number {message.number}, which is not awaited, came in")
            self._answered[message.number] = self.method.decode(worker, message.payload)
            self._serve()
        elif message.kind == Kind.WITHDRAW:
            self._withdraw(worker)
            self._serve()
        else:
            raise Malformed(f"a message of kind {message.kind.name} came in, which no worker sends a server")

    def _part(self, payload: Bytes) -> tuple[float, int, int, Vector | None]:
        wanted = self.method.snapshot.nbytes if self.method.wants_gradient else 0
        if payload.nbytes != PART.size + wanted:
            raise Malformed(f"a part of the gradient of {payload.nbytes} bytes came in; expected {PART.size + wanted}")
        loss, right, tested = PART.unpack(payload[: PART.size].tobytes())
        gradient = payload[PART.size :].view(np.float32) if wanted else None
        if gradient is not None and not OPS.all_finite(gradient):
            raise Malformed("a part of the gradient with values that are not finite came in")
        return loss, right, tested, gradient

    def _complete(self) -> None:
        """All parts are there: tell the coordinator, who gives no model before, and begin the steps."""
        self.endpoint.send_json(0, Kind.REPORT, self.round, self._cost)
        self._begin_steps()

    def _begin_steps(self) -> None:
        gradient = None
        if self.method.wants_gradient:
            total = np.zeros_like(self.method.snapshot)
            for worker in sorted(self._parts):
                part = self._parts[worker][3]
                assert part is not None
                affine(total, 1.0, part, 1.0, total)
            gradient = total / np.float32(self.rows)
        self._parts.clear()
        self.method.begin(self.epoch, gradient)
        self.stepping = True
        self._serve()

    # --- steps

    def _serve(self) -> None:
        """Do the steps that can be done, and give the model to the workers that wait for it and may have it."""
        if not self.stepping:
            return
        self._do_steps()
        waiting, self._pending = self._pending, []
        for worker in waiting:
            if self.schedule.exhausted:
                self._exhausted(worker)
            elif self.schedule.may_give(worker):
                ticket = self.schedule.give(worker)
                self._heard[worker] = time.monotonic()
                self.endpoint.send(worker, Kind.MODEL, self.round, ticket.number, self.method.model(worker))
            else:
                self._pending.append(worker)

    def _do_steps(self) -> None:
        while tickets := self.schedule.next_step(self._answered, self.workers):
            answers = [self._answered.pop(ticket.number) for ticket in tickets]
            asked = self.method.ask(answers)
            if asked is None:
                self.method.step(answers)
                self.schedule.step(tickets)
            else:
                for ticket in tickets:
                    if ticket.worker in self.workers:
                        self._heard[ticket.worker] = time.monotonic()
                        self.endpoint.send(ticket.worker, Kind.ASK, self.round, ticket.number, asked)
                    else:  # it answered, and died
                        self.schedule.withdraw(ticket)

    def _exhausted(self, worker: int) -> None:
        """A worker asks for a model, and the epoch has no more steps: the coordinator tells it, nobody else."""
        self._pending.append(worker)

    # --- who is there

    def _unanswered(self) -> list[Ticket]:
        return [ticket for number, ticket in self.schedule.given.items() if number not in self._answered]

    def _withdraw(self, worker: int) -> None:
        """Take back what a worker was given and has not answered, and its question."""
        for ticket in self._unanswered():
            if ticket.worker == worker:
                self.schedule.withdraw(ticket)
        self._pending = [other for other in self._pending if other != worker]

    def drop(self, worker: int, reason: str) -> None:
        """Go on without a worker."""
        if worker not in self.workers:
            return
        self.workers.discard(worker)
        self._withdraw(worker)
        self._parts.pop(worker, None)
        self._incomplete = self._incomplete or not self.stepping
        self._log(f"worker {worker} {reason}")
        if self.workers:
            self._serve()
            self._begin_next()

    def _log(self, text: str) -> None:
        """Say something to the user: the coordinator does."""

    def _tick(self) -> None:
        """Do what is due from time to time: the coordinator has something."""


class Coordinator(Server):
    """The first server: it announces rounds, drops silent workers, and knows when the job is done.

    Args:
        epochs: most epochs.
        finished: told of each epoch, it returns whether the job is done.
        log: takes a line for the user.
        kill: ends the process of a silent worker, if it can.
        progress: told of the steps done in an epoch, and of all of them.
        first: epochs that are done, for a job that goes on from a checkpoint.
        before: what they cost.
    """

    def __init__(
        self,
        *args: Any,
        epochs: int,
        finished: Callable[[Epoch], bool],
        log: Callable[[str], None],
        kill: Callable[[int], None],
        progress: Callable[[int, int], None] = lambda done, steps: None,
        first: int = 0,
        before: Epoch | None = None,
    ) -> None:
        super().__init__(*args)
        self.epochs, self._finished, self._progress, self._say, self._kill = epochs, finished, progress, log, kill
        self._before, self.epoch = before, first - 1
        self._reports: dict[int, _Report] = {}
        self._ended: set[int] = set()
        self._began, self._seconds = time.monotonic(), 0.0
        self._steps = before.steps if before else 0
        self._looked = self._began
        self._shards: dict[int, Vector] = {}
        self.model: Vector | None = None

    def run(self) -> None:
        """Serve until the job is done, as its coordinator; then `model` has the whole model."""
        self._announce(self.epoch + 1)
        super().run()
        self._leave(self._last)
        missing = [rank for rank in self.roles.server_ranks if rank not in self._shards]
        if missing:
            raise JobFailed(f"server {missing[0]} is gone, with its part of the model")
        self.model = np.concatenate([self._shards[rank] for rank in self.roles.server_ranks])

    def _last(self, message: Message) -> bool:
        """Take a shard or a worker's leave; tell whether all are there."""
        if self.roles.is_server(message.source) and message.kind == Kind.SNAPSHOT:
            self._shards[message.source] = message.payload.view(np.float32)
            self.endpoint.send(message.source, Kind.BYE, self.round)
        elif message.kind == Kind.BYE:
            self.workers.discard(message.source)
        servers = set(self.roles.server_ranks) - self.endpoint.dead
        return self._shards.keys() >= servers and not self.workers - self.endpoint.dead

    def _announce(self, epoch: int) -> None:
        announced = {"round": self.round + 1, "epoch": epoch, "workers": sorted(self.workers)}
        self._ended.clear()
        self._reports.clear()
        self._heard = dict.fromkeys(self.workers, time.monotonic())
        self._begin(announced)
        for rank in [*self.roles.server_ranks[1:], *sorted(self.workers)]:
            self.endpoint.send_json(rank, Kind.START, self.round, announced)

    def _from_server(self, message: Message) -> None:
        if message.kind == Kind.REPORT and message.round == self.round:
            self._reports[message.source] = _Report(*message.json())
            if self._parts.keys() >= self.workers:
                self._complete()

    def _complete(self) -> None:
        """If all servers have all parts, tell of the epoch, and begin the next or stop."""
        self._reports[0] = self._cost
        if len(self._reports) < self.roles.servers:
            return
        parts = self._parts.values()
        reports = self._reports.values()
        delays: Counter[int] = Counter()
        for report in reports:
            delays.update({int(delay): count for delay, count in report.delays.items()})
        before = self._before
        epoch = Epoch(
            epoch=self.epoch,
            objective=sum(part[0] for part in parts) / self.rows + sum(report.penalty for report in reports),
            right=sum(part[1] for part in parts),
            tested=sum(part[2] for part in parts),
            bits_up=sum(report.up for report in reports) + (before.bits_up if before else 0),
            bits_down=sum(report.down for report in reports) + (before.bits_down if before else 0),
            seconds=self._seconds + (before.seconds if before else 0.0),
            steps=self._steps,
            workers=len(self.workers),
            delays=delays + (before.delays if before else Counter()),
        )
        if self._finished(epoch) or self.epoch >= self.epochs:
            self._stop()
        else:
            self._begin_steps()

    def _stop(self) -> None:
        for rank in range(1, self.roles.size):
            self.endpoint.send(rank, Kind.STOP, self.round)
        self._shards[0] = self.method.snapshot
        self.stopped = True

    def _do_steps(self) -> None:
        before = self.schedule.version
        super()._do_steps()
        if self.schedule.version > before:
            self._steps += self.schedule.version - before
            self._progress(self.schedule.version, self.schedule.steps)

    def _exhausted(self, worker: int) -> None:
        self._ended.add(worker)
        self.endpoint.send(worker, Kind.END, self.round)

    def _serve(self) -> None:
        super()._serve()
        if self.stepping and not self.schedule.given and self._ended >= self.workers:
            self._seconds = time.monotonic() - self._began
            self._announce(self.epoch + 1)

    def drop(self, worker: int, reason: str) -> None:
        """Go on without a worker; if it owes its part of the gradient, its rows are divided among the others."""
        if worker not in self.workers:
            return
        for rank in [*self.roles.server_ranks[1:], worker]:
            self.endpoint.send(rank, Kind.DROP, self.round, worker)
        now = self.round
        super().drop(worker, reason)
        if not self.workers:
            self._stop()
            raise JobFailed("no worker is left")
        if self.round == now and not self.stepping and not self.stopped:
            self._announce(self.epoch)

    def _log(self, text: str) -> None:
        self._say(text)

    def _tick(self) -> None:
        """Drop workers from whom something is due and who have been silent for too long."""
        now = time.monotonic()
        if now - self._looked < TICK:
            return
        self._looked = now
        owing = {ticket.worker for ticket in self._unanswered()}
        due = owing if self.stepping else self.workers - self._parts.keys()
        for worker in sorted(due):
            silent = now - self._heard[worker]
            if silent > self.timeout:
                self._kill(worker)
                self.drop(worker, f"was silent for {silent:.0f} s")
