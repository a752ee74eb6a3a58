"""Methods that send every coordinate in a few bits: a code for each, and scales for each group of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

from hvd_compress.compressors.base import Contribution, GatherCompressor, check_length, setting
from hvd_compress.compressors.groups import group_max_abs, group_max_norm, rows_of
from hvd_compress.compressors.state import State
from hvd_compress.native.kernels import Code, Groups
from hvd_compress.ops import Array, Ops, packed_bytes
from hvd_compress.ops.layout import Layout

BY_TENSOR, WHOLE = 0, -1  # special values of `Quantizer.block`: a group per tensor, or one group
SMALLEST_SCALE = 2.0**-100  # groups of smaller scale are sent as zeros, for the reciprocal could overflow


class Coded(Contribution):
    """A quantizer's payload, which a kernel decodes while it adds it."""

    def __init__(self, quantizer: Quantizer, ops: Ops, payload: Array, layout: Layout) -> None:
        super().__init__(ops, lambda: quantizer.decode(ops, payload, layout))
        self.quantizer, self.payload, self.layout = quantizer, payload, layout

    def add_to(self, total: Array, factor: float = 1.0) -> Array:
        if self.quantizer.has_kernel(self.ops) and "values" not in vars(self):
            return self.quantizer.decode_by_kernel(self.ops, [self.payload], self.layout, factor, total=total)
        return super().add_to(total, factor)


