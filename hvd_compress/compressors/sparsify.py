"""Methods that send some of the coordinates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from hvd_compress.compressors.base import (
    AllReduce,
    Compressor,
    Contribution,
    Exchanging,
    GatherCompressor,
    Reduced,
    check_length,
    setting,
)
from hvd_compress.compressors.indices import decode_indices, encode_indices, index_bytes
from hvd_compress.compressors.quantize import Quantizer
from hvd_compress.compressors.state import State
from hvd_compress.ops import Array, Ops
from hvd_compress.ops.by_kernel import by_kernel
from hvd_compress.ops.layout import Layout, Parameter
from hvd_compress.ops.random import Stream

HALF_MAX = 65504.0
COUNT_BYTES = 8


def count_of(ratio: float, size: int) -> int:
    """Return how many of `size` coordinates a ratio keeps: the nearest number, at least one if there are any."""
    return min(size, max(1, round(ratio * size)))


class Sparsifier(GatherCompressor):
    """A method that selects coordinates and sends their values and indices.

    A payload is the number of coordinates (int64, if the method is `varying`), the values in order of their indices,
    and the indices in their compact code. Values are sent as "fp32", "fp16" (clipped to +-65504), or by a quantizer
    such as ``qsgd(bits=4)``.
    """

    selects: ClassVar[bool] = True
    values: ClassVar[Any]

    def __post_init__(self) -> None:
        """Check the settings; a nested compressor must be a quantizer, and no majority vote."""
        super().__post_init__()
        inner = self.values
        if not isinstance(inner, str) and not (isinstance(inner, Quantizer) and not inner.majority_vote):
            raise ValueError(f"{self.name}: values must be fp32, fp16 or a quantizer; got {inner!r}")

    def select(self, ops: Ops, vector: Array, state: State) -> tuple[Array, Array | None]:
        """Return the indices to send, ascending int64, and the values to send there; None for the vector's own."""
        raise NotImplementedError

    def count(self, layout: Layout) -> int:
        """Return the number of coordinates sent; if `varying`, the number expected."""
        raise NotImplementedError

    def encode(self, ops: Ops, vector: Array, state: State) -> tuple[Array, Contribution]:
        indices, values = self.select(ops, vector, state)
        return self._pack(ops, indices, ops.take(vector, indices) if values is None else values, state)

    def encode_rest(
        self, ops: Ops, vector: Array, residual: Array | None, state: State
    ) -> tuple[Array, Contribution, Array]:
        """As of any method; a coordinate that is sent as it is leaves nothing, and is looked at once."""
        if residual is not None:
            vector = ops.add(vector, residual)
        indices, values = self.select(ops, vector, state)
        if values is None and self.values == "fp32":
            values, vector = ops.take_out(vector, indices)
            return *self._pack(ops, indices, values, state), vector
        payload, own = self._pack(ops, indices, ops.take(vector, indices) if values is None else values, state)
        return payload, own, own.add_to(vector, -1.0)

    def _pack(self, ops: Ops, indices: Array, values: Array, state: State) -> tuple[Array, Contribution]:
        count = indices.shape[0]
        if isinstance(self.values, Quantizer):
            coded, own = self.values.encode(ops, values, state.of(Layout.flat(count))) if count else (values, None)
            sent = Contribution(ops, lambda: own.values if own else values, indices)
        elif self.values == "fp16":
            coded = ops.cast(ops.clip(values, -HALF_MAX, HALF_MAX), "float16")
            sent = Contribution(ops, lambda: ops.cast(coded, "float32"), indices)
        else:
            coded, sent = values, Contribution(ops, lambda: values, indices)
        parts = [ops.to_bytes(coded), encode_indices(ops, indices, state.layout.size)]
        payload = ops.concat([ops.to_bytes(ops.arange(1) + count), *parts] if self.varying else parts)
        return payload, sent

    def decode(self, ops: Ops, payload: Array, layout: Layout) -> Array:
        return self.combine(ops, [self.read(ops, payload, layout)], 1, layout)

    def combine(self, ops: Ops, sent: Iterable[Contribution], workers: int, layout: Layout) -> Array:
        """Scatter the values of all workers, divided by their number."""
        return ops.scatter(layout.size, [(own.indices, own.values) for own in sent], 1 / workers)

    def payload_bits(self, layout: Layout, kept: int | None = None) -> int:
        """Those of the values and the indices; if `varying`, 64 for the number and 64 for the payload's length."""
        count = self.count(layout) if kept is None else kept
        header = 8 * (COUNT_BYTES + 8) if self.varying else 0
        return header + self._value_bits(count) + 8 * index_bytes(layout.size, count)

    def _value_bits(self, count: int) -> int:
        if isinstance(self.values, Quantizer):
            return self.values.payload_bits(Layout.flat(count)) if count else 0
        return count * (16 if self.values == "fp16" else 32)

    def read(self, ops: Ops, payload: Array, layout: Layout) -> Contribution:
        """Return the indices and the values in a payload; ValueError if `encode` cannot have written it."""
        count, start = self.count(layout) if not self.varying else 0, 0
        if self.varying:
            start = COUNT_BYTES
            if payload.shape[0] < start:
                raise ValueError(
                    f"{self.name}: a payload of {payload.shape[0]} bytes came in, too short for its header"
                )
            count = int(ops.from_bytes(payload[:start], "int64")[0])
            if not 0 <= count <= layout.size:
                raise ValueError(f"{self.name}: a payload of {count} coordinates came in, there are {layout.size}")
        cut = start + self._value_bits(count) // 8
        check_length(self.name, payload, cut + index_bytes(layout.size, count))
        indices, coded = decode_indices(ops, payload[cut:], layout.size, count), payload[start:cut]
        if isinstance(self.values, Quantizer):
            values = self.values.decode(ops, coded, Layout.flat(count)) if count else ops.zeros(0)
        else:
            values = ops.cast(ops.from_bytes(coded, "float16" if self.values == "fp16" else "float32"), "float32")
        return Contribution(ops, lambda: values, indices)


