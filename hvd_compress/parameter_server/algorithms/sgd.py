"""Stochastic gradient descent with servers: gradients come up through any compressor that sends one payload."""

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
from hvd_compress.ops import Ops
from hvd_compress.ops.layout import Layout
from hvd_compress.ops.numpy import NumpyOps
from hvd_compress.parameter_server.algorithms.common import (
    check_counts,
    check_positive,
    delay_bound,
    learning_rate,
    load_states,
    saved_states,
    vector_of,
)
from hvd_compress.parameter_server.codecs import (
    Bytes,
    Changes,
    Codec,
    Decoded,
    Vector,
    affine,
    one_payload,
    read_floats,
)
from hvd_compress.parameter_server.objectives import Objective, Regularizer
from hvd_compress.parameter_server.protocols import JobPlan, ServerPart, StepSchedule, WorkerPart
from hvd_compress.parameter_server.runtime.roles import Shard
from hvd_compress.parameter_server.runtime.schedules import BoundedDelay, Synchronous
from hvd_compress.reduction.step import Step

DOWNLINKS = ("changes", "difference")


class Downlink:
    """Brings workers' copies of a shard up to date: it knows what each worker has.

    With "changes" a worker is sent the coordinates that have changed since its last model, exactly. With "difference"
    it is sent Q(x - y), where y is what it has: the error of Q is part of the next difference.

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
        """Begin an epoch, in which every worker has the snapshot."""
        self._epoch = epoch
        self._codecs.clear()
        self._changed[:], self._steps = 0, 0
        self._known.clear()
        self._copies.clear()

    def change(self, indices: NDArray[np.int64] | None) -> None:
        """Note that a step has changed these coordinates; None stands for all of them."""
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
        """Update a worker's copy x, in place, by what came in; Malformed if it is nothing that was sent."""
        if self.bits:
            self._codec(0).decode(payload).add_to(x, 1.0)
        else:
            self.changes.apply(x, payload)

    def _codec(self, worker: int) -> Codec:
        """Return a worker's codec: each has its own, so that random numbers do not depend on the workers' order."""
        if worker not in self._codecs:
            self._codecs[worker] = Codec(LowPrecision(self.bits), self.layout, (*self.key, worker, self._epoch))
        return self._codecs[worker]


class ServerSGD(ServerPart):
    """The server's part: x <- prox_(eta h)(x - eta mean of the answers), of one worker or of all.

    Args:
        start: x at the beginning; it is not modified.
        regularizer: h.
        rate: eta of each step of the job.
        compressor: of gradients, with its feedback or without.
        layout: of the shard.
        down: sends models.
    """

    wants_gradient = False

    def __init__(
        self,
        start: Vector,
        regularizer: Regularizer,
        rate: Callable[[int], float],
        compressor: Compressor,
        layout: Layout,
        down: Downlink,
    ) -> None:
        self.snapshot = start
        self.regularizer, self.rate, self.down = regularizer, rate, down
        self.compressor, self.layout = one_payload(compressor).bare, layout
        self.x = start.copy()
        self._codecs: dict[Compressor, Codec] = {}
        self._steps = 0
        self._answers: dict[int, int] = {}  # of each worker: its compressor's schedules are at that step

    def begin(self, epoch: int, gradient: Vector | None) -> None:
        self.down.begin(epoch)

    def start(self, worker: int) -> Bytes:
        return self.snapshot.view(np.uint8)

    def model(self, worker: int) -> Bytes:
        return self.down.encode(worker, self.x, self.snapshot)

    def decode(self, worker: int, payload: Bytes) -> Decoded:
        count = self._answers.get(worker, 0)
        compressor = self.compressor.at(count)
        codec = self._codecs.get(compressor)
        if codec is None:
            self._codecs = {compressor: Codec(compressor, self.layout)}
            codec = self._codecs[compressor]
        decoded = codec.decode(payload)
        self._answers[worker] = count + 1
        return decoded

    def step(self, answers: Sequence[Decoded]) -> None:
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
        self.snapshot = self.x.copy()

    def state(self) -> dict[str, Any]:
        """Return x, the steps done, and how many answers each worker has sent."""
        answers = np.array(sorted(self._answers.items()), np.int64).reshape(-1, 2)
        return {"snapshot": self.snapshot, "steps": self._steps, "answers": answers}

    def load(self, state: Mapping[str, Any]) -> None:
        self.snapshot = vector_of(state, "snapshot", self.x.size)
        self.x = self.snapshot.copy()
        self._steps = int(state["steps"])
        self._answers = {int(worker): int(count) for worker, count in state["answers"]}

    def join(self, worker: int, like: int) -> None:
        self._answers[worker] = self._answers.get(like, 0)


