"""A worker's loop: it computes on its rows, and never waits for other workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import numpy as np

from hvd_compress.ops.random import make_key
from hvd_compress.parameter_server.objectives import Objective
from hvd_compress.parameter_server.protocols import WorkerPart
from hvd_compress.parameter_server.runtime.messages import Endpoint, Kind, Malformed, Message, Refused
from hvd_compress.parameter_server.runtime.roles import Roles, Shard, rows_of
from hvd_compress.parameter_server.runtime.rounds import TICK, GradientPart, Round
from hvd_compress.parameter_server.runtime.watch import JobFailed, Told, Watch

Read = TypeVar("Read")


class Dropped(RuntimeError):
    """The servers have dropped this worker."""


class Worker:
    """One worker's loop.

    Args:
        endpoint: of this rank.
        roles: of all ranks.
        shards: of the model, one a server.
        objective: P, of all rows.
        part: the worker's part of the algorithm.
        batch: rows of a batch, drawn from this worker's own with replacement.
        seed: of the division of the rows and the batches.
        ahead: whether the next model is asked for before the last one is answered.
        delay: seconds that it sleeps in each step, to simulate a straggler.
        saved: told of each epoch's number and the state of the part at its beginning, if there is any.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        roles: Roles,
        shards: list[Shard],
        objective: Objective,
        part: WorkerPart,
        *,
        batch: int,
        seed: int,
        ahead: bool,
        delay: float = 0.0,
        saved: Callable[[int, Mapping[str, Any]], None],
    ) -> None:
        self.endpoint, self.roles, self.shards = endpoint, roles, shards
        self.objective, self.part = objective, part
        self.batch, self.seed, self.ahead, self.delay, self._saved = batch, seed, ahead, delay, saved
        self.round = self.epoch = -1
        self.size = sum(shard.stop - shard.start for shard in shards)
        self._watch = Watch(endpoint, roles)
        self._workers: list[int] = []
        self._own: Objective = objective  # with this worker's rows only
        self._announced: Round | None = None
        self._stopped = False

    def run(self) -> None:
        """Work until the job is done.

        Raises:
            Dropped: if a server has dropped this worker.
            JobFailed: if a server is gone or sends nonsense, or the coordinator is silent.
        """
        while not self._stopped:
            if self._announced is None:
                self._next()
                continue
            announced, self._announced = self._announced, None
            self.round = announced.round
            self._begin(announced)
            if self._announced is None and not self._stopped:
                self._steps()
        self.endpoint.send(0, Kind.BYE, self.round)
        self.endpoint.flush(TICK)

    def _next(self) -> Message | None:
        """Return the next message of this round from a server, or None: then `run` looks at what has changed."""
        try:
            message = self.endpoint.wait(TICK)
        except Refused as error:
            raise _nonsense(error.source, error) from error
        self._watch.look()
        if message is None:
            return None
        if message.kind == Kind.START:
            self._announced = self._read(0, lambda: Round.decode(message.json(), self.roles))
        elif message.kind == Kind.STOP:
            self._stopped = True
        elif message.kind == Kind.DROP:
            raise Dropped("the servers go on without this worker, which was silent for too long")
        elif message.kind == Kind.REFUSED:
            raise Dropped(f"a server has refused a message: {message.text()}")
        elif message.kind == Kind.FAILED:
            raise Told(message.text())
        elif message.round == self.round:
            return message
        return None

    def _collect(self, kind: Kind) -> dict[int, Message] | None:
        """Return a message of a kind from every server; None if the epoch or the job ends, or a round begins."""
        found: dict[int, Message] = {}
        while len(found) < self.roles.servers:
            if self._announced is not None or self._stopped:
                return None
            message = self._next()
            if message is None:
                continue
            if message.kind == Kind.END:
                return None
            if message.kind != kind or message.source in found:
                text = f"a message of kind {message.kind.name} came in out of turn"
                raise _nonsense(message.source, Malformed(text))
            found[message.source] = message
        return found

    def _request(self, kind: Kind) -> None:
        for server in self.roles.server_ranks:
            self.endpoint.send(server, kind, self.round)

    def _read(self, server: int, read: Callable[[], Read]) -> Read:
        """Return what `read` makes of a server's message.

        Raises:
            JobFailed: if it is malformed.
        """
        try:
            return read()
        except Malformed as error:
            raise _nonsense(server, error) from error

    def _begin(self, announced: Round) -> None:
        """Receive the snapshot, and send this worker's part of the loss and of the gradient there."""
        workers = announced.workers
        if workers != self._workers:
            self._workers = workers
            self._own = self.objective.take(rows_of(self.objective.rows, self.seed, workers)[self.endpoint.rank])
        self._request(Kind.SNAPSHOT)
        found = self._collect(Kind.SNAPSHOT)
        if found is None:
            return
        snapshot = np.empty(self.size, np.float32)
        for server, message in found.items():
            snapshot[self.shards[server].slice] = self._read(server, partial(self.part.start, server, message.payload))
        self.epoch = announced.epoch
        self.part.begin(self.epoch, snapshot)
        state = self.part.state()
        if state is not None:
            self._saved(self.epoch, state)
        if self.part.wants_gradient:
            loss, gradient = self._own.gradient(snapshot)
        else:
            loss, gradient = self._own.value(snapshot), None
        right, tested = self.objective.right(snapshot, workers.index(self.endpoint.rank), len(workers)) or (0, 0)
        for server, shard in enumerate(self.shards):
            part = GradientPart(loss, right, tested, None if gradient is None else gradient[shard.slice])
            self.endpoint.send(server, Kind.PART, self.round, 0, part.encode())

    def _steps(self) -> None:
        """Answer models until the epoch ends."""
        random = np.random.Generator(np.random.Philox(make_key(self.seed, "batches", self.endpoint.rank, self.epoch)))
        self._request(Kind.MODEL)
        while True:
            found = self._collect(Kind.MODEL)
            if found is None:
                break
            if self.ahead:
                self._request(Kind.MODEL)
            models = [
                self._read(server, partial(self.part.model, server, found[server].payload))
                for server in self.roles.server_ranks
            ]
            x = models[0] if len(models) == 1 else np.concatenate(models)
            if self.delay:
                time.sleep(self.delay)
            rows = random.integers(self._own.rows, size=min(self.batch, self._own.rows))
            for server, payload in enumerate(self.part.answer(x, self._own, rows)):
                self.endpoint.send(server, Kind.PUSH, self.round, found[server].number, payload)
            for _ in range(1, self.part.rounds):
                asked = self._collect(Kind.ASK)
                if asked is None:
                    return
                for server, message in asked.items():
                    payload = self._read(server, partial(self.part.reply, server, message.payload))
                    self.endpoint.send(server, Kind.PUSH, self.round, message.number, payload)
            if not self.ahead:
                self._request(Kind.MODEL)
        for server in self.roles.server_ranks[1:]:
            self.endpoint.send(server, Kind.WITHDRAW, self.round)


def _nonsense(server: int, error: Malformed) -> JobFailed:
    """Return how a job ends of which a server sent what it cannot have meant."""
    return JobFailed(f"server {server} sent a message that was refused: {error}")
