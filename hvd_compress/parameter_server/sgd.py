"""Stochastic gradient descent with a server: any compressor of one payload is the way up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvd_compress.compressors import parse
from hvd_compress.compressors.base import AllGather, Compressor
from hvd_compress.compressors.quantize import LowPrecision
from hvd_compress.compressors.state import State
from hvd_compress.ops.layout import Layout
from hvd_compress.ops.numpy import NumpyOps
from hvd_compress.parameter_server.codecs import Changes, Codec, Decoded, Vector, affine, one_payload
from hvd_compress.parameter_server.job import Plan
from hvd_compress.parameter_server.messages import Bytes
from hvd_compress.parameter_server.objectives import Objective, Regularizer
from hvd_compress.parameter_server.roles import Shard
from hvd_compress.parameter_server.schedules import BoundedDelay, Schedule, Synchronous
from hvd_compress.parameter_server.worker import OneRound
from hvd_compress.reduction.step import Step

DOWNLINKS = ("changes", "difference")


class Down:
    """What a worker has of a shard, as the server knows it: exact, but for what has changed since.

    With "changes" a worker is sent the coordinates that have changed since its last model, exactly. With "difference"
    it is sent Q(x - y), where y is what it has: what Q leaves over is in the next difference.

    Args:
        layout: of the shard.
        bits: of a coordinate of the difference; 0 for changes.
        key: of the random numbers.
    """

    def __init__(self, layout: Layout, bits: int, key: tuple[object, ...]) -> None:
        self.changes = Changes(layout.size)
        self.layout, self.bits, self.key = layout, bits, key
        self._epoch = 0
        self._codecs: dict[int, Codec] = {}
        self._changed = np.zeros(layout.size, np.int64)  # the step at which a coordinate was last changed
        self._known: dict[int, int] = {}  # the step that a worker's model is of
        self._copies: dict[int, Vector] = {}
        self._steps = 0

    def begin(self, epoch: int) -> None:
        """Begin an epoch: every worker has the snapshot."""
        self._epoch = epoch
        self._codecs.clear()
        self._changed[:], self._steps = 0, 0
        self._known.clear()
        self._copies.clear()

    def change(self, indices: NDArray[np.int64] | None) -> None:
        """A step has changed these coordinates, or all of them."""
        self._steps += 1
        self._changed[slice(None) if indices is None else indices] = self._steps

    def encode(self, worker: int, x: Vector, snapshot: Vector) -> Bytes:
        """Return what brings a worker from its last model to x."""
        if not self.bits:
            indices = np.flatnonzero(self._changed > self._known.get(worker, 0))
            self._known[worker] = self._steps
            return self.changes.encode(x, indices)
        if worker not in self._copies:
            self._copies[worker] = snapshot.copy()
        copy, codec = self._copies[worker], self._codec(worker)
        payload = codec.encode(affine(x, 1.0, copy, -1.0))
        codec.decode(payload).add_to(copy, 1.0)
        return payload

    def apply(self, x: Vector, payload: Bytes) -> None:
        """Bring a worker's model, in place, to what it was sent; Malformed if it was sent none."""
        if self.bits:
            self._codec(0).decode(payload).add_to(x, 1.0)
        else:
            self.changes.apply(x, payload)

    def _codec(self, worker: int) -> Codec:
        """Return a worker's codec: its random numbers do not depend on when the others come."""
        if worker not in self._codecs:
            self._codecs[worker] = Codec(LowPrecision(self.bits), self.layout, (*self.key, worker, self._epoch))
        return self._codecs[worker]


def learning_rate(lr: float, steps: int) -> Callable[[int], float]:
    """Return the learning rate as a function of the step: it falls to 0 in so many steps, if there are any."""
    return lambda step: lr * max(0.0, 1 - step / steps) if steps else lr


def saved_states(states: Sequence[State]) -> dict[str, Any]:
    """Return what compressors keep of each shard, as arrays and numbers by name."""
    kept: dict[str, Any] = {}
    for i, state in enumerate(states):
        kept[f"{i}/step"] = state.step
        for place, store in (("shared", state.shared), ("local", state.local)):
            kept |= {f"{i}/{place}/{name}": np.array(array) for name, array in store.kept.items()}
    return kept


def load_states(states: Sequence[State], saved: Mapping[str, Any]) -> None:
    """Undo `saved_states`."""
    for name, value in saved.items():
        number, *place = name.split("/", 2)
        state = states[int(number)]
        if place == ["step"]:
            state.step = int(value)
        else:
            store = state.shared if place[0] == "shared" else state.local
            store[place[1]] = value
            store.commit()