class WorkerSGD(WorkerPart):
    """A worker's part: the mean gradient of a batch through a compressor, with what feedback keeps.

    Args:
        compressor: of gradients.
        shards: of the model.
        down: receives the models of each.
        rank, workers: who this is, of how many.
        seed: of the compressor's random numbers.
    """

    wants_gradient = False

    def __init__(
        self, compressor: Compressor, shards: list[Shard], down: list[Downlink], rank: int, workers: int, seed: int
    ) -> None:
        self.shards, self.compressor, self.down = shards, one_payload(compressor), down
        self.ops = NumpyOps()
        self.states = [State(s.layout, rank=rank, workers=workers, seed=seed) for s in shards]
        self.copies: list[Vector] = []

    def begin(self, epoch: int, snapshot: Vector) -> None:
        """Keep the snapshot as this worker's copy of the model."""
        self.copies = [snapshot[shard.slice].copy() for shard in self.shards]
        for down in self.down:
            down.begin(epoch)

    def state(self) -> dict[str, Any]:
        return saved_states(self.states)

    def load(self, state: Mapping[str, Any]) -> None:
        load_states(self.states, state)

    def join(self, state: Mapping[str, Any]) -> None:
        load_states(self.states, state, own=False)

    def start(self, shard: int, payload: Bytes) -> Vector:
        return read_floats(payload, self.shards[shard].layout.size)

    def model(self, shard: int, payload: Bytes) -> Vector:
        """Return this worker's copy of the model, brought up to date."""
        self.down[shard].apply(self.copies[shard], payload)
        return self.copies[shard]

    def answer(self, x: Vector, part: Objective, rows: NDArray[np.int64]) -> list[Bytes]:
        _, gradient = part.gradient(x, rows)
        gradient *= np.float32(1 / len(rows))
        return [
            payload_alone(self.compressor, self.ops, gradient[shard.slice].copy(), state)
            for shard, state in zip(self.shards, self.states, strict=True)
        ]


def payload_alone(compressor: Compressor, ops: Ops, vector: Vector, state: State) -> Bytes:
    """Return the one payload of a step, with which all of the compressor's state is written, and commit the step."""
    sent = Step(compressor, ops, vector, state).pending
    assert isinstance(sent, AllGather), f"{compressor.name} sends no payload"
    state.commit()
    return sent.payload


@dataclass(frozen=True)
class SGD:
    """The settings of a job of stochastic gradient descent.

    Attributes:
        compression: spec of the compressor of gradients.
        asynchronous: whether every answer is a step, at most `max_delay` late; else a step takes one of every worker.
        downlink: how models come down: "changes", the exact values of the coordinates that have changed, or
            "difference", the quantized difference from what the worker has.
        model_bits: of a coordinate of the difference, 2 to 12.
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
        check_positive(self, "lr")
        check_counts(self, epochs=0, epoch_steps=1, max_delay=0, batch=1)

    @property
    def name(self) -> str:
        return "asynchronous sgd" if self.asynchronous else "sgd"

    @property
    def ahead(self) -> bool:
        return self.asynchronous and self.max_delay != 0

    @property
    def workers_keep(self) -> bool:
        return True

    def check(self, plan: JobPlan) -> None:
        if self.asynchronous:
            BoundedDelay.check(delay_bound(self.max_delay, plan), plan.roles)

    def server_part(self, plan: JobPlan, shard: Shard, start: Vector, rank: int) -> ServerSGD:
        rate = learning_rate(self.lr, self.epochs * self._steps(plan) if self.decay else 0)
        down = self._down(shard, rank)
        return ServerSGD(start, plan.regularizer, rate, parse(self.compression), shard.layout, down)

    def worker_part(self, plan: JobPlan, shards: list[Shard], rank: int) -> WorkerSGD:
        workers = len(plan.roles.worker_ranks)
        down = [self._down(shard, rank) for shard in shards]
        return WorkerSGD(parse(self.compression), shards, down, rank, workers, self.seed)

    def schedule(self, plan: JobPlan) -> Callable[[], StepSchedule]:
        steps = self._steps(plan)
        return lambda: (
            BoundedDelay(steps, delay_bound(self.max_delay, plan)) if self.asynchronous else Synchronous(steps)
        )

    def _steps(self, plan: JobPlan) -> int:
        rows = self.batch if self.asynchronous else self.batch * len(plan.roles.worker_ranks)
        return self.epoch_steps or max(1, round(plan.rows / rows))

    def _down(self, shard: Shard, rank: int) -> Downlink:
        bits = self.model_bits if self.downlink == "difference" else 0
        return Downlink(shard.layout, bits, ("model", self.seed, rank))
