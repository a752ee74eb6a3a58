"""Methods that send some of the coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hvd_compress.compressors.base import (
    AllReduce,
    Compressor,
    Exchanging,
    GatherCompressor,
    Reduced,
    check_length,
    setting,
)
from hvd_compress.compressors.indices import decode_indices, encode_indices, index_bytes
from hvd_compress.layout import Layout
from hvd_compress.ops import Array, Ops
from hvd_compress.state import State

HALF_MAX = 65504.0


def count_of(ratio: float, size: int) -> int:
    """Return how many of `size` coordinates a ratio keeps: the nearest number, at least one if there are any."""
    return min(size, max(1, round(ratio * size)))


@dataclass(frozen=True)
class TopK(GatherCompressor):
    """Send the ``ratio * d`` coordinates of largest magnitude (Aji and Heafield 2017; Stich et al. 2018, def. 2.2).

    A payload is the values, in order of their indices, and then the indices in their compact code. Among equal
    magnitudes the lower index is taken, so that every framework sends the same bytes.

    Attributes:
        ratio: the part of the coordinates to send, in (0, 1].
        values: "fp32", or "fp16" with the values clipped to +-65504.
        scope: "tensor" selects from each tensor by itself, "model" from the whole gradient.
    """

    name: ClassVar[str] = "topk"
    wire: ClassVar[str] = "values (fp32 or fp16), indices (Elias-Fano or bitmap)"

    ratio: float = setting(0.01, above=0, high=1)
    values: str = setting("fp32", choices=("fp32", "fp16"))
    scope: str = setting("tensor", choices=("tensor", "model"))

    @property
    def whole_gradient(self) -> bool:
        """True if the scope is the model."""
        return self.scope == "model"

    def encode(self, ops: Ops, vector: Array, state: State) -> Array:
        """Select, and pack values and indices."""
        if self.scope == "model":
            indices = ops.top_k(vector, self._count(state.layout))
        else:
            indices = ops.concat(
                [
                    ops.top_k(vector[p.slice], count_of(self.ratio, p.size)) + p.offset
                    for p in state.layout.parameters
                    if p.size
                ]
            )
        values = ops.take(vector, indices)
        if self.values == "fp16":
            values = ops.cast(ops.clip(values, -HALF_MAX, HALF_MAX), "float16")
        return ops.concat([ops.to_bytes(values), encode_indices(ops, indices, state.layout.size)])

    def decode(self, ops: Ops, payload: Array, layout: Layout) -> Array:
        """Scatter the values into zeros."""
        return self.accumulate(ops, ops.zeros(layout.size), payload, layout)

    def accumulate(self, ops: Ops, total: Array, payload: Array, layout: Layout) -> Array:
        """Add the values to `total` at their indices."""
        check_length(self.name, payload, self.payload_bits(layout) // 8)
        count = self._count(layout)
        cut = count * self._value_bits() // 8
        values = ops.from_bytes(payload[:cut], "float16" if self.values == "fp16" else "float32")
        indices = decode_indices(ops, payload[cut:], layout.size, count)
        return ops.scatter_add(total, indices, ops.cast(values, "float32"))

    def payload_bits(self, layout: Layout) -> int:
        """32 or 16 a value, and the indices."""
        count = self._count(layout)
        return count * self._value_bits() + 8 * index_bytes(layout.size, count)

    def _count(self, layout: Layout) -> int:
        sizes = [layout.size] if self.scope == "model" else [p.size for p in layout.parameters]
        return sum(count_of(self.ratio, size) for size in sizes if size)

    def _value_bits(self) -> int:
        return 16 if self.values == "fp16" else 32


@dataclass(frozen=True)
class RandomK(Compressor):
    """Send ``ratio * d`` coordinates drawn at random, the same on all workers (Stich et al. 2018, definition 2.1).

    The draw depends on the seed and the step, which all workers share: the values alone are sent, in one AllReduce.

    Attributes:
        ratio: the part of the coordinates to send, in (0, 1].
        scaled: scale what is sent by d/k, which makes it unbiased, with an expected squared error of d/k - 1 times
            the vector's: no contraction, so without error feedback. Otherwise as it is, with error feedback.
    """

    name: ClassVar[str] = "randomk"
    wire: ClassVar[str] = "values (fp32); the indices follow from the seed"
    collectives: ClassVar[tuple[str, ...]] = ("allreduce",)

    ratio: float = setting(0.01, above=0, high=1)
    scaled: bool = setting(False)

    @property
    def unbiased(self) -> bool:  # type: ignore[override]
        """True if scaled."""
        return self.scaled

    def check_feedback(self) -> None:
        """Refuse error feedback round the scaled estimate."""
        if self.scaled:
            raise ValueError(
                "randomk: scaled=True allows no feedback, got feedback=ef: scaled by d/k the method is no "
                "contraction, and the residual would grow without bound; use scaled=False or feedback=none"
            )

    def reduce(self, ops: Ops, vector: Array, state: State) -> Exchanging:
        """Average the drawn coordinates."""
        size = state.layout.size
        count = count_of(self.ratio, size)
        indices = ops.distinct(count, size, state.common_stream())
        values = ops.take(vector, indices)
        if self.scaled:
            values = values * (size / count)
        mean = yield AllReduce(values)
        return Reduced(
            mean=ops.scatter_add(ops.zeros(size), indices, mean),
            sent=lambda: ops.scatter_add(ops.zeros(size), indices, values),
        )

    def payload_bits(self, layout: Layout) -> int:
        """32 for each coordinate sent."""
        return 32 * count_of(self.ratio, layout.size)
