"""Double quantization (Yu, Wu, Huang 2019): AsyLPG, Sparse-AsyLPG, Acc-AsyLPG, and what they are compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hvd_compress.compressors.base import Compressor
from hvd_compress.compressors.quantize import LowPrecision
from hvd_compress.compressors.sparsify import Wangni
from hvd_compress.parameter_server.codecs import (
    Codec,
    DifferenceModel,
    FloatModel,
    Floats,
    GridModel,
    Model,
    Vector,
)
from hvd_compress.parameter_server.job import Plan
from hvd_compress.parameter_server.methods import AccAsyLPG, AsyLPG
from hvd_compress.parameter_server.roles import Shard
from hvd_compress.parameter_server.schedules import BoundedDelay, Schedule
from hvd_compress.parameter_server.worker import VarianceReduced

VARIANTS = ("asylpg", "sparse", "accelerated", "full-precision", "gradient-only", "model-only")
MODELS = ("difference", "grid")
STEP = 0.3  # in units of 1 / L
SIGMA = 2.0


@dataclass(frozen=True)
class DoubleQuantization:
    """The settings of one of the algorithms.

    Attributes:
        variant: "asylpg", "sparse" (Sparse-AsyLPG), "accelerated" (Acc-AsyLPG); or AsyLPG with parts switched off:
            "full-precision" (asynchronous SVRG), "gradient-only" and "model-only" quantized.
        bits: of a coordinate of the gradient, 2 to 12.
        model_bits: of a coordinate of the model's difference, 2 to 12; None for as many as the gradient's.
        model: "difference", Q of x - x~ with `model_bits`; or "grid", Q of x itself with the smallest number of bits
            that meets the precision condition, as in the paper.
        mu: of that condition, E||Q(x) - x||^2 <= mu ||x - x~||^2.
        budget: coordinates that Sparse-AsyLPG keeps on average, as a part of all.
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
        for name, low in (("step", 0.0), ("mu", 0.0)):
            value = getattr(self, name)
            if value is not None and not value > low:
                raise ValueError(f"{name} must be in ({low:g}, inf); got {value}")
        if not 0 <= self.theta <= 1:
            raise ValueError(f"theta must be in [0, 1]; got {self.theta}")
        for name, least in (("epoch_steps", 1), ("max_delay", 0), ("batch", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}; got {value}")

    @property
    def name(self) -> str:
        """The variant."""
        return self.variant

    @property
    def ahead(self) -> bool:
        """True, unless the delay is to be 0."""
        return self.max_delay != 0

    @property
    def workers_keep(self) -> bool:
        """False."""
        return False

    def check(self, plan: Plan) -> None:
        """Raise ValueError if the settings do not go with the plan."""
        BoundedDelay.check(self._most(plan), plan.roles)
        if self.step is None and plan.smoothness is None:
            raise ValueError("step must be given: this objective has no estimate of its smoothness")

    def eta(self, plan: Plan) -> float:
        """Return the step size, for Acc-AsyLPG times theta."""
        if self.step is not None:
            return self.step
        assert plan.smoothness is not None
        return (1 / SIGMA if self.variant == "accelerated" else STEP) / plan.smoothness

    def method(self, plan: Plan, shard: Shard, start: Vector, rank: int) -> AsyLPG:
        """Return a server's part."""
        args = (start, plan.regularizer, self.eta(plan), self._up(shard, ()), self._down(shard, rank))
        if self.variant == "accelerated":
            return AccAsyLPG(*args, theta=self.theta or None)
        return AsyLPG(*args)

    def answer(self, plan: Plan, shards: list[Shard], rank: int) -> VarianceReduced:
        """Return a worker's part."""
        return VarianceReduced(
            shards,
            lambda i, epoch: self._up(shards[i], (self.seed, rank, i, epoch)),
            [self._down(shard, rank) for shard in shards],
        )

    def schedule(self, plan: Plan) -> Callable[[], Schedule]:
        """Return what makes the schedule of an epoch."""
        steps = self.epoch_steps or max(1, round(2 * plan.rows / self.batch))
        return lambda: BoundedDelay(steps, self._most(plan))

    def _most(self, plan: Plan) -> int:
        return 4 * len(plan.roles.worker_ranks) if self.max_delay is None else self.max_delay

    def _up(self, shard: Shard, key: tuple[object, ...]) -> Codec:
        """Return the codec of a shard's gradient."""
        quantizer: Compressor = LowPrecision(self.bits)
        if self.variant in ("full-precision", "model-only"):
            quantizer = Floats()
        elif self.variant == "sparse":
            quantizer = Wangni(self.budget, values=quantizer)
        return Codec(quantizer, shard.layout, ("gradient", *key))

    def _down(self, shard: Shard, rank: int) -> Model:
        """Return how a shard of the model is sent."""
        if self.variant in ("full-precision", "gradient-only"):
            return FloatModel()
        if self.model == "grid":
            return GridModel(shard.layout, self.mu, ("model", self.seed, rank))
        bits = self.bits if self.model_bits is None else self.model_bits
        return DifferenceModel(Codec(LowPrecision(bits), shard.layout, ("model", self.seed, rank)))