class LargestOfEach(Sparsifier):
    """A sparsifier that selects about ``ratio`` of each tensor, or for the scope "model" of the whole gradient."""

    ratio: ClassVar[float]
    scope: ClassVar[str]

    @property
    def whole_gradient(self) -> bool:
        return self.scope == "model"

    def largest(self, ops: Ops, vector: Array, places: Sequence[slice]) -> Array:
        """Return the indices to send, ascending, of the tensors at these places."""
        raise NotImplementedError

    def select(self, ops: Ops, vector: Array, state: State) -> tuple[Array, None]:
        return self.largest(ops, vector, [p.slice for p in self._tensors(state.layout)]), None

    def count(self, layout: Layout) -> int:
        return sum(count_of(self.ratio, p.size) for p in self._tensors(layout))

    def _tensors(self, layout: Layout) -> tuple[Parameter, ...]:
        """Return the parts to select from separately: the tensors, or for the scope "model" the whole vector."""
        if self.scope == "model":
            return Layout.flat(layout.size).parameters
        return layout.nonempty


@dataclass(frozen=True)
class TopK(LargestOfEach):
    """Send the ``ratio * d`` coordinates of largest magnitude (Aji and Heafield 2017; Stich et al. 2018, def. 2.2).

    Among equal magnitudes the lower index is taken, so that every framework sends the same bytes.
    ||C(v) - v||^2 <= (1 - k/d) ||v||^2.

    Attributes:
        ratio: share of the coordinates to send, in (0, 1].
        values: "fp32", "fp16" (clipped to +-65504), or a quantizer such as ``qsgd(bits=4)``.
        scope: "tensor" selects from each tensor by itself, "model" from the whole gradient.
    """

    name: ClassVar[str] = "topk"
    formula: ClassVar[str] = "v where abs(v) is among the k largest"
    paper: ClassVar[str] = "Aji and Heafield 2017"
    wire: ClassVar[str] = "values, indices (Elias-Fano or bitmap)"

    ratio: float = setting(0.01, above=0, high=1)  # type: ignore[misc]
    values: Any = setting("fp32", choices=("fp32", "fp16"), nested=True)  # type: ignore[misc]
    scope: str = setting("tensor", choices=("tensor", "model"))  # type: ignore[misc]

    def largest(self, ops: Ops, vector: Array, places: Sequence[slice]) -> Array:
        return ops.top_k_each(vector, places, [count_of(self.ratio, place.stop - place.start) for place in places])


@dataclass(frozen=True)
class Threshold(Sparsifier):
    """Send the coordinates of at least a given magnitude (Strom 2015; Sahu et al. 2021).

    With feedback no coordinate of the residual exceeds the threshold.

    Attributes:
        threshold: the smallest magnitude to send.
        values: as for ``topk``.
    """

    name: ClassVar[str] = "threshold"
    formula: ClassVar[str] = "v where abs(v) >= threshold"
    paper: ClassVar[str] = "Strom 2015"
    wire: ClassVar[str] = "number, values, indices (Elias-Fano or bitmap)"
    varying: ClassVar[bool] = True

    threshold: float = setting(1e-3, above=0)
    values: Any = setting("fp32", choices=("fp32", "fp16"), nested=True)  # type: ignore[misc]

    def select(self, ops: Ops, vector: Array, state: State) -> tuple[Array, None]:
        return ops.above(vector, self.threshold), None

    def count(self, layout: Layout) -> int:
        """All: there is no expectation for a threshold."""
        return layout.size


