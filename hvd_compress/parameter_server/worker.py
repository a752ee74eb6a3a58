"""The workers: each computes on its rows, and never waits for the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hvd_compress.ops.random import make_key
from hvd_compress.parameter_server.codecs import Codec, FloatModel, Model, Vector, affine
from hvd_compress.parameter_server.messages import Bytes, Endpoint, Kind, Malformed, Message
from hvd_compress.parameter_server.objectives import Objective
from hvd_compress.parameter_server.roles import Roles, Shard, rows_of
from hvd_compress.parameter_server.server import PART, TICK, JobFailed


class Dropped(RuntimeError):
    """A worker does not belong to its job any more."""


class Answer(Protocol):
    """A worker's part of an algorithm.

    Attributes:
        wants_gradient: whether the full gradient at the snapshot is computed.
        rounds: answers to each server in a step: the first, and replies to what it asks for then.
    """

    wants_gradient: bool
    rounds: int

    def begin(self, epoch: int, snapshot: Vector) -> None:
        """Begin an epoch."""

    def state(self) -> dict[str, Any] | None:
        """Return what `load` needs to go on from the last `begin`; None if nothing is kept from epoch to epoch."""

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""

    def start(self, shard: int, payload: Bytes) -> Vector:
        """Return a shard of the snapshot that came in; Malformed if it is none."""

    def reply(self, shard: int, payload: Bytes) -> Bytes:
        """Return what a server has asked for."""

    def model(self, shard: int, payload: Bytes) -> Vector:
        """Return a shard of the model that came in; Malformed if it is none."""

    def answer(self, x: Vector, part: Objective, rows: NDArray[np.int64]) -> list[Bytes]:
        """Return what goes to each server for a batch: `rows` of a part, at x."""


class OneRound:
    """What is common to workers' parts that answer once in a step, and are sent the snapshot's floats.

    Args:
        shards: of the model.
    """

    rounds = 1

    def __init__(self, shards: list[Shard]) -> None:
        self.shards = shards

    def start(self, shard: int, payload: Bytes) -> Vector:
        """Return the snapshot."""
        return FloatModel().decode(payload, np.empty(self.shards[shard].layout.size, np.float32))

    def reply(self, shard: int, payload: Bytes) -> Bytes:
        """Is never asked."""
        raise Malformed("a server asks for more, and there is nothing more")


class VarianceReduced(OneRound):
    """The worker's part of AsyLPG and its kin: a = grad f_B(Q_x(x)) - grad f_B(x~), sent as Q(a) (see `AsyLPG`).

    Args:
        shards: of the model.
        up: makes the codec of a shard's gradient, of (shard, epoch).
        down: how a shard's model comes in.
    """

    wants_gradient = True

    def __init__(self, shards: list[Shard], up: Callable[[int, int], Codec], down: list[Model]) -> None:
        super().__init__(shards)
        self._new, self.down = up, down
        self.up: list[Codec] = []
        self.snapshot: Vector = np.zeros(0, np.float32)

    def begin(self, epoch: int, snapshot: Vector) -> None:
        """Keep x~, and begin new random numbers."""
        self.snapshot = snapshot
        self.up = [self._new(i, epoch) for i in range(len(self.shards))]

    def state(self) -> None:
        """Return None."""

    def load(self, state: Mapping[str, Any]) -> None:
        """Do nothing."""

    def model(self, shard: int, payload: Bytes) -> Vector:
        """Return Q_x(x)."""
        return self.down[shard].decode(payload, self.snapshot[self.shards[shard].slice])

    def answer(self, x: Vector, part: Objective, rows: NDArray[np.int64]) -> list[Bytes]:
        """Return Q(a)."""
        _, here = part.gradient(x, rows)
        _, there = part.gradient(self.snapshot, rows)
        a = affine(here, 1 / len(rows), there, -1 / len(rows), here)
        return [up.encode(a[shard.slice]) for up, shard in zip(self.up, self.shards, strict=True)]


class Worker:
    """One worker's loop.

    Args:
        endpoint: of this rank.
        roles: of all ranks.
        shards: of the model, one a server.
        objective: P, of all rows.
        method: the worker's part of the algorithm.
        batch: rows of a batch, drawn from this worker's own with replacement.
        seed: of the division of the rows and the batches.
        ahead: whether the next model is asked for before the last one is answered.
        delay: seconds that it sleeps in each step, for tests of slow workers.
        saved: told of each epoch's number and the state of the method at its beginning, if there is any.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        roles: Roles,
        shards: list[Shard],
        objective: Objective,
        method: Answer,
        *,
        batch: int,
        seed: int,
        ahead: bool,
        delay: float = 0.0,
        saved: Callable[[int, Mapping[str, Any]], None],
    ) -> None:
        self.endpoint, self.roles, self.shards = endpoint, roles, shards
        self.objective, self.method = objective, method
        self.batch, self.seed, self.ahead, self.delay, self._saved = batch, seed, ahead, delay, saved
        self.round = self.epoch = -1
        self.size = sum(shard.stop - shard.start for shard in shards)
        self._workers: list[int] = []
        self._part: Objective = objective
        self._start: dict[str, Any] | None = None
        self._stopped = False

    def run(self) -> None:
        """Work until the job is done.

        Raises:
            Dropped: if a server has dropped this worker.
            JobFailed: if a server is gone.
        """
        while not self._stopped:
            if self._start is None:
                self._next()
                continue
            announced, self._start = self._start, None
            self.round = announced["round"]
            self._begin(announced["epoch"], announced["workers"])
            if self._start is None and not self._stopped:
                self._steps()
        self.endpoint.send(0, Kind.BYE, self.round)
        self.endpoint.flush(TICK)

    def _next(self) -> Message | None:
        """Return the next message of this round from a server, or None if there is something new for `run`."""
        message = self.endpoint.wait(TICK)
        for rank in self.endpoint.dead:
            if self.roles.is_server(rank):
                raise JobFailed(f"server {rank} is gone; start again with --resume to go on from the checkpoint")
        if message is None:
            return None
        if message.kind == Kind.START:
            self._start = message.json()
        elif message.kind == Kind.STOP:
            self._stopped = True
        elif message.kind == Kind.DROP:
            raise Dropped("the servers go on without this worker, which was silent for too long")
        elif message.kind == Kind.REFUSED:
            raise Dropped(f"a server has refused a message: {message.payload.tobytes().decode()}")
        elif message.round == self.round:
            return message
        return None

    def _collect(self, kind: Kind) -> dict[int, Message] | None:
        """Return a message of a kind from every server; None if the epoch ends, or something new has come."""
        found: dict[int, Message] = {}
        while len(found) < self.roles.servers:
            if self._start is not None or self._stopped:
                return None
            message = self._next()
            if message is None:
                continue
            if message.kind == Kind.END:
                return None
            if message.kind != kind or message.source in found:
                raise Malformed(f"server {message.source} sent a message of kind {message.kind.name} out of turn")
            found[message.source] = message
        return found

    def _ask(self, kind: Kind) -> None:
        for server in self.roles.server_ranks:
            self.endpoint.send(server, kind, self.round)

    def _begin(self, epoch: int, workers: list[int]) -> None:
        """Take the snapshot, and send this worker's part of the loss and the gradient there."""
        if workers != self._workers:
            self._workers = workers
            self._part = self.objective.take(rows_of(self.objective.rows, self.seed, workers)[self.endpoint.rank])
        self._ask(Kind.SNAPSHOT)
        found = self._collect(Kind.SNAPSHOT)
        if found is None:
            return
        snapshot = np.empty(self.size, np.float32)
        for server, message in found.items():
            snapshot[self.shards[server].slice] = self.method.start(server, message.payload)
        self.epoch = epoch
        self.method.begin(epoch, snapshot)
        state = self.method.state()
        if state is not None:
            self._saved(epoch, state)
        if self.method.wants_gradient:
            loss, gradient = self._part.gradient(snapshot)
        else:
            loss, gradient = self._part.value(snapshot), np.zeros(0, np.float32)
        right, tested = self.objective.right(snapshot, workers.index(self.endpoint.rank), len(workers)) or (0, 0)
        for server, shard in enumerate(self.shards):
            head = np.frombuffer(PART.pack(loss, right, tested), np.uint8)
            own = gradient[shard.slice].view(np.uint8) if self.method.wants_gradient else head[:0]
            self.endpoint.send(server, Kind.PART, self.round, 0, np.concatenate([head, own]))

    def _steps(self) -> None:
        """Answer models until the epoch ends."""
        random = np.random.Generator(np.random.Philox(make_key(self.seed, "batches", self.endpoint.rank, self.epoch)))
        self._ask(Kind.MODEL)
        while True:
            found = self._collect(Kind.MODEL)
            if found is None:
                break
            if self.ahead:
                self._ask(Kind.MODEL)
            models = [self.method.model(server, found[server].payload) for server in self.roles.server_ranks]
            x = models[0] if len(models) == 1 else np.concatenate(models)
            if self.delay:
                time.sleep(self.delay)
            rows = random.integers(self._part.rows, size=min(self.batch, self._part.rows))
            for server, payload in enumerate(self.method.answer(x, self._part, rows)):
                self.endpoint.send(server, Kind.PUSH, self.round, found[server].number, payload)
            for _ in range(1, self.method.rounds):
                asked = self._collect(Kind.ASK)
                if asked is None:
                    return
                for server, message in asked.items():
                    payload = self.method.reply(server, message.payload)
                    self.endpoint.send(server, Kind.PUSH, self.round, message.number, payload)
            if not self.ahead:
                self._ask(Kind.MODEL)
        for server in self.roles.server_ranks[1:]:
            self.endpoint.send(server, Kind.WITHDRAW, self.round)
