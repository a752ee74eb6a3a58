"""Double quantization (Yu, Wu, Huang 2019): AsyLPG, Sparse-AsyLPG, Acc-AsyLPG, and what they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvd_compress.compressors.base import Compressor
from hvd_compress.compressors.quantize import LowPrecision
from hvd_compress.compressors.sparsify import Wangni
from hvd_compress.parameter_server.algorithms.common import check_counts, check_positive, delay_bound, vector_of
from hvd_compress.parameter_server.codecs import (
    Bytes,
    Codec,
    Decoded,
    DifferenceModel,
    FloatModel,
    Floats,
    GridModel,
    ModelCodec,
    Vector,
    affine,
    read_floats,
)
from hvd_compress.parameter_server.objectives import Objective, Regularizer
from hvd_compress.parameter_server.protocols import JobPlan, ServerPart, StepSchedule, WorkerPart
from hvd_compress.parameter_server.runtime.roles import Shard
from hvd_compress.parameter_server.runtime.schedules import BoundedDelay

VARIANTS = ("asylpg", "sparse", "accelerated", "full-precision", "gradient-only", "model-only")
MODELS = ("difference", "grid")
STEP = 0.3  # default step size, in units of 1 / L
SIGMA = 2.0  # default of Acc-AsyLPG: eta theta = 1 / (sigma L)


class AsyLPG(ServerPart):
    """Asynchronous low-precision gradient, variance-reduced (Yu, Wu, Huang 2019, algorithm 1); the server's part.

    1. grad f(x~), of all rows, comes from the workers.
    2. A worker is sent Q_x(x), and sends back Q(a), a = grad f_B(Q_x(x)) - grad f_B(x~) of a batch B:
       u = Q(a) + grad f(x~);  x <- prox_(eta h)(x - eta u).
    3. x~ <- x.

    With sparsified gradients it is Sparse-AsyLPG (algorithm 2 there), with floats both ways asynchronous SVRG.

    Args:
        start: x~ of the first epoch; it is not modified.
        regularizer: h.
        step: eta.
        up: how gradients come in.
        down: how the model goes out.
    """

    wants_gradient = True

    def __init__(self, start: Vector, regularizer: Regularizer, step: float, up: Codec, down: ModelCodec) -> None:
        self.snapshot = start
        self.regularizer, self.eta = regularizer, step
        self.up, self.down = up, down
        self.x = start.copy()
        self.gradient = start

    def begin(self, epoch: int, gradient: Vector | None) -> None:
        assert gradient is not None
        self.gradient = gradient

    def start(self, worker: int) -> Bytes:
        return self.snapshot.view(np.uint8)

    def model(self, worker: int) -> Bytes:
        return self.down.encode(self.x, self.snapshot)

    def decode(self, worker: int, payload: Bytes) -> Decoded:
        return self.up.decode(payload)

    def step(self, answers: Sequence[Decoded]) -> None:
        self._descend(self.x, answers)

    def end(self) -> None:
        """Let x~ <- x."""
        self.snapshot = self.x.copy()

    def state(self) -> dict[str, Any]:
        return {"snapshot": self.snapshot}

    def load(self, state: Mapping[str, Any]) -> None:
        self.snapshot = vector_of(state, "snapshot", self.x.size)
        self.x = self.snapshot.copy()

    def _descend(self, x: Vector, answers: Sequence[Decoded]) -> None:
        """Let x <- prox_(eta h)(x - eta grad f(x~) - eta Q(a))."""
        affine(x, 1.0, self.gradient, -self.eta, x)
        for answer in answers:
            answer.add_to(x, -self.eta / len(answers))
        self.regularizer.prox(x, self.eta)


class AccAsyLPG(AsyLPG):
    """The accelerated algorithm (Yu, Wu, Huang 2019, algorithm 3): one momentum, coupled to the snapshot.

    x = x~ + theta (y - x~), and gradients are taken at Q_x(x);  y <- prox_(eta h)(y - eta u);  x~ <- the mean of the
    epoch's x. y is carried from epoch to epoch, and eta = 1 / (sigma L theta).

    Args:
        step: eta * theta, that is 1 / (sigma L).
        theta: constant, for a strongly convex P; None for 2 / (s + 2) in epoch s.
    """

    def __init__(
        self,
        start: Vector,
        regularizer: Regularizer,
        step: float,
        up: Codec,
        down: ModelCodec,
        theta: float | None = None,
    ) -> None:
        super().__init__(start, regularizer, step, up, down)
        self.constant, self.product = theta, step
        self.theta = theta or 1.0
        self.y = start.copy()
        self._carried = self.y.copy()
        self._sum, self._steps = np.zeros_like(start), 0

    def begin(self, epoch: int, gradient: Vector | None) -> None:
        """Set theta and eta, and x."""
        super().begin(epoch, gradient)
        self.theta = self.constant or 2 / (epoch + 2)
        self.eta = self.product / self.theta
        self._couple()
        self._sum[:], self._steps = 0, 0

    def step(self, answers: Sequence[Decoded]) -> None:
        """Step y, and x with it."""
        self._descend(self.y, answers)
        self._couple()
        affine(self._sum, 1.0, self.y, 1.0, self._sum)
        self._steps += 1

    def end(self) -> None:
        """Let x~ <- the mean of x~ + theta (y - x~)."""
        if self._steps:
            mean = self._sum / np.float32(self._steps)
            self.snapshot = affine(self.snapshot, 1 - self.theta, mean, self.theta)
        self._carried = self.y.copy()

    def state(self) -> dict[str, Any]:
        return {"snapshot": self.snapshot, "y": self._carried}

    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        self._carried = vector_of(state, "y", self.x.size)
        self.y = self._carried.copy()

    def _couple(self) -> None:
        """Let x <- x~ + theta (y - x~)."""
        affine(self.snapshot, 1 - self.theta, self.y, self.theta, self.x)


class VarianceReduced(WorkerPart):
    """The worker's part of all variants: a = grad f_B(Q_x(x)) - grad f_B(x~), sent as Q(a) (see `AsyLPG`).

    Args:
        shards: of the model.
        up: makes the codec of a shard's gradient, of (shard, epoch).
        down: how a shard's model comes in.
    """

    wants_gradient = True

    def __init__(self, shards: list[Shard], up: Callable[[int, int], Codec], down: list[ModelCodec]) -> None:
        self.shards, self._new, self.down = shards, up, down
        self.up: list[Codec] = []
        self.snapshot: Vector = np.zeros(0, np.float32)

    def begin(self, epoch: int, snapshot: Vector) -> None:
        self.snapshot = snapshot
        self.up = [self._new(i, epoch) for i in range(len(self.shards))]

    def start(self, shard: int, payload: Bytes) -> Vector:
        return read_floats(payload, self.shards[shard].layout.size)

    def model(self, shard: int, payload: Bytes) -> Vector:
        return self.down[shard].decode(payload, self.snapshot[self.shards[shard].slice])

    def answer(self, x: Vector, part: Objective, rows: NDArray[np.int64]) -> list[Bytes]:
        _, here = part.gradient(x, rows)
        _, there = part.gradient(self.snapshot, rows)
        a = affine(here, 1 / len(rows), there, -1 / len(rows), here)
        return [up.encode(a[shard.slice]) for up, shard in zip(self.up, self.shards, strict=True)]


@dataclass(frozen=True)
class DoubleQuantization:
    """The settings of AsyLPG, one of its variants, or what they are compared with.

    Attributes:
        variant: "asylpg", "sparse" (Sparse-AsyLPG), "accelerated" (Acc-AsyLPG); or AsyLPG with parts switched off:
            "full-precision" (asynchronous SVRG), "gradient-only" and "model-only" quantized.
        bits: of a coordinate of the gradient, 2 to 12.
        model_bits: of a coordinate of the model's difference, 2 to 12; None for as many as the gradient's.
        model: "difference", Q of x - x~ with `model_bits`; or "grid", Q of x itself with the smallest number of bits
            that meets the precision condition, as in the paper.
        mu: of that condition, E||Q(x) - x||^2 <= mu ||x - x~||^2.
        budget: share of the coordinates that Sparse-AsyLPG keeps on average.
        step: eta (of Acc-AsyLPG eta * theta); None for 0.3 / L (of Acc-AsyLPG 1 / (2 L)).
        theta: of Acc-AsyLPG, for a strongly convex P; 0 for 2 / (s + 2) in epoch s.
        epoch_steps: steps of an epoch; None for two passes over the rows.
        max_delay: most steps between a model and the answer to it; None for 4 for each worker.
        batch: rows of a batch, for the number of steps.
        seed: of the random numbers.

    Raises:
        ValueError: if a setting is outside its range.
    """

    variant: str = "asylpg"
    bits: int = 8
    model_bits: int | None = None
    model: str = "difference"
    mu: float = 0.1
    budget: float = 0.05
    step: float | None = None
    theta: float = 0.5
    epoch_steps: int | None = None
    max_delay: int | None = None
    batch: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (("variant", VARIANTS), ("model", MODELS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}")
        LowPrecision(self.bits)
        LowPrecision(self.bits if self.model_bits is None else self.model_bits)
        Wangni(self.budget)
        check_positive(self, "step", "mu")
        if not 0 <= self.theta <= 1:
            raise ValueError(f"theta must be in [0, 1]; got {self.theta}")
        check_counts(self, epoch_steps=1, max_delay=0, batch=1)

    @property
    def name(self) -> str:
        return self.variant

    @property
    def ahead(self) -> bool:
        return self.max_delay != 0

    @property
    def workers_keep(self) -> bool:
        return False

    def check(self, plan: JobPlan) -> None:
        BoundedDelay.check(delay_bound(self.max_delay, plan), plan.roles)
        if self.step is None and not plan.smoothness:
            why = "has no estimate of its smoothness" if plan.smoothness is None else "is flat: its smoothness is 0"
            raise ValueError(f"step must be given: this objective {why}")

    def eta(self, plan: JobPlan) -> float:
        """Return the step size, for Acc-AsyLPG times theta."""
        if self.step is not None:
            return self.step
        assert plan.smoothness is not None
        return (1 / SIGMA if self.variant == "accelerated" else STEP) / plan.smoothness

    def server_part(self, plan: JobPlan, shard: Shard, start: Vector, rank: int) -> AsyLPG:
        args = (start, plan.regularizer, self.eta(plan), self._up(shard, ()), self._down(shard, rank))
        if self.variant == "accelerated":
            return AccAsyLPG(*args, theta=self.theta or None)
        return AsyLPG(*args)

    def worker_part(self, plan: JobPlan, shards: list[Shard], rank: int) -> VarianceReduced:
        return VarianceReduced(
            shards,
            lambda i, epoch: self._up(shards[i], (self.seed, rank, i, epoch)),
            [self._down(shard, rank) for shard in shards],
        )

    def schedule(self, plan: JobPlan) -> Callable[[], StepSchedule]:
        steps = self.epoch_steps or max(1, round(2 * plan.rows / self.batch))
        return lambda: BoundedDelay(steps, delay_bound(self.max_delay, plan))

    def _up(self, shard: Shard, key: tuple[object, ...]) -> Codec:
        """Return the codec of a shard's gradient."""
        quantizer: Compressor = LowPrecision(self.bits)
        if self.variant in ("full-precision", "model-only"):
            quantizer = Floats()
        elif self.variant == "sparse":
            quantizer = Wangni(self.budget, values=quantizer)
        return Codec(quantizer, shard.layout, ("gradient", *key))

    def _down(self, shard: Shard, rank: int) -> ModelCodec:
        """Return how a shard of the model is sent."""
        if self.variant in ("full-precision", "gradient-only"):
            return FloatModel()
        if self.model == "grid":
            return GridModel(shard.layout, self.mu, ("model", self.seed, rank))
        bits = self.bits if self.model_bits is None else self.model_bits
        return DifferenceModel(Codec(LowPrecision(bits), shard.layout, ("model", self.seed, rank)))