class ServerSGD:
    """x <- prox_(eta h)(x - eta mean of the answers), of one worker or of all; the server's part.

    Args:
        start: x at the beginning; it is not modified.
        regularizer: h.
        rate: eta of each step of the job.
        compressor: of the way up, with its feedback or without.
        layout: of the shard.
        down: the way down.
    """

    wants_gradient = False

    def __init__(
        self,
        start: Vector,
        regularizer: Regularizer,
        rate: Callable[[int], float],
        compressor: Compressor,
        layout: Layout,
        down: Down,
    ) -> None:
        self.snapshot = start
        self.regularizer, self.rate, self.down = regularizer, rate, down
        self.compressor, self.layout = one_payload(compressor).bare, layout
        self.x = start.copy()
        self._codecs: dict[Compressor, Codec] = {}
        self._steps = 0
        self._answers: dict[int, int] = {}  # of each worker: its compressor's schedules are at that step

    def begin(self, epoch: int, gradient: Vector | None) -> None:
        """Every worker has x."""
        self.down.begin(epoch)

    def start(self, worker: int) -> Bytes:
        """Return x."""
        return self.snapshot.view(np.uint8)

    def model(self, worker: int) -> Bytes:
        """Return what brings a worker's model to x."""
        return self.down.encode(worker, self.x, self.snapshot)

    def decode(self, worker: int, payload: Bytes) -> Decoded:
        """Return a worker's gradient."""
        count = self._answers.get(worker, 0)
        compressor = self.compressor.at(count)
        codec = self._codecs.get(compressor)
        if codec is None:
            self._codecs = {compressor: Codec(compressor, self.layout)}
            codec = self._codecs[compressor]
        decoded = codec.decode(payload)
        self._answers[worker] = count + 1
        return decoded

    def ask(self, answers: Sequence[Decoded]) -> None:
        """Nothing else."""

    def step(self, answers: Sequence[Decoded]) -> None:
        """Step x."""
        eta = self.rate(self._steps)
        if self.compressor.majority_vote:
            votes = np.zeros_like(self.x)
            for answer in answers:
                answer.add_to(votes, 1.0)
            self.x -= np.float32(eta) * np.sign(votes)
        else:
            for answer in answers:
                answer.add_to(self.x, -eta / len(answers))
        self.regularizer.prox(self.x, eta)
        everywhere = self.regularizer.l1 or self.regularizer.l2 or self.compressor.majority_vote
        if everywhere or any(answer.indices is None for answer in answers):
            self.down.change(None)
        else:
            self.down.change(np.concatenate([answer.indices for answer in answers if answer.indices is not None]))
        self._steps += 1

    def end(self) -> None:
        """Take the snapshot."""
        self.snapshot = self.x.copy()

    def state(self) -> dict[str, Any]:
        """Return x, the steps done, and how many answers each worker has sent."""
        answers = np.array(sorted(self._answers.items()), np.int64).reshape(-1, 2)
        return {"snapshot": self.snapshot, "steps": self._steps, "answers": answers}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.snapshot = state["snapshot"]
        self.x = self.snapshot.copy()
        self._steps = int(state["steps"])
        self._answers = {int(worker): int(count) for worker, count in state["answers"]}


class WorkerSGD(OneRound):
    """A worker's part: the mean gradient of a batch through a compressor, with what feedback keeps.

    Args:
        compressor: of the way up.
        shards: of the model.
        down: the way down of each.
        rank, workers: who this is, of how many.
        seed: of the compressor's random numbers.
    """

    wants_gradient = False

    def __init__(
        self, compressor: Compressor, shards: list[Shard], down: list[Down], rank: int, workers: int, seed: int
    ) -> None:
        super().__init__(shards)
        self.compressor, self.down = one_payload(compressor), down
        self.ops = NumpyOps()
        self.states = [State(s.layout, rank=rank, workers=workers, seed=seed) for s in shards]
        self.copies: list[Vector] = []

    def begin(self, epoch: int, snapshot: Vector) -> None:
        """Keep the snapshot as this worker's copy of the model."""
        self.copies = [snapshot[shard.slice].copy() for shard in self.shards]
        for down in self.down:
            down.begin(epoch)

    def state(self) -> dict[str, Any]:
        """Return what the compressor keeps."""
        return saved_states(self.states)

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on with what the compressor has kept."""
        load_states(self.states, state)

    def model(self, shard: int, payload: Bytes) -> Vector:
        """Return this worker's copy of the model, brought up to date."""
        self.down[shard].apply(self.copies[shard], payload)
        return self.copies[shard]

    def answer(self, x: Vector, part: Objective, rows: NDArray[np.int64]) -> list[Bytes]:
        """Return the compressed gradient."""
        _, gradient = part.gradient(x, rows)
        gradient *= np.float32(1 / len(rows))
        return [
            self._encode(gradient[s.slice].copy(), state) for s, state in zip(self.shards, self.states, strict=True)
        ]

    def _encode(self, vector: Vector, state: State) -> Bytes:
        """Return the one payload of a step, with which all of the compressor's state is written."""
        gathered = Step(self.compressor, self.ops, vector, state).pending
        assert isinstance(gathered, AllGather), f"{self.compressor.name} sends no payload"
        state.commit()
        return gathered.payload