SAMPLE_STRIDE = 100  # DGC samples every 100th coordinate
LEAST_OF_K, MOST_OF_K = 0.8, 1.3  # range of DGC's count, relative to k, outside which it selects exactly


@by_kernel(vector="float32")
def about_largest(
    ops: Ops,
    vector: Array,
    places: Sequence[slice],
    counts: Sequence[int],
    stride: int,
    sampled: Sequence[int],
    bounds: Sequence[tuple[float, float]],
) -> Array:
    """Return the indices of about so many of the largest magnitudes of each place, int64 ascending.

    They are those not below a threshold: the least of the largest of a sample.

    Args:
        ops: the array operations.
        vector: float32, of which the places are consecutive parts.
        places: where to select, none empty.
        counts: for each place how many to select exactly, if the threshold lets through too few or too many.
        stride: the sample is every so many-th coordinate of a place, from its first on.
        sampled: for each place how many of the sample are the largest.
        bounds: for each place the least and the most coordinates that the threshold may let through.
    """
    parts = []
    for place, count, largest, (least, most) in zip(places, counts, sampled, bounds, strict=True):
        tensor = vector[place]
        sample = ops.copy(tensor[::stride])  # side by side, as kernels want it
        threshold = -ops.largest(-abs(ops.take(sample, ops.top_k(sample, largest))))
        indices = ops.above(tensor, threshold)
        parts.append((indices if least <= indices.shape[0] <= most else ops.top_k(tensor, count)) + place.start)
    return ops.concat(parts)


