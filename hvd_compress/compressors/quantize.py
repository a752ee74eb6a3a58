"""Methods that send every coordinate in a few bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hvd_compress.compressors.base import GatherCompressor, check_length, setting
from hvd_compress.layout import Layout
from hvd_compress.ops import Array, Ops, packed_bytes
from hvd_compress.state import State


@dataclass(frozen=True)
class QSGD(GatherCompressor):
    """Round each coordinate at random to one of 2s + 1 levels of its block's norm (Alistarh et al. 2017, section 3.1).

    In a block with norm n, v becomes n * sign(v) * l / s where l is one of the two integers next to s|v|/n, drawn so
    that the expectation is v. s = 2^(bits-1) - 1. A payload is the norms (fp32) and then the levels plus s, packed.
    The paper's Elias coding of the levels is left out: at these s it saves little and costs its time.

    Attributes:
        bits: bits a coordinate, 2 to 8.
        norm: "max" (the largest magnitude) or "l2"; the paper analyses l2 and uses max in its experiments.
        block: coordinates that share a norm.
    """

    name: ClassVar[str] = "qsgd"
    wire: ClassVar[str] = "norm of each block (fp32), packed levels (2 to 8 bits)"
    unbiased: ClassVar[bool] = True

    bits: int = setting(4, low=2, high=8)
    norm: str = setting("max", choices=("max", "l2"))
    block: int = setting(2048, low=1)

    @property
    def levels(self) -> int:
        """Number of levels above zero, s."""
        return (1 << (self.bits - 1)) - 1

    def encode(self, ops: Ops, vector: Array, state: State) -> Array:
        """Divide by the norms, round at random, pack."""
        size = state.layout.size
        rows = ops.blocks(vector, self.block)
        norms = ops.row_max_abs(rows) if self.norm == "max" else ops.row_norm(rows)
        scaled = ops.flatten(rows / ops.column(ops.where(norms > 0, norms, ops.ones_like(norms))) * self.levels)
        level = ops.floor(scaled[:size] + ops.uniform(size, state.own_stream())) + self.levels
        level = ops.cast(ops.clip(level, 0, 2 * self.levels), "int32")
        # A vector of NaN has norms of NaN; whatever its levels then are, it decodes to NaN.
        return ops.concat([ops.to_bytes(norms), ops.pack(level, self.bits)])

    def decode(self, ops: Ops, payload: Array, layout: Layout) -> Array:
        """Unpack and multiply by the norms."""
        check_length(self.name, payload, self.payload_bits(layout) // 8)
        cut = 4 * self._blocks(layout)
        norms = ops.from_bytes(payload[:cut], "float32")
        level = ops.unpack(payload[cut:], self.bits, layout.size)
        if layout.size and ops.largest(level) > 2 * self.levels:
            raise ValueError(f"qsgd: a level above {2 * self.levels} came in")
        rows = ops.blocks(ops.cast(level - self.levels, "float32"), self.block)
        return ops.flatten(rows * ops.column(norms / self.levels))[: layout.size]

    def payload_bits(self, layout: Layout) -> int:
        """32 a block, and `bits` a coordinate, in whole bytes for every eight."""
        return 32 * self._blocks(layout) + 8 * packed_bytes(layout.size, self.bits)

    def _blocks(self, layout: Layout) -> int:
        return -(-layout.size // self.block)
