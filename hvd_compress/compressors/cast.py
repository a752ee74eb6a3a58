"""Full precision, and casts to fewer bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hvd_compress.compressors.base import AllReduce, Compressor, Contribution, Exchanging, Keep, Reduced
from hvd_compress.compressors.state import State
from hvd_compress.native.kernels import Kernels
from hvd_compress.ops import Array, Ops
from hvd_compress.ops.by_kernel import by_kernel
from hvd_compress.ops.layout import Layout


@dataclass(frozen=True)
class NoCompression(Compressor):
    """Send the gradient as it is, in one AllReduce."""

    name: ClassVar[str] = "none"
    formula: ClassVar[str] = "v"
    wire: ClassVar[str] = "the gradient's own floats"
    collectives: ClassVar[tuple[str, ...]] = ("allreduce",)
    unbiased: ClassVar[bool] = True
    stateful: ClassVar[bool] = False
    keeps_dtype: ClassVar[bool] = True
    small_too: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True

    def check_feedback(self) -> None:
        raise ValueError("none allows no feedback: everything is sent, so that nothing is left over")

    def reduce(self, ops: Ops, vector: Array, state: State) -> Exchanging:
        mean = yield AllReduce(vector)
        return Reduced(mean, Contribution(ops, lambda: vector))

    def payload_bits(self, layout: Layout, kept: int | None = None) -> int:
        """32 a coordinate (16 or 64 where the gradient's own dtype has as many)."""
        return 32 * layout.size


def _half_rest(ops: Ops, kernels: Kernels, vector: Array, residual: Array | None) -> tuple[Array, Array]:
    bits = kernels.half_rest(vector, residual)
    return ops.from_bytes(ops.to_bytes(bits), "float16"), vector


@by_kernel(_half_rest, vector="float32", residual="float32")
def half_rest(ops: Ops, vector: Array, residual: Array | None) -> tuple[Array, Array]:
    """Return vector + residual as float16, and what that does not carry, for which `vector` is overwritten."""
    if residual is not None:
        vector = ops.add(vector, residual)
    half = ops.cast(vector, "float16")
    return half, ops.add(vector, half, -1.0)


@dataclass(frozen=True)
class HalfPrecision(Compressor):
    """Cast to IEEE float16, to the nearest, and sum in float16, as Horovod's own ``Compression.fp16`` does.

    Gradients above 65504, or sums above it, become infinite, and reach the optimizer so on every worker.
    """

    name: ClassVar[str] = "fp16"
    formula: ClassVar[str] = "v to the nearest of 11 significant bits"
    paper: ClassVar[str] = "IEEE 754; Micikevicius et al. 2018"
    wire: ClassVar[str] = "float16"
    collectives: ClassVar[tuple[str, ...]] = ("allreduce",)
    stateful: ClassVar[bool] = False
    small_too: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True

    @property
    def default_feedback(self) -> str:
        """None: the error is that of one rounding."""
        return "none"

    def reduce(self, ops: Ops, vector: Array, state: State) -> Exchanging:
        return (yield from self._reduce(ops, ops.cast(vector, "float16")))

    def reduce_rest(self, ops: Ops, vector: Array, residual: Array | None, state: State, keep: Keep) -> Exchanging:
        half, rest = half_rest(ops, vector, residual)
        keep(rest, None)
        return (yield from self._reduce(ops, half))

    def _reduce(self, ops: Ops, half: Array) -> Exchanging:
        mean = yield AllReduce(half)
        return Reduced(ops.cast(mean, "float32"), Contribution(ops, lambda: half))

    def payload_bits(self, layout: Layout, kept: int | None = None) -> int:
        return 16 * layout.size
