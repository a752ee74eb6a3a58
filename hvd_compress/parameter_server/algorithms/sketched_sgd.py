"""Sketched-SGD with servers (Ivkin et al. 2019): after the start nothing dense is sent in either direction."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hvd_compress.compressors import parse
from hvd_compress.compressors.base import AllReduce, Compressor, Contribution, Exchanging, Reduced
from hvd_compress.compressors.feedback import EF21, Feedback
from hvd_compress.compressors.indices import decode_indices, encode_indices, index_bytes
from hvd_compress.compressors.sketching import SketchedSGD
from hvd_compress.compressors.state import State
from hvd_compress.ops import Array, Ops
from hvd_compress.ops.numpy import NumpyOps
from hvd_compress.parameter_server.algorithms.common import (
    check_counts,
    check_positive,
    learning_rate,
    load_states,
    saved_states,
    vector_of,
)
from hvd_compress.parameter_server.codecs import Bytes, Changes, Malformed, Vector
from hvd_compress.parameter_server.objectives import Objective, Regularizer
from hvd_compress.parameter_server.protocols import JobPlan, ServerPart, StepSchedule, WorkerPart
from hvd_compress.parameter_server.runtime.roles import Shard
from hvd_compress.parameter_server.runtime.schedules import Synchronous
from hvd_compress.reduction.step import Step

PART_BYTES = 4


class Candidates(NamedTuple):
    """What a server reads from the sum of the workers' sketches, and sends them.

    Attributes:
        indices: of the candidates, ascending.
        part: the invertible sketch's next part of the coordinates to send; None for other sketches.
    """

    indices: NDArray[np.int64]
    part: Array | None


@dataclass(frozen=True)
class ServedSketchedSGD(SketchedSGD):
    """The worker's side of `SketchedSGD`: a server sums the sketches, and the worker is sent what it would read there.

    Its first collective is answered with `Candidates`, its second with the coordinates that were applied.
    """

    def reduce(self, ops: Ops, vector: Array, state: State) -> Exchanging:
        """Send the sketch, then the candidates' values; what was applied is what was sent."""
        candidates = yield AllReduce(self.sketch(ops, vector, state).table)
        if candidates.part is not None:
            state.shared["part"] = candidates.part
        own = ops.take(vector, candidates.indices)
        applied = yield AllReduce(own)
        own = ops.take(own, ops.searchsorted(candidates.indices, applied) - 1)
        return Reduced(vector[:0], Contribution(ops, lambda: own, applied))