@dataclass(frozen=True)
class SGD:
    """The settings of a job of stochastic gradient descent.

    Attributes:
        compression: spec of the way up.
        asynchronous: whether every answer is a step, at most `max_delay` late; else a step takes one of every worker.
        downlink: "changes", the exact values of the coordinates that have changed; or "difference", quantized.
        model_bits: of a coordinate of the difference.
        lr: learning rate.
        decay: whether it falls to 0 linearly over `epochs`.
        epochs: most epochs.
        epoch_steps: steps of an epoch; None for one pass over the rows.
        max_delay: most steps between a model and the answer to it; None for 4 for each worker.
        batch: rows of a worker's batch, for the number of steps.
        seed: of the random numbers.

    Raises:
        ValueError: if a setting is outside its range.
    """

    compression: str = "none"
    asynchronous: bool = False
    downlink: str = "changes"
    model_bits: int = 8
    lr: float = 0.1
    decay: bool = False
    epochs: int = 50
    epoch_steps: int | None = None
    max_delay: int | None = None
    batch: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        one_payload(parse(self.compression))
        if self.downlink not in DOWNLINKS:
            raise ValueError(f"downlink must be one of {', '.join(DOWNLINKS)}; got {self.downlink!r}")
        LowPrecision(self.model_bits)
        if not self.lr > 0:
            raise ValueError(f"lr must be in (0, inf); got {self.lr}")
        for name, least in (("epochs", 0), ("epoch_steps", 1), ("max_delay", 0), ("batch", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}; got {value}")

    @property
    def name(self) -> str:
        """Synchronous or asynchronous."""
        return "asynchronous sgd" if self.asynchronous else "sgd"

    @property
    def ahead(self) -> bool:
        """Whether it is asynchronous, unless the delay is to be 0."""
        return self.asynchronous and self.max_delay != 0

    @property
    def workers_keep(self) -> bool:
        """True: what feedback keeps."""
        return True

    def check(self, plan: Plan) -> None:
        """Raise ValueError if the settings do not go with the plan."""
        if self.asynchronous:
            BoundedDelay.check(self._most(plan), plan.roles)

    def method(self, plan: Plan, shard: Shard, start: Vector, rank: int) -> ServerSGD:
        """Return the server's part."""
        rate = learning_rate(self.lr, self.epochs * self._steps(plan) if self.decay else 0)
        down = self._down(shard, rank)
        return ServerSGD(start, plan.regularizer, rate, parse(self.compression), shard.layout, down)

    def answer(self, plan: Plan, shards: list[Shard], rank: int) -> WorkerSGD:
        """Return a worker's part."""
        workers = len(plan.roles.worker_ranks)
        down = [self._down(shard, rank) for shard in shards]
        return WorkerSGD(parse(self.compression), shards, down, rank, workers, self.seed)

    def schedule(self, plan: Plan) -> Callable[[], Schedule]:
        """Return what makes the schedule of an epoch."""
        steps = self._steps(plan)
        return lambda: BoundedDelay(steps, self._most(plan)) if self.asynchronous else Synchronous(steps)

    def _steps(self, plan: Plan) -> int:
        rows = self.batch if self.asynchronous else self.batch * len(plan.roles.worker_ranks)
        return self.epoch_steps or max(1, round(plan.rows / rows))

    def _most(self, plan: Plan) -> int:
        return 4 * len(plan.roles.worker_ranks) if self.max_delay is None else self.max_delay

    def _down(self, shard: Shard, rank: int) -> Down:
        bits = self.model_bits if self.downlink == "difference" else 0
        return Down(shard.layout, bits, ("model", self.seed, rank))