@dataclass(frozen=True)
class DGC(LargestOfEach):
    """Send about the ``ratio * d`` largest coordinates, by a threshold from a sample (Lin et al. 2018, section 3).

    The threshold is the smallest of the ``ratio`` largest magnitudes among 1 % of the coordinates. If it lets through
    less than 0.8 k or more than 1.3 k coordinates, the k largest are selected exactly. The other parts of deep
    gradient compression are separate: momentum correction, masking and clipping are the default feedback, and warm-up
    is a schedule of the ratio, for example ``dgc(ratio=exponential(0.25, 0.001, steps=400, every=100))``.

    Attributes:
        ratio: share of the coordinates to send, in (0, 1].
        values: as for ``topk``.
        scope: "tensor" selects from each tensor by itself, "model" from the whole gradient.
    """

    name: ClassVar[str] = "dgc"
    formula: ClassVar[str] = "v where abs(v) >= a threshold from a sample: about k"
    paper: ClassVar[str] = "Lin et al. 2018"
    wire: ClassVar[str] = "number, values, indices (Elias-Fano or bitmap)"
    varying: ClassVar[bool] = True

    ratio: float = setting(0.001, above=0, high=1)  # type: ignore[misc]
    values: Any = setting("fp32", choices=("fp32", "fp16"), nested=True)  # type: ignore[misc]
    scope: str = setting("tensor", choices=("tensor", "model"))  # type: ignore[misc]

    @property
    def default_feedback(self) -> str:
        """Momentum correction with masking."""
        return "momentum"

    def largest(self, ops: Ops, vector: Array, places: Sequence[slice]) -> Array:
        sizes = [place.stop - place.start for place in places]
        counts = [count_of(self.ratio, size) for size in sizes]
        sampled = [count_of(self.ratio, -(-size // SAMPLE_STRIDE)) for size in sizes]
        bounds = [(LEAST_OF_K * count, MOST_OF_K * count) for count in counts]
        return about_largest(ops, vector, places, counts, SAMPLE_STRIDE, sampled, bounds)


ROUNDS = 4  # rounds of redistribution; the result is unbiased after any number


@by_kernel(vector="float32")
def sum_abs_below(ops: Ops, vector: Array, bound: float) -> tuple[float, int]:
    """Return the sum, in float64, of the magnitudes below a bound, and the number of the others."""
    magnitude = abs(vector)
    below = ops.take(magnitude, ops.nonzero(magnitude < bound))
    return float(ops.row_sum(below.reshape(1, -1))[0]), vector.shape[0] - below.shape[0]


@by_kernel(vector="float32")
def inclusion_scale(ops: Ops, vector: Array, target: float, rounds: int) -> Any:
    """Return lambda, with which the probabilities min(1, lambda |v_j|) sum up to `target`, or nearly.

    It is a number, or on a GPU an array of no axes.
    """
    below, capped = sum_abs_below(ops, vector, math.inf)
    scale = target / below if below else 0.0
    for _ in range(rounds if scale else 0):
        before = capped
        below, capped = sum_abs_below(ops, vector, 1 / scale)
        if capped == before or capped >= target or not below:
            break
        scale = (target - capped) / below
    return scale


@by_kernel(lambda ops, kernels, vector, scale, stream: kernels.draw(vector, scale, stream.words()), vector="float32")
def draw(ops: Ops, vector: Array, scale: Any, stream: Stream) -> Array:
    """Return each index with probability min(1, scale * magnitude), NaN for certain; int64 ascending."""
    return ops.nonzero(~(ops.uniform(vector.shape[0], stream) >= abs(vector) * scale))


@dataclass(frozen=True)
class Wangni(Sparsifier):
    """Keep coordinate j with probability p_j = min(1, lambda |v_j|) and send v_j / p_j (Wangni et al. 2018, alg. 3).

    lambda is such that ``ratio * d`` coordinates are kept on average: the probabilities in excess of 1 are
    redistributed in four rounds, as many as the paper finds enough.

    Attributes:
        ratio: share of the coordinates to keep on average, in (0, 1].
        values: as for ``topk``; an unbiased quantizer keeps the method unbiased.
    """

    name: ClassVar[str] = "wangni"
    formula: ClassVar[str] = "v/p with probability p = min(1, lambda abs(v)), else 0"
    paper: ClassVar[str] = "Wangni et al. 2018"
    wire: ClassVar[str] = "number, values, indices (Elias-Fano or bitmap)"
    varying: ClassVar[bool] = True
    contraction: ClassVar[bool] = False

    ratio: float = setting(0.01, above=0, high=1)
    values: Any = setting("fp32", choices=("fp32", "fp16"), nested=True)  # type: ignore[misc]

    @property
    def unbiased(self) -> bool:  # type: ignore[override]
        """Whether the values are sent without bias."""
        return self.values == "fp32" or (isinstance(self.values, Quantizer) and self.values.unbiased)

    def select(self, ops: Ops, vector: Array, state: State) -> tuple[Array, Array]:
        """Find lambda, and draw."""
        scale = inclusion_scale(ops, vector, self.ratio * state.layout.size, ROUNDS)
        indices = draw(ops, vector, scale, state.own_stream(self.name))
        values = ops.take(vector, indices)
        return indices, values / ops.clip(abs(values) * scale, 0, 1)

    def count(self, layout: Layout) -> int:
        return count_of(self.ratio, layout.size)


@dataclass(frozen=True)
class RandomK(Compressor):
    """Send ``ratio * d`` coordinates drawn at random, the same on all workers (Stich et al. 2018, definition 2.1).

    The draw depends on the seed and the step, which all workers share: the values alone are sent, in one AllReduce.
    E||C(v) - v||^2 = (1 - k/d) ||v||^2.

    Attributes:
        ratio: share of the coordinates to send, in (0, 1].
        scaled: scale what is sent by d/k, which makes it unbiased, with an expected squared error of d/k - 1 times
            the vector's: no contraction, so without feedback. Otherwise as it is, with error feedback.
    """

    name: ClassVar[str] = "randomk"
    formula: ClassVar[str] = "v at k random coordinates, times d/k if scaled"
    paper: ClassVar[str] = "Stich et al. 2018"
    wire: ClassVar[str] = "values (fp32); the indices follow from the seed"
    collectives: ClassVar[tuple[str, ...]] = ("allreduce",)
    selects: ClassVar[bool] = True

    ratio: float = setting(0.01, above=0, high=1)
    scaled: bool = setting(False)

    @property
    def unbiased(self) -> bool:  # type: ignore[override]
        return self.scaled

    @property
    def contraction(self) -> bool:  # type: ignore[override]
        return not self.scaled

    def reduce(self, ops: Ops, vector: Array, state: State) -> Exchanging:
        size = state.layout.size
        count = count_of(self.ratio, size)
        indices = ops.distinct(count, size, state.common_stream())
        values = ops.take(vector, indices)
        if self.scaled:
            values = values * (size / count)
        mean = yield AllReduce(values)
        return Reduced(ops.scatter(size, [(indices, mean)], 1.0), Contribution(ops, lambda: values, indices))

    def payload_bits(self, layout: Layout, kept: int | None = None) -> int:
        return 32 * count_of(self.ratio, layout.size)
