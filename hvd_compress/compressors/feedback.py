"""Error correction over time: wrappers around any compressor that is a contraction."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from hvd_compress.compressors.base import AllReduce, Compressor, Exchanging, Reduced, setting
from hvd_compress.compressors.cast import NoCompression
from hvd_compress.compressors.state import State
from hvd_compress.ops import Array, Ops
from hvd_compress.ops.by_kernel import by_kernel
from hvd_compress.ops.layout import Layout


@dataclass(frozen=True)
class Feedback(Compressor):
    """A compressor that remembers what it did not send, and sends it later."""

    overwrites: ClassVar[bool] = True

    inner: Compressor

    def __post_init__(self) -> None:
        """Raise ValueError for a compressor for which feedback makes no sense."""
        super().__post_init__()
        self.inner.check_feedback()

    @property
    def bare(self) -> Compressor:
        return self.inner

    @property
    def collectives(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.inner.collectives

    @property
    def whole_gradient(self) -> bool:
        return self.inner.whole_gradient

    @property
    def small_too(self) -> bool:  # type: ignore[override]
        return self.inner.small_too

    @property
    def spreads(self) -> bool:  # type: ignore[override]
        return self.inner.spreads

    @property
    def varying(self) -> bool:  # type: ignore[override]
        return self.inner.varying

    def payload_bits(self, layout: Layout, kept: int | None = None) -> int:
        return self.inner.payload_bits(layout, kept)


class WithResidual(Feedback):
    """Feedback whose mean is what was taken out of the residuals."""

    gives_back: ClassVar[bool] = True

    def withhold(self, ops: Ops, mean: Array, places: Iterable[slice], state: State) -> None:
        """Add the mean to each worker's residual: their mean grows by what was taken out of it."""
        for place in places:
            state.local["residual"] = ops.add_at(state.local["residual"], place, mean[place], 1.0)


@dataclass(frozen=True)
class ErrorFeedback(WithResidual):
    """Add to each gradient what was not sent before (Seide et al. 2014; Karimireddy et al. 2019, algorithm 2).

    p = g + e; exchange C(p); e <- p - sent. In a spec: ``feedback=ef``, the default of every biased method.
    """

    name: ClassVar[str] = "ef"

    def reduce(self, ops: Ops, vector: Array, state: State) -> Exchanging:

        def keep(rest: Array, sent: Array | None) -> None:
            state.local["residual"] = rest

        return self.inner.reduce_rest(ops, vector, state.local.get("residual"), state, keep)


@dataclass(frozen=True)
class EF21(Feedback):
    """Send what has changed since the others' estimate of this worker's gradient (Richtarik et al. 2021, algorithm 2).

    c = C(g - h); h <- h + c, kept by the worker; the mean of all h, kept by everyone, is the gradient that is applied.
    Unlike error feedback it needs no bound on the gradients. In a spec: ``feedback=ef21``.
    """

    name: ClassVar[str] = "ef21"
    coupled: ClassVar[tuple[str, ...]] = ("estimate",)

    def reduce(self, ops: Ops, vector: Array, state: State) -> Exchanging:
        own, mean = state.local.get("estimate"), state.shared.get("estimate")
        if own is None:
            own, mean = ops.zeros_like(vector), ops.zeros_like(vector)
        reduced = yield from self.inner.reduce(ops, ops.affine(vector, 1.0, own, -1.0, vector), state)
        assert reduced.sent is not None
        state.local["estimate"] = reduced.sent.add_to(ops.copy(own))
        state.shared["estimate"] = ops.affine(mean, 1.0, reduced.mean, 1.0)
        return Reduced(ops.copy(state.shared["estimate"]), None)


@by_kernel(
    lambda ops, kernels, u, momentum, g, v, nesterov: (g, kernels.accumulate(u, momentum, g, v, nesterov)),
    u="float32",
    g="float32",
    v="float32",
)
def accumulate(ops: Ops, u: Array, momentum: float, g: Array, v: Array, nesterov: bool) -> tuple[Array, Array]:
    """Return u' = m u + g, for which g is overwritten, and v + u'; by Nesterov v + m u' + g."""
    if not nesterov:
        u = ops.affine(u, momentum, g, 1.0, g)
        return u, ops.affine(v, 1.0, u, 1.0)
    u = ops.affine(u, momentum, g, 1.0)
    return u, ops.affine(v, 1.0, ops.affine(u, momentum, g, 1.0, g), 1.0)


