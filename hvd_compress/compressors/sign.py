"""Methods that send one bit a coordinate: its sign. The sign of zero counts as positive."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from hvd_compress.compressors.base import Exchanging, setting
from hvd_compress.compressors.groups import group_sides
from hvd_compress.compressors.quantize import WHOLE, Quantizer
from hvd_compress.compressors.state import State
from hvd_compress.native.kernels import Groups
from hvd_compress.ops import Array, Ops


class Sign(Quantizer):
    """A method that sends signs: the code is 1 where the coordinate is not negative."""

    bits: ClassVar[int] = 1
    kind: ClassVar[str] = "sign"

    def codes(self, ops: Ops, rows: Array, scales: Array, noise: Array | None) -> Array:
        return ops.cast(rows >= 0, "int32")

    def values(self, ops: Ops, codes: Array, scales: Array) -> Array:
        return ops.cast(2 * codes - 1, "float32") * scales


class SignsAndMeans(Sign):
    """A sign method whose scales are made of the sums of either sign."""

    def means(self, ops: Ops, up: Array, down: Array, count: Array, sizes: Array) -> Array:
        """Return the scales of n tensors of these sizes, float32 of shape (n, scales_each).

        They are made of the sum of what is at least zero, of all else, and the number of the former, float64.
        """
        raise NotImplementedError

    def scales(self, ops: Ops, vector: Array, groups: Groups, plus: Array | None = None) -> Array:
        return self._means_of(ops, group_sides(ops, vector, groups, plus), groups)

    def _means_of(self, ops: Ops, sides: Array, groups: Groups) -> Array:
        assert not isinstance(groups, int)
        return self.means(ops, sides[:, 0], sides[:, 1], sides[:, 2], ops.doubles(groups))

    def _encode_by_kernel(self, ops: Ops, vector: Array, residual: Array | None, rest: bool, state: State) -> Array:
        """Without a rest the signs and their sums take one pass."""
        if rest:
            return super()._encode_by_kernel(ops, vector, residual, rest, state)
        assert ops.kernels
        sizes = [p.size for p in state.layout.nonempty]
        header = 4 * self.scales_each * len(sizes)
        payload, sides = ops.kernels.signs(vector, sizes, header)
        payload[:header] = ops.to_bytes(ops.flatten(self._means_of(ops, sides.reshape(-1, 3), sizes)))
        return payload


@dataclass(frozen=True)
class EFSignSGD(SignsAndMeans):
    """Send the signs and the mean magnitude of each tensor (Karimireddy et al. 2019, algorithm 1).

    ||C(v) - v||^2 <= (1 - ||v||_1^2 / (d ||v||_2^2)) ||v||^2, for each tensor.
    """

    name: ClassVar[str] = "ef_signsgd"
    formula: ClassVar[str] = "sign(v) * mean abs(v)"
    paper: ClassVar[str] = "Karimireddy et al. 2019"
    wire: ClassVar[str] = "mean magnitude of each tensor (fp32), packed signs"

    def means(self, ops: Ops, up: Array, down: Array, count: Array, sizes: Array) -> Array:
        return ops.column(ops.cast((up - down) / sizes, "float32"))


@dataclass(frozen=True)
class OneBit(SignsAndMeans):
    """Send the signs, and of each tensor the mean of what is positive and of what is negative (Seide et al. 2014).

    The paper has two means for each column of a weight matrix; here they are those of the tensor.
    """

    name: ClassVar[str] = "onebit"
    formula: ClassVar[str] = "the mean of the coordinates of v's sign"
    paper: ClassVar[str] = "Seide et al. 2014"
    wire: ClassVar[str] = "two means of each tensor (fp32), packed signs"
    scales_each: ClassVar[int] = 2

    def means(self, ops: Ops, up: Array, down: Array, count: Array, sizes: Array) -> Array:
        means = ops.stack([up, down]) / ops.clip(ops.stack([count, sizes - count]), 1.0, math.inf)
        return ops.transpose(ops.cast(means, "float32"))

    def values(self, ops: Ops, codes: Array, scales: Array) -> Array:
        return ops.where(codes > 0, scales[:, :1], scales[:, 1:])


@dataclass(frozen=True)
class SignSGD(Sign):
    """Send the signs; apply the sign of their sum: the majority, or zero for a tie (Bernstein et al. 2018).

    The result is no mean, so there is no feedback; learning rates are those of Adam rather than of SGD. The
    one number sent beside the signs is 1, or NaN where the gradient is not finite.
    """

    name: ClassVar[str] = "signsgd"
    formula: ClassVar[str] = "sign(v); of all workers the sign of the sum"
    paper: ClassVar[str] = "Bernstein et al. 2018"
    wire: ClassVar[str] = "1 or NaN (fp32), packed signs"
    contraction: ClassVar[bool] = False
    majority_vote: ClassVar[bool] = True
    small_too: ClassVar[bool] = True  # a mean beside signs would be of another scale
    block: ClassVar[int] = WHOLE

    def check_feedback(self) -> None:
        raise ValueError(
            f"{self.name} allows no feedback: the majority of signs is no estimate of the mean, so that nothing is "
            "left over; ef_signsgd is the sign method with feedback"
        )

    def scales(self, ops: Ops, vector: Array, groups: Groups, plus: Array | None = None) -> Array:
        """Return 1, or NaN for a vector of NaN."""
        return vector[:1].reshape(1, 1) * 0 + 1


@dataclass(frozen=True)
class Signum(SignSGD):
    """Send the signs of the momentum; apply the majority (Bernstein et al. 2018, algorithm 2).

    m <- momentum * m + (1 - momentum) * g. The optimizer itself must then have no momentum.

    Attributes:
        momentum: decay factor of the momentum, in [0, 1).
    """

    name: ClassVar[str] = "signum"
    formula: ClassVar[str] = "sign(m); m <- momentum m + (1 - momentum) v"
    overwrites: ClassVar[bool] = True

    momentum: float = setting(0.9, low=0, high=0.9999)

    def reduce(self, ops: Ops, vector: Array, state: State) -> Exchanging:
        m = state.local.get("momentum")
        m = ops.affine(ops.zeros_like(vector) if m is None else m, self.momentum, vector, 1 - self.momentum, vector)
        state.local["momentum"] = m
        return (yield from super().reduce(ops, m, state))