class ServerSketch(ServerPart):
    """The server's part, for one shard.

    In each step:

    1. from the sum of all sketches, it reads the candidates, and sends them: indices alone;
    2. of their exact values' mean it applies the k largest:  x <- x - eta mean;
    3. it sends the coordinates that have changed, as each worker's next model.

    Args:
        start: x at the beginning; it is not modified.
        rate: eta of each step of the job.
        compressor: the sketch, without feedback.
        state: the compressor's; it is the workers' as far as these share it.
    """

    wants_gradient = False

    def __init__(self, start: Vector, rate: Callable[[int], float], compressor: SketchedSGD, state: State) -> None:
        self.snapshot, self.rate, self.compressor, self.state_of = start, rate, compressor, state
        self.ops, self.x = NumpyOps(), start.copy()
        self.changes = Changes(start.size)
        self._everywhere = np.arange(start.size)
        self._chosen: NDArray[np.int64] | None = None
        self._applied: NDArray[np.int64] = np.zeros(0, np.int64)
        self._known: dict[int, int] = {}  # the step that a worker's model is of

    def start(self, worker: int) -> Bytes:
        """Return what gives a worker x: the last step's changes, or at its start all of it."""
        return self.model(worker)

    def model(self, worker: int) -> Bytes:
        """Return the coordinates of x that the worker does not have."""
        step, known = self.state_of.step, self._known.get(worker)
        self._known[worker] = step
        if known is None:
            return self.changes.encode(self.x, self._everywhere)
        assert known >= step - 1, "a worker has missed a step"
        return self.changes.encode(self.x, self._applied if known < step else self._applied[:0])

    def decode(self, worker: int, payload: Bytes) -> Array:
        now, expected = self._now, self.answer_bytes()
        if payload.nbytes != expected:
            raise Malformed(f"{now.name}: {payload.nbytes} bytes came in; expected {expected}")
        dtype = np.int32 if now.invertible and self._chosen is None else np.float32
        numbers = payload.view(dtype)
        if dtype == np.float32 and not np.isfinite(numbers).all():
            raise Malformed(f"{now.name}: numbers that are not finite came in")
        return numbers

    def answer_bytes(self) -> int:
        """Return the bytes of the sketch or of the candidates' values, whichever is awaited."""
        split = self._now.split(self.x.size)
        return 4 * (split.rows * split.columns if self._chosen is None else self._chosen.size)

    def ask(self, answers: Sequence[Array]) -> Bytes | None:
        """Return the candidates, which are read from the sum of the answers if these are sketches."""
        if self._chosen is not None:
            return None
        compressor, state, ops = self._now, self.state_of, self.ops
        sketch = compressor.empty(ops, state)
        total = np.sum(answers, axis=0, dtype=answers[0].dtype)
        sketch.table = total if compressor.invertible else total / np.float32(len(answers))
        self._chosen = compressor.candidates(ops, sketch, state)
        part = ops.to_bytes(state.shared["part"]) if compressor.invertible else np.zeros(0, np.uint8)
        return np.concatenate([part, encode_indices(ops, self._chosen, self.x.size)])

    def step(self, answers: Sequence[Array]) -> None:
        """Apply the largest of the answers' mean, if these are values."""
        chosen, split = self._chosen, self._now.split(self.x.size)
        assert chosen is not None
        mean = np.sum(answers, axis=0, dtype=np.float32) / np.float32(len(answers))
        if split.k < split.candidates:
            best = self.ops.top_k(mean, split.k)
            chosen, mean = chosen[best], mean[best]
        self.x[chosen] -= np.float32(self.rate(self.state_of.step)) * mean
        self._applied, self._chosen = chosen, None
        self.state_of.commit()

    def end(self) -> None:
        self.snapshot = self.x.copy()

    def state(self) -> dict[str, Any]:
        return {"snapshot": self.snapshot} | saved_states([self.state_of])

    def load(self, state: Mapping[str, Any]) -> None:
        self.snapshot = vector_of(state, "snapshot", self.x.size)
        self.x = self.snapshot.copy()
        load_states([self.state_of], {name: value for name, value in state.items() if name != "snapshot"})

    @property
    def _now(self) -> SketchedSGD:
        now = self.compressor.at(self.state_of.step)
        assert isinstance(now, SketchedSGD)
        return now


class WorkerSketch(WorkerPart):
    """The worker's part: the gradient of a batch, and of h's squared norm, in a sketch, with feedback.

    Args:
        compressor: the sketch, with its feedback.
        regularizer: h, without an l1 norm: its gradient is added to the batch's.
        shards: of the model.
        states: the compressor's, of each shard.
    """

    wants_gradient = False
    rounds = 2

    def __init__(
        self, compressor: Compressor, regularizer: Regularizer, shards: list[Shard], states: list[State]
    ) -> None:
        self.bare = compressor.bare
        assert isinstance(self.bare, SketchedSGD)
        served = ServedSketchedSGD(
            **{item.name: getattr(self.bare, item.name) for item in dataclasses.fields(self.bare)}
        )
        self.compressor = dataclasses.replace(compressor, inner=served) if isinstance(compressor, Feedback) else served
        self.l2, self.shards, self.states = np.float32(regularizer.l2), shards, states
        self.ops = NumpyOps()
        self.changes = [Changes(shard.layout.size) for shard in shards]
        self.copies = [np.zeros(shard.layout.size, np.float32) for shard in shards]
        self._steps: list[Step | None] = [None] * len(shards)  # under way, of each shard

    def state(self) -> dict[str, Any]:
        return saved_states(self.states)

    def load(self, state: Mapping[str, Any]) -> None:
        load_states(self.states, state)

    def join(self, state: Mapping[str, Any]) -> None:
        load_states(self.states, state, own=False)

    def start(self, shard: int, payload: Bytes) -> Vector:
        """Return the snapshot: this worker's copy, brought up to date."""
        return self.model(shard, payload)

    def model(self, shard: int, payload: Bytes) -> Vector:
        """Return this worker's copy, brought up to date; what has changed is what the last step applied."""
        applied = self.changes[shard].apply(self.copies[shard], payload)
        step, self._steps[shard] = self._steps[shard], None
        if step is not None:
            step.feed(applied)
            assert step.result is not None
            self.states[shard].commit()
        return self.copies[shard]

    def answer(self, x: Vector, part: Objective, rows: NDArray[np.int64]) -> list[Bytes]:
        _, gradient = part.gradient(x, rows)
        gradient *= np.float32(1 / len(rows))
        if self.l2:
            gradient += self.l2 * x
        steps = [
            Step(self.compressor, self.ops, gradient[shard.slice].copy(), state)
            for shard, state in zip(self.shards, self.states, strict=True)
        ]
        self._steps = [*steps]
        return [self._pending(step) for step in steps]

    def reply(self, shard: int, payload: Bytes) -> Bytes:
        """Return the exact values of the candidates."""
        step, state, ops = self._steps[shard], self.states[shard], self.ops
        now = self.bare.at(state.step)
        assert isinstance(now, SketchedSGD)
        size, split = state.layout.size, now.split(state.layout.size)
        cut = PART_BYTES if now.invertible else 0
        if step is None or payload.nbytes != cut + index_bytes(size, split.candidates):
            raise Malformed(f"{now.name}: {payload.nbytes} bytes of candidates came in, which are not awaited")
        part = ops.from_bytes(payload[:cut], "float32") if cut else None
        try:
            indices = decode_indices(ops, payload[cut:], size, split.candidates)
        except ValueError as error:
            raise Malformed(str(error)) from error
        step.feed(Candidates(indices, part))
        return self._pending(step)

    def _pending(self, step: Step) -> Bytes:
        """Return what a step sends next."""
        assert isinstance(step.pending, AllReduce)
        return self.ops.to_bytes(step.pending.array)