@dataclass(frozen=True)
class MomentumCorrection(WithResidual):
    """Accumulate the momentum, not the gradient, and send of the sum (DGC: Lin et al. 2018, section 3.1 to 3.3).

    u <- m u + g; v <- v + u; exchange C(v); v <- v - sent. With `nesterov`, v <- v + m u + g. With `masking`, u <- 0 at
    the coordinates sent, so that a delayed gradient does not add its momentum twice. The optimizer itself must have no
    momentum. In a spec: ``feedback=momentum(momentum=0.9)``.

    Attributes:
        momentum: m, in [0, 1).
        nesterov: look one step ahead.
        masking: whether u is masked; for methods that send only some of the coordinates.
        clip: largest norm of the gradient, to which each of W workers clips its own, divided by the root of W
            (section 3.2 there); the norm is that of the vector, and 0 stands for no clipping.
    """

    name: ClassVar[str] = "momentum"

    momentum: float = setting(0.9, low=0, high=0.9999)
    nesterov: bool = setting(False)
    masking: bool = setting(True)
    clip: float = setting(0.0, low=0)

    @property
    def plain(self) -> Compressor:
        """The momentum of the mean."""
        return MomentumOfMean(self.momentum, self.nesterov)

    def __post_init__(self) -> None:
        """Refuse masking where every coordinate is sent."""
        super().__post_init__()
        if self.masking and not self.inner.selects:
            raise ValueError(
                f"{self.inner.name}: feedback=momentum with masking=True makes no sense, because every coordinate is "
                "sent, and the momentum would always be zero; use feedback=momentum(masking=False)"
            )

    def reduce(self, ops: Ops, vector: Array, state: State) -> Exchanging:
        if self.clip:
            norm = ops.norm(vector) * state.workers**0.5
            vector = vector * (self.clip / norm) if norm > self.clip else vector
        u, v = state.local.get("momentum"), state.local.get("residual")
        u = ops.zeros_like(vector) if u is None else u
        v = ops.zeros_like(vector) if v is None else v
        u, v = accumulate(ops, u, self.momentum, vector, v, self.nesterov)

        def keep(rest: Array, sent: Array | None) -> None:
            state.local["residual"] = rest
            state.local["momentum"] = ops.scatter_zero(u, sent) if self.masking else u

        return self.inner.reduce_rest(ops, v, None, state, keep)


@dataclass(frozen=True)
class AdamMomentum(Feedback):
    """Exchange Adam's momentum, with error feedback, once its variance is frozen (Tang et al. 2021, algorithm 1).

    In the first `start` steps the gradients are averaged uncompressed, and m <- b m + (1 - b) mean. From then on
    p = b m + (1 - b) g + e; exchange C(p); e <- p - sent; m <- the mean of what was sent, the same on all workers. What
    comes out is the mean gradient at first, and m later: that is for `hvd_compress.torch.CompressedAdam`, which knows.
    In a spec: ``feedback=adam(start=1000)``.

    Attributes:
        start: steps before the first compressed one.
        momentum: b, Adam's first beta.
    """

    name: ClassVar[str] = "adam"

    start: int = setting(low=1)
    momentum: float = setting(0.9, low=0, high=0.9999)

    @property
    def plain(self) -> Compressor:
        """The same momentum of the mean."""
        return AdamMomentumOfMean(self.start, self.momentum)

    def first_collective(self, step: int) -> str:
        return "allreduce" if step < self.start else super().first_collective(step)

    def reduce(self, ops: Ops, vector: Array, state: State) -> Exchanging:
        """Average the gradients, or exchange the corrected momentum."""
        b = self.momentum
        if state.step < self.start:
            mean = yield AllReduce(vector)
            state.shared["momentum"] = _accumulated(state, b, mean, 1 - b)
            return Reduced(mean, None)
        own = ops.affine(state.shared["momentum"], b, vector, 1 - b, vector)
        reduced = yield from ErrorFeedback(self.inner).reduce(ops, own, state)
        state.shared["momentum"] = reduced.mean
        return Reduced(ops.copy(reduced.mean), None)


def _accumulated(state: State, momentum: float, mean: Array, weight: float) -> Array:
    """Return the momentum that all workers share, with another mean in it; of any floating dtype."""
    return mean * weight + (state.shared["momentum"] * momentum if "momentum" in state.shared else 0.0)


@dataclass(frozen=True)
class AdamMomentumOfMean(NoCompression):
    """Send the gradient as it is; what comes out is its mean in the first steps, and then Adam's momentum of it.

    It stands in for plain gradients beside `AdamMomentum`.
    """

    name: ClassVar[str] = "adam_momentum_of_mean"
    stateful: ClassVar[bool] = True

    start: int = setting(low=1)
    momentum: float = setting(0.9, low=0, high=0.9999)

    @property
    def plain(self) -> Compressor:
        return self

    def reduce(self, ops: Ops, vector: Array, state: State) -> Exchanging:
        mean = yield AllReduce(vector)
        m = state.shared["momentum"] = _accumulated(state, self.momentum, mean, 1 - self.momentum)
        return Reduced(mean if state.step < self.start else ops.copy(m), None)


@dataclass(frozen=True)
class MomentumOfMean(NoCompression):
    """Send the gradient as it is, and apply the momentum of its mean: what momentum correction comes to uncompressed.

    It stands in for plain gradients beside `MomentumCorrection`.
    """

    name: ClassVar[str] = "momentum_of_mean"
    stateful: ClassVar[bool] = True

    momentum: float = setting(0.9, low=0, high=0.9999)
    nesterov: bool = setting(False)

    def reduce(self, ops: Ops, vector: Array, state: State) -> Exchanging:
        mean = yield AllReduce(vector)
        u = state.shared["momentum"] = _accumulated(state, self.momentum, mean, 1.0)
        return Reduced(ops.add(mean, u * self.momentum) if self.nesterov else ops.copy(u), None)


FEEDBACKS: dict[str, type[Feedback]] = {
    cls.name: cls for cls in (ErrorFeedback, EF21, MomentumCorrection, AdamMomentum)
}


def settings_of(feedback: Feedback | type[Feedback]) -> list[dataclasses.Field[object]]:
    """Return the fields that are settings: all but the compressor inside."""
    return [item for item in dataclasses.fields(feedback) if item.name != "inner"]