class Quantizer(GatherCompressor):
    """A method that sends a code of `bits` bits for each coordinate, and up to two scales for each group of them.

    The groups are blocks of `block` coordinates, or the layout's tensors (`BY_TENSOR`), or there is one (`WHOLE`). The
    formulas of codes and values get them as the rows of matrices. A payload is the scales (fp32) and the codes, packed.
    """

    bits: ClassVar[int]
    block: ClassVar[int] = BY_TENSOR
    scales_each: ClassVar[int] = 1
    random: ClassVar[bool] = False
    kind: ClassVar[str | None] = None  # name of the compiled kernel with the same formulas, if there is one
    norm: ClassVar[str] = "max"  # the scale that the kernel computes for blocks: "max" or "l2"

    @property
    def levels_from(self) -> tuple[float, int, int]:
        """The kernel's numerator, and its least and its largest level, for the kind "levels"."""
        return 1, 0, 0

    def scales(self, ops: Ops, vector: Array, groups: Groups, plus: Array | None = None) -> Array:
        """Return the scales of n groups (of vector + plus, if given), float32 of shape (n, scales_each)."""
        return ops.column(group_max_abs(ops, vector, groups, plus))

    def codes(self, ops: Ops, rows: Array, scales: Array, noise: Array | None) -> Array:
        """Return the code of each coordinate, int32 below 2^bits; `noise` are random numbers, int32 of 16 bits."""
        raise NotImplementedError

    def values(self, ops: Ops, codes: Array, scales: Array) -> Array:
        """Return the values that codes stand for, float32; any code of `bits` bits must be decoded or refused."""
        raise NotImplementedError

    def encode(self, ops: Ops, vector: Array, state: State) -> tuple[Array, Contribution]:
        size, layout = state.layout.size, state.layout
        if self.has_kernel(ops):
            payload = self._encode_by_kernel(ops, vector, None, False, state)
            return payload, self.read(ops, payload, layout)
        groups = self._division(layout)
        rows = rows_of(ops, vector, groups)
        noise = [None] * len(rows)
        if self.random:
            noise = rows_of(ops, ops.noise(size, state.own_stream(self.name)), groups)
        scales = self.scales(ops, vector, groups) if self.scales_each else vector[:0].reshape(0, 1)
        coded = zip(rows, _scales_of(rows, scales), noise, strict=True)
        codes = [ops.flatten(self.codes(ops, r, own, random)) for r, own, random in coded]
        packed = ops.pack(ops.concat(codes)[:size], self.bits)
        payload = ops.concat([ops.to_bytes(ops.flatten(scales)), packed])
        return payload, self.read(ops, payload, layout)

    def encode_rest(
        self, ops: Ops, vector: Array, residual: Array | None, state: State
    ) -> tuple[Array, Contribution, Array]:
        """Encode vector + residual, in one pass with the rest if there is a kernel."""
        if not self.has_kernel(ops):
            return super().encode_rest(ops, vector, residual, state)
        payload = self._encode_by_kernel(ops, vector, residual, True, state)
        return payload, self.read(ops, payload, state.layout), vector

    def read(self, ops: Ops, payload: Array, layout: Layout) -> Coded:
        check_length(self.name, payload, self.payload_bits(layout) // 8)
        return Coded(self, ops, payload, layout)

    def decode(self, ops: Ops, payload: Array, layout: Layout) -> Array:
        check_length(self.name, payload, self.payload_bits(layout) // 8)
        if self.has_kernel(ops):
            return self.decode_by_kernel(ops, [payload], layout)
        cut = 4 * self.scales_each * self._groups(layout)
        scales = ops.from_bytes(payload[:cut], "float32").reshape(-1, max(1, self.scales_each))
        codes = rows_of(ops, ops.unpack(payload[cut:], self.bits, layout.size), self._division(layout))
        coded = zip(codes, _scales_of(codes, scales), strict=True)
        return ops.concat([ops.flatten(self.values(ops, r, own)) for r, own in coded])[: layout.size]

    def combine(self, ops: Ops, sent: Iterable[Contribution], workers: int, layout: Layout) -> Array:
        """Return the mean of the decoded payloads, or for a majority vote its sign."""
        if self.has_kernel(ops):
            payloads = [own.payload for own in sent if isinstance(own, Coded)]
            return self.decode_by_kernel(ops, payloads, layout, 1 / workers, vote=self.majority_vote)
        mean = super().combine(ops, sent, workers, layout)
        return ops.sign(mean) if self.majority_vote else mean

    def has_kernel(self, ops: Ops) -> bool:
        """Tell whether compiled kernels have this quantizer's formulas, for these arrays."""
        return bool(ops.kernels and self.kind)

    def _encode_by_kernel(self, ops: Ops, vector: Array, residual: Array | None, rest: bool, state: State) -> Array:
        assert ops.kernels
        groups, scales = self._division(state.layout), self.norm if self.scales_each else None
        if self.scales_each and self.block <= 0:
            scales = ops.flatten(self.scales(ops, vector, groups, residual))
        words = state.own_stream(self.name).words()
        return ops.kernels.quantize(vector, residual, rest, self._code, groups, scales, words)

    def decode_by_kernel(
        self,
        ops: Ops,
        payloads: Sequence[Array],
        layout: Layout,
        factor: float = 1.0,
        *,
        vote: bool = False,
        total: Array | None = None,
    ) -> Array:
        """Return `total` (zeros if None) plus `factor` times what payloads decode to, or with `vote` the sign of it."""
        assert ops.kernels
        return ops.kernels.dequantize(
            list(payloads), self._code, self._division(layout), layout.size, factor, vote, total
        )

    @property
    def _code(self) -> Code:
        assert self.kind
        return (self.kind, self.bits, *self.levels_from, self.scales_each)

    def _division(self, layout: Layout) -> Groups:
        """Return the block, or the groups' lengths."""
        if self.block > 0:
            return self.block
        return [layout.size] if self.block == WHOLE else [p.size for p in layout.nonempty]

    def payload_bits(self, layout: Layout, kept: int | None = None) -> int:
        """32 a scale, and `bits` a coordinate, in whole bytes for every eight."""
        return 32 * self.scales_each * self._groups(layout) + 8 * packed_bytes(layout.size, self.bits)

    def _groups(self, layout: Layout) -> int:
        groups = self._division(layout)
        return -(-layout.size // groups) if isinstance(groups, int) else len(groups)


def _scales_of(rows: Sequence[Array], scales: Array) -> list[Array]:
    """Return the scales of each matrix's rows."""
    ends = accumulate(r.shape[0] for r in rows)
    return [scales[end - r.shape[0] : end] for end, r in zip(ends, rows, strict=True)]


def reciprocal(ops: Ops, scales: Array, numerator: float = 1.0) -> Array:
    """Return numerator / scale, and 0 where the scale is below `SMALLEST_SCALE`."""
    sound = scales >= SMALLEST_SCALE
    return ops.where(sound, numerator / ops.where(sound, scales, ops.ones_like(scales)), ops.zeros_like(scales))


def stochastic_levels(
    ops: Ops, rows: Array, scales: Array, noise: Array | None, levels: tuple[float, int, int]
) -> Array:
    """Return numerator * v / scale, rounded at random to one of its two neighbouring integers, minus `low`; int32.

    It is limited to [low, high], in units of 2^-16, and the random number of 16 bits is added before the last 16 bits
    are cut off. `levels` are numerator, low and high.
    """
    numerator, low, high = levels
    scaled = rows * reciprocal(ops, scales, 65536.0 * numerator) + (0.5 - 65536.0 * low)
    units = ops.cast(ops.clip(scaled, 0.0, 65536.0 * (high - low)), "int32")
    assert noise is not None
    return units + noise >> 16


@dataclass(frozen=True)
class QSGD(Quantizer):
    """Round each coordinate at random to one of 2s + 1 levels of its block's norm (Alistarh et al. 2017, section 3.1).

    In a block with norm n, v becomes n * sign(v) * l / s where l is one of the two integers next to s|v|/n, drawn so
    that the expectation is v. s = 2^(bits-1) - 1. The paper's Elias coding of the levels is left out: at these s it
    saves little and costs its time. Feedback is refused for 2 bits, whose error is larger than the vector.

    Attributes:
        bits: bits a coordinate, 2 to 8.
        norm: "max" (the largest magnitude) or "l2"; the paper analyses l2 and uses max in its experiments.
        block: coordinates that share a norm.
    """

    name: ClassVar[str] = "qsgd"
    formula: ClassVar[str] = "n/s * round(s v/n), at random"
    paper: ClassVar[str] = "Alistarh et al. 2017"
    wire: ClassVar[str] = "norm of each block (fp32), packed levels (2 to 8 bits)"
    unbiased: ClassVar[bool] = True
    random: ClassVar[bool] = True
    kind: ClassVar[str] = "levels"

    bits: int = setting(4, low=2, high=8)  # type: ignore[misc]
    norm: str = setting("max", choices=("max", "l2"))  # type: ignore[misc]
    block: int = setting(2048, low=1)  # type: ignore[misc]

    @property
    def contraction(self) -> bool:  # type: ignore[override]
        """True for more than one level above zero, of the largest magnitude."""
        return self.bits > 2 and self.norm == "max"

    @property
    def levels(self) -> int:
        """Number of levels above zero, s."""
        return (1 << (self.bits - 1)) - 1

    @property
    def levels_from(self) -> tuple[float, int, int]:
        return self.levels, -self.levels, self.levels

    def scales(self, ops: Ops, vector: Array, groups: Groups, plus: Array | None = None) -> Array:
        if self.norm == "max":
            return super().scales(ops, vector, groups, plus)
        return ops.column(group_max_norm(ops, vector, groups, plus)[1])

    def codes(self, ops: Ops, rows: Array, scales: Array, noise: Array | None) -> Array:
        return stochastic_levels(ops, rows, scales, noise, self.levels_from)

    def values(self, ops: Ops, codes: Array, scales: Array) -> Array:
        return ops.cast(codes - self.levels, "float32") * (scales / self.levels)


@dataclass(frozen=True)
class TernGrad(Quantizer):
    """Send -1, 0 or 1 times the largest magnitude of each tensor, drawn at random (Wen et al. 2017, algorithm 1).

    Before, coordinates beyond 2.5 standard deviations are clipped (section 3.3 there; the mean is taken as zero).

    Attributes:
        clip: standard deviations at which coordinates are clipped; 0 for no clipping, which is unbiased.
    """

    name: ClassVar[str] = "terngrad"
    formula: ClassVar[str] = "m * round(v/m), at random; m = min(max abs(v), 2.5 sigma)"
    paper: ClassVar[str] = "Wen et al. 2017"
    wire: ClassVar[str] = "scale of each tensor (fp32), packed levels (2 bits)"
    contraction: ClassVar[bool] = False
    bits: ClassVar[int] = 2
    random: ClassVar[bool] = True
    kind: ClassVar[str] = "levels"

    clip: float = setting(2.5, low=0)

    @property
    def unbiased(self) -> bool:  # type: ignore[override]
        return self.clip == 0

    @property
    def levels_from(self) -> tuple[float, int, int]:
        return 1, -1, 1

    def scales(self, ops: Ops, vector: Array, groups: Groups, plus: Array | None = None) -> Array:
        """Return the largest magnitude, or where clipping begins."""
        if not self.clip:
            return super().scales(ops, vector, groups, plus)
        assert not isinstance(groups, int)
        largest, norm = group_max_norm(ops, vector, groups, plus)
        bound = norm * ops.cast(ops.doubles([self.clip / math.sqrt(size) for size in groups]), "float32")
        return ops.column(ops.where(largest > bound, bound, largest))

    def codes(self, ops: Ops, rows: Array, scales: Array, noise: Array | None) -> Array:
        return stochastic_levels(ops, rows, scales, noise, self.levels_from)

    def values(self, ops: Ops, codes: Array, scales: Array) -> Array:
        return ops.cast(codes - 1, "float32") * scales


@dataclass(frozen=True)
class LowPrecision(Quantizer):
    """Round at random to the grid of Q(delta, b) (Yu, Wu, Huang 2019, section 2): -2^(b-1) delta ... (2^(b-1)-1) delta.

    delta = max|v| / (2^(b-1) - 1) for each tensor, so that nothing lies outside and the rounding is unbiased.

    Attributes:
        bits: bits a coordinate, b.
    """

    name: ClassVar[str] = "low_precision"
    formula: ClassVar[str] = "delta * round(v/delta), at random"
    paper: ClassVar[str] = "Yu, Wu, Huang 2019"
    wire: ClassVar[str] = "delta of each tensor (fp32), packed grid points (2 to 12 bits)"
    unbiased: ClassVar[bool] = True
    random: ClassVar[bool] = True
    kind: ClassVar[str] = "levels"

    bits: int = setting(8, low=2, high=12)  # type: ignore[misc]

    @property
    def contraction(self) -> bool:  # type: ignore[override]
        """True for more than one grid point above zero."""
        return self.bits > 2

    @property
    def levels_from(self) -> tuple[float, int, int]:
        half = 1 << self.bits - 1
        return 1, -half, half - 1

    def scales(self, ops: Ops, vector: Array, groups: Groups, plus: Array | None = None) -> Array:
        return ops.column(ops.divided(group_max_abs(ops, vector, groups, plus), (1 << self.bits - 1) - 1))

    def codes(self, ops: Ops, rows: Array, scales: Array, noise: Array | None) -> Array:
        """Return the grid points' numbers, from the lowest."""
        return stochastic_levels(ops, rows, scales, noise, self.levels_from)

    def values(self, ops: Ops, codes: Array, scales: Array) -> Array:
        return ops.cast(codes - (1 << self.bits - 1), "float32") * scales


@dataclass(frozen=True)
class Natural(Quantizer):
    """Round at random to a neighbouring power of two: sign and exponent are sent (Horvath et al. 2019, definition 1).

    A uniform number is added to the mantissa, whose carry goes to the exponent with the right probability.
    Above 2^127 there is no power of two, and it is rounded down.
    """

    name: ClassVar[str] = "natural"
    formula: ClassVar[str] = "sign(v) 2^round(log2 abs(v)), at random"
    paper: ClassVar[str] = "Horvath et al. 2019"
    wire: ClassVar[str] = "exponents (8 bits), packed signs"
    unbiased: ClassVar[bool] = True
    bits: ClassVar[int] = 9
    block: ClassVar[int] = WHOLE
    scales_each: ClassVar[int] = 0
    random: ClassVar[bool] = True
    kind: ClassVar[str] = "natural"

    def codes(self, ops: Ops, rows: Array, scales: Array, noise: Array | None) -> Array:
        """Return the exponent, and the sign above it."""
        assert noise is not None
        words = ops.bits_of(rows)
        magnitude = words & 0x7FFFFFFF
        exponent = magnitude + (noise * 128 + 64) >> 23
        exponent = ops.where(exponent > 254, ops.ones_like(exponent) * 254, exponent)
        exponent = ops.where(magnitude >= 255 << 23, ops.ones_like(exponent) * 255, exponent)
        return exponent | (words >> 31 & 1) << 8

    def values(self, ops: Ops, codes: Array, scales: Array) -> Array:
        return ops.float_of((codes & 255) << 23 | codes >> 8 << 31)


@dataclass(frozen=True)
class Int8(Quantizer):
    """Cast to 8 bits in blocks, each relative to its largest magnitude m (dynamic quantization: Dettmers et al. 2022).

    Seven decades below m are cut into 1, 2, 4, ..., 64 cells of equal width, from the lowest decade to the highest
    (section 1.3 there), and each coordinate becomes the centre of its cell; what is below 1e-7 m becomes zero. The code
    has a sign bit; of the other seven the highest one set tells the decade.

    Attributes:
        block: coordinates that share a largest magnitude.
    """

    name: ClassVar[str] = "int8"
    formula: ClassVar[str] = "nearest of 127 magnitudes over 7 decades, times the block's largest"
    paper: ClassVar[str] = "Dettmers et al. 2022"
    wire: ClassVar[str] = "largest magnitude of each block (fp32), 8 bits each"
    bits: ClassVar[int] = 8
    small_too: ClassVar[bool] = True
    kind: ClassVar[str] = "dynamic"

    block: int = setting(2048, low=1)  # type: ignore[misc]

    @property
    def default_feedback(self) -> str:
        """None: the relative error is that of one rounding."""
        return "none"

    def codes(self, ops: Ops, rows: Array, scales: Array, noise: Array | None) -> Array:
        """Find each magnitude's decade, and its cell there."""
        relative = abs(rows) * reciprocal(ops, scales)
        code = ops.cast(relative * 0, "int32")
        for i, (low, slope, offset) in enumerate(_DECADES):
            cell = ops.cast(ops.clip(ops.floor(relative * slope - offset), 0, (1 << i) - 1), "int32")
            code = ops.where(relative >= low, cell + (1 << i), code)
        return code + 128 * ops.cast(rows < 0, "int32")

    def values(self, ops: Ops, codes: Array, scales: Array) -> Array:
        cell = ops.cast(codes & 127, "float32")
        centre = cell * 0
        for i, (_, slope, offset) in enumerate(_DECADES):
            at = (cell + (offset + 0.5 - (1 << i))) * (1 / slope)
            centre = ops.where(cell >= 1 << i, at, centre)
        return ops.where(codes >= 128, -centre, centre) * scales


# For decade i: where it begins, and slope and offset with which floor(slope * x - offset) is x's cell.
_DECADES = [(10.0 ** (i - 7), 2**i / 0.9 * 10.0 ** (6 - i), 2**i / 9) for i in range(7)]


@dataclass(frozen=True)
class BFloat16(Quantizer):
    """Cast to bfloat16, to the nearest: sign, 8 bits of exponent, 7 of mantissa.

    Horovod sums no bfloat16, so it is gathered.
    """

    name: ClassVar[str] = "bf16"
    formula: ClassVar[str] = "v to the nearest of 8 significant bits"
    paper: ClassVar[str] = "Kalamkar et al. 2019"
    wire: ClassVar[str] = "bfloat16, as two planes of bytes"
    bits: ClassVar[int] = 16
    block: ClassVar[int] = WHOLE
    scales_each: ClassVar[int] = 0
    stateful: ClassVar[bool] = False
    small_too: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True
    kind: ClassVar[str] = "bfloat"

    @property
    def default_feedback(self) -> str:
        """None: the error is that of one rounding."""
        return "none"

    def codes(self, ops: Ops, rows: Array, scales: Array, noise: Array | None) -> Array:
        """Round to even in the upper half of the word; NaN stays NaN."""
        words = ops.bits_of(rows)
        nearest = words + 0x7FFF + (words >> 16 & 1) >> 16
        return ops.where(rows == rows, nearest & 0xFFFF, ops.ones_like(words) * 0x7FC0)

    def values(self, ops: Ops, codes: Array, scales: Array) -> Array:
        return ops.float_of(codes << 16)