@dataclass(frozen=True)
class SketchedSGDServer:
    """The settings of a job of Sketched-SGD with a server.

    Attributes:
        compression: spec of ``sketched_sgd``, with a second round: ``sketched_sgd(budget=0.05)``.
        lr: learning rate.
        decay: whether it falls to 0 linearly over `epochs`.
        epochs: most epochs.
        epoch_steps: steps of an epoch; None for one pass over the rows.
        batch: rows of a worker's batch, for the number of steps.
        seed: of the random numbers.

    Raises:
        ValueError: if a setting is outside its range.
    """

    compression: str = "sketched_sgd"
    lr: float = 0.1
    decay: bool = False
    epochs: int = 50
    epoch_steps: int | None = None
    batch: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        compressor = parse(self.compression)
        if not isinstance(compressor.bare, SketchedSGD) or isinstance(compressor, EF21):
            raise ValueError(f"compression must be sketched_sgd, without feedback=ef21; got {self.compression!r}")
        if compressor.bare.estimates:
            raise ValueError("compression must have a second round, p2 of at least 1; got p2=0")
        check_positive(self, "lr")
        check_counts(self, epochs=0, epoch_steps=1, batch=1)

    @property
    def name(self) -> str:
        return "sketched-sgd"

    @property
    def ahead(self) -> bool:
        """False: all workers have the same model."""
        return False

    @property
    def workers_keep(self) -> bool:
        return True

    def check(self, plan: JobPlan) -> None:
        if plan.regularizer.l1:
            raise ValueError(f"l1 must be 0, for its proximal step changes all coordinates; got {plan.regularizer.l1}")

    def server_part(self, plan: JobPlan, shard: Shard, start: Vector, rank: int) -> ServerSketch:
        rate = learning_rate(self.lr, self.epochs * self._steps(plan) if self.decay else 0)
        bare = parse(self.compression).bare
        assert isinstance(bare, SketchedSGD)
        return ServerSketch(start, rate, bare, self._state(plan, shard, rank))

    def worker_part(self, plan: JobPlan, shards: list[Shard], rank: int) -> WorkerSketch:
        states = [self._state(plan, shard, rank) for shard in shards]
        return WorkerSketch(parse(self.compression), plan.regularizer, shards, states)

    def schedule(self, plan: JobPlan) -> Callable[[], StepSchedule]:
        steps = self._steps(plan)
        return lambda: Synchronous(steps)

    def _steps(self, plan: JobPlan) -> int:
        return self.epoch_steps or max(1, round(plan.rows / (self.batch * len(plan.roles.worker_ranks))))

    def _state(self, plan: JobPlan, shard: Shard, rank: int) -> State:
        return State(shard.layout, rank=rank, workers=len(plan.roles.worker_ranks), seed=self.seed)
