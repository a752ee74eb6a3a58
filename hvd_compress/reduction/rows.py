"""Sparse gradients (of embeddings): the rows of all workers, compressed, gathered and averaged, never made dense."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, ClassVar

from hvd_compress.compressors import AllGather, Compressor, Exchanging, GatherCompressor, Reduced, spec
from hvd_compress.compressors.base import check_length
from hvd_compress.compressors.cast import HalfPrecision
from hvd_compress.compressors.indices import decode_indices, encode_indices, index_bytes
from hvd_compress.compressors.sparsify import COUNT_BYTES, HALF_MAX, RandomK, Sparsifier, Threshold
from hvd_compress.compressors.state import State
from hvd_compress.ops import Array, Ops, dtype_name
from hvd_compress.ops.layout import Layout
from hvd_compress.reduction.buckets import PLAIN

logger = logging.getLogger("hvd_compress")

ITEMSIZE = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}
LEAST = 2.0**-126  # norm of a row that counts: below are numbers that a device may take for zero


@dataclass(frozen=True)
class Rows:
    """Some rows of a matrix, of which all others are zero.

    Attributes:
        indices: int64 of shape (count,), in any order; the rows of an index that comes again are added.
        values: floating, of shape (count, width).
        height: the number of the matrix's rows.
    """

    indices: Array
    values: Array
    height: int

    def poisoned(self, ops: Ops) -> tuple[Rows, bool]:
        """Return the rows themselves if they are finite, else those of NaN; and whether they are not."""
        if self.finite(ops):
            return self, False
        return Rows(self.indices, self.values * float("nan"), self.height), True

    def with_rows(self, ops: Ops, other: Rows) -> Rows:
        """Return these rows and others of the same matrix, in this dtype."""
        indices = ops.concat([self.indices, other.indices])
        values = ops.concat([ops.flatten(self.values), ops.cast(ops.flatten(other.values), dtype_name(self.values))])
        return Rows(indices, values.reshape(indices.shape[0], self.values.shape[1]), self.height)

    def finite(self, ops: Ops) -> bool:
        """Tell whether no value is NaN or infinite."""
        return ops.all_finite(ops.flatten(self.values))


@dataclass(frozen=True)
class SparseRows(Compressor):
    """Gather the rows of sparse gradients, compressed as the parameter's compressor has it.

    A row is what lies under one index of the sparse axes. A payload is the number of rows (int64), their indices in
    their compact code, and their values. A sparsifier selects rows instead of coordinates: as many as are its ``ratio``
    of the gradient's, one at least, those of largest Euclidean norm; or those whose norm is not below its
    ``threshold``. The values are encoded as one flat vector: by the ``values`` of a sparsifier, else by the
    method itself, if it can encode any vector. Any other method sends plain rows.

    Feedback of any kind is error feedback here. So is that of an unbiased method that selects, whose largest rows
    alone would be biased. The residual is the rows that were not sent. It competes with new rows where rows are
    selected; otherwise a row of it waits for the row's next gradient.

    What it exchanges, and their mean, are `Rows` of the one parameter in the layout.

    Attributes:
        compressor: the parameter's.
    """

    name: ClassVar[str] = "sparse_rows"
    wire: ClassVar[str] = "number of rows (int64), indices (Elias-Fano or bitmap), values"
    collectives: ClassVar[tuple[str, ...]] = ("allgather",)

    compressor: Compressor = PLAIN

    @property
    def method(self) -> Any:
        """The compressor without its feedback."""
        return self.compressor.bare

    @property
    def selects(self) -> bool:  # type: ignore[override]
        """Whether some of the rows are sent."""
        return isinstance(self.method, Sparsifier | RandomK)

    @property
    def codec(self) -> Compressor:
        """What encodes the values: a `GatherCompressor`, fp16, or none."""
        values = getattr(self.method, "values", PLAIN) if self.selects else self.method
        if values == "fp16":
            return HalfPrecision()
        encodes = isinstance(values, GatherCompressor | HalfPrecision) and not values.majority_vote
        return values if encodes else PLAIN

    @property
    def feedback(self) -> bool:
        """Whether there is a residual."""
        if self.selects:
            return self.method is not self.compressor or self.method.unbiased
        return self.method is not self.compressor and self.codec != PLAIN

    def reduce(self, ops: Ops, vector: Rows, state: State) -> Exchanging:
        """Average the gathered rows; the mean is `Rows` of ascending indices and the vector's dtype.

        Raises:
            ValueError: if an index is outside of [0, height).
        """
        dtype, width = dtype_name(vector.values), vector.values.shape[1]
        present, values = ops.sum_rows(vector.indices, vector.values)
        if not ops.ascending_below(present, vector.height):
            raise ValueError(
                f"{self.name}: the indices of rows must be in [0, {vector.height}); got {int(present[0])} to "
                f"{int(present[-1])}"
            )
        indices = present
        if self.feedback or self.codec != PLAIN:
            values = ops.cast(values, "float32")
        if "residual" in state.local:
            waiting, residual = state.local["rows"], state.local["residual"]
            residual = residual.reshape(waiting.shape[0], width)
            indices, values = _sum(ops, (waiting, residual), (present, values))
        chosen = self._choose(ops, indices, values, present)
        sent, chosen_values = ops.take(indices, chosen), ops.take(values, chosen)
        payload, arriving = self._encode(ops, sent, chosen_values, vector.height, state)
        if self.feedback:
            indices, left = _sum(ops, (indices, values), (sent, -arriving))
            rest = ops.above(ops.row_norm(left), LEAST)
            state.local["rows"], state.local["residual"] = ops.take(indices, rest), ops.flatten(ops.take(left, rest))
        payloads = yield AllGather(payload, varying=True)
        decoded = [
            (sent, arriving)
            if rank == state.rank
            else self._decode(ops, other, vector.height, width, dtype_name(values), state)
            for rank, other in enumerate(payloads)
        ]
        places, total = _sum(ops, *decoded)
        return Reduced(Rows(places, ops.cast(total / len(payloads), dtype), vector.height), None)

    def _choose(self, ops: Ops, indices: Array, values: Array, present: Array) -> Array:
        """Return the positions of the rows to send."""
        if not self.selects or not indices.shape[0]:
            return ops.searchsorted(indices, present) - 1
        norms = ops.row_norm(values)
        if isinstance(self.method, Threshold):
            return ops.above(norms, self.method.threshold)
        count = max(1, round(self.method.ratio * present.shape[0]))
        return ops.top_k(norms, min(indices.shape[0], count))

    def _encode(self, ops: Ops, indices: Array, values: Array, height: int, state: State) -> tuple[Array, Array]:
        """Return the payload, and the values as they will be decoded."""
        codec, flat, count = self.codec, ops.flatten(values), indices.shape[0]
        if isinstance(codec, GatherCompressor) and flat.shape[0]:
            encoded, own = codec.encode(ops, flat, _part(state, values.shape))
            decoded = own.values
        elif isinstance(codec, HalfPrecision):
            half = ops.cast(ops.clip(flat, -HALF_MAX, HALF_MAX) if self.selects else flat, "float16")
            encoded, decoded = ops.to_bytes(half), ops.cast(half, "float32")
        else:
            encoded, decoded = ops.to_bytes(flat), flat
        header = ops.to_bytes(ops.arange(1) + count)
        return ops.concat([header, encode_indices(ops, indices, height), encoded]), decoded.reshape(*values.shape)

    def _decode(
        self, ops: Ops, payload: Array, height: int, width: int, dtype: str, state: State
    ) -> tuple[Array, Array]:
        """Return the indices, of shape (count,), and the values, of shape (count, width), in a payload.

        Raises:
            ValueError: if the payload is not one that `_encode` can have written.
        """
        count = int(ops.from_bytes(payload[:COUNT_BYTES], "int64")[0]) if payload.shape[0] >= COUNT_BYTES else -1
        cut = COUNT_BYTES + (index_bytes(height, count) if 0 <= count <= height else 0)
        if not 0 <= count <= height or payload.shape[0] < cut:
            raise ValueError(f"{self.name}: {payload.shape[0]} bytes came in, for {count} of {height} rows")
        indices, encoded = decode_indices(ops, payload[COUNT_BYTES:cut], height, count), payload[cut:]
        if isinstance(self.codec, GatherCompressor) and count * width:
            values = self.codec.decode(ops, encoded, _part(state, (count, width)).layout)
        else:
            sent_as = "float16" if isinstance(self.codec, HalfPrecision) else dtype
            check_length(self.name, encoded, count * width * ITEMSIZE[sent_as])
            values = ops.cast(ops.from_bytes(encoded, sent_as), dtype)
        return indices, values.reshape(count, width)


def sparse_rows(name: str, compressor: Compressor) -> SparseRows:
    """Return what a parameter's sparse gradients are exchanged with; log it if that is not the compressor asked for."""
    rows = SparseRows(compressor)
    if compressor != PLAIN and rows.codec == PLAIN and not rows.selects:
        logger.info("%s does not compress single rows: those of %s are sent plain", spec(compressor), name)
    return rows


def _part(state: State, shape: tuple[int, ...]) -> State:
    """Return a parameter's state, with its random numbers, for some of its rows."""
    return state.of(Layout.of([(state.layout.parameters[0].name, tuple(shape))]))


def _sum(ops: Ops, *parts: tuple[Array, Array]) -> tuple[Array, Array]:
    """Return the sums of the rows of each index: of several pairs of indices and values."""
    indices = ops.concat([part for part, _ in parts])
    values = ops.concat([ops.flatten(part) for _, part in parts]).reshape(indices.shape[0], parts[0][1].shape[1])
    return ops.sum_rows(indices, values)
