"""Sparse gradients (of embeddings): the rows of all workers, compressed, gathered and averaged, never made dense."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hvd_compress.compressors import AllGather, Compressor, Exchanging, GatherCompressor, Reduced
from hvd_compress.compressors.base import check_length
from hvd_compress.compressors.cast import HalfPrecision
from hvd_compress.compressors.indices import decode_indices, encode_indices, index_bytes
from hvd_compress.compressors.sparsify import COUNT_BYTES, HALF_MAX, Threshold
from hvd_compress.layout import Layout
from hvd_compress.ops import Ops
from hvd_compress.ops.torch import TorchOps
from hvd_compress.plan import PLAIN
from hvd_compress.state import State


class RowOps(TorchOps):
    """Those on PyTorch tensors; what is asked of gradients, means and residuals takes sparse ones as well."""

    def norm(self, vector: Tensor) -> float:
        """Return the Euclidean norm."""
        return super().norm(vector.values() if vector.is_sparse else vector)

    def all_finite(self, vector: Tensor) -> bool:
        """Tell whether no element is NaN or infinite."""
        return super().all_finite(vector.values() if vector.is_sparse else vector)

    def poison(self, vector: Tensor) -> Tensor:
        """Return the vector itself if it is finite, else one with the same rows, of NaN."""
        return vector if self.all_finite(vector) else vector * torch.nan


@dataclass(frozen=True)
class SparseRows(Compressor):
    """Gather the rows of coalesced sparse gradients, compressed as the parameter's compressor has it.

    A row is what lies under one index of the sparse axes. A payload is the number of rows (int64), their indices, of
    all sparse axes in one, in their compact code, and their values. A method that selects coordinates selects rows: as
    many as are its ``ratio`` of the gradient's, one at least, those of largest Euclidean norm; or those whose norm is
    not below its ``threshold``. The values are encoded as one flat vector: by the ``values`` of a method that selects,
    else by the method itself, if it can encode any vector. Any other method sends plain rows.

    Feedback of any kind is error feedback here. So is that of an unbiased method that selects, whose largest rows
    alone would be biased. The residual is a coalesced sparse tensor of what was not sent. It competes with new rows
    where rows are selected; otherwise a row of it waits for the row's next gradient.

    The vector that it exchanges is a sparse tensor of the one parameter in the layout.

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
        return bool(self.method.selects)

    @property
    def codec(self) -> Compressor:
        """What encodes the values: a `GatherCompressor`, fp16, or none."""
        values = getattr(self.method, "values", PLAIN) if self.selects else self.method
        if values == "fp16":
            return HalfPrecision()
        encodes = isinstance(values, GatherCompressor | HalfPrecision) and not values.votes
        return values if encodes else PLAIN

    @property
    def feedback(self) -> bool:
        """Whether there is a residual."""
        if self.selects:
            return self.method is not self.compressor or self.method.unbiased
        return self.method is not self.compressor and self.codec != PLAIN

    def reduce(self, ops: Ops, vector: Tensor, state: State) -> Exchanging:
        """Average the gathered rows; the mean is a coalesced sparse tensor of the vector's dtype."""
        dtype, present = vector.dtype, _flat_indices(vector)
        if self.feedback or self.codec != PLAIN:
            vector = vector.float()
        if "residual" in state.local:
            vector = (vector + state.local["residual"]).coalesce()
        rows, width = math.prod(vector.shape[: vector.sparse_dim()]), math.prod(vector.shape[vector.sparse_dim() :])
        indices, values = _flat_indices(vector), vector.values().reshape(vector._nnz(), width)
        if self.selects and len(indices):
            norms = ops.row_norm(values)
            if isinstance(self.method, Threshold):
                chosen = ops.above(norms, self.method.threshold)
            else:
                count = max(1, round(self.method.ratio * len(present)))
                chosen = ops.top_k(norms, min(len(indices), count))
        else:
            chosen = torch.isin(indices, present).nonzero().reshape(-1)
        payload = self._encode(ops, indices[chosen], values[chosen], rows, state)
        payloads = yield AllGather(payload, varying=True)
        decoded = [self._decode(ops, other, rows, width, values.dtype, state) for other in payloads]
        mean = _sparse(
            torch.cat([part for part, _ in decoded]), torch.cat([part for _, part in decoded]) / len(payloads), vector
        )
        if self.feedback:
            _, sent = self._decode(ops, payload, rows, width, values.dtype, state)
            left = values.index_add(0, chosen, sent, alpha=-1)
            rest = (left != 0).any(dim=1)
            state.local["residual"] = _sparse(indices[rest], left[rest], vector)
        return Reduced(mean.to(dtype), None)

    def _encode(self, ops: Ops, indices: Tensor, values: Tensor, rows: int, state: State) -> Tensor:
        codec, flat = self.codec, values.reshape(-1)
        if isinstance(codec, GatherCompressor) and len(flat):
            encoded = codec.encode(ops, flat, _part(state, values.shape))
        else:
            if isinstance(codec, HalfPrecision):
                flat = ops.cast(ops.clip(flat, -HALF_MAX, HALF_MAX) if self.selects else flat, "float16")
            encoded = ops.to_bytes(flat)
        count = torch.tensor([len(indices)], device=values.device)
        return ops.concat([ops.to_bytes(count), encode_indices(ops, indices, rows), encoded])

    def _decode(
        self, ops: Ops, payload: Tensor, rows: int, width: int, dtype: torch.dtype, state: State
    ) -> tuple[Tensor, Tensor]:
        """Return the indices, of shape (count,), and the values, of shape (count, width), in a payload.

        Raises:
            ValueError: if the payload is not one that `_encode` can have written.
        """
        count = int(ops.from_bytes(payload[:COUNT_BYTES], "int64")) if payload.shape[0] >= COUNT_BYTES else -1
        cut = COUNT_BYTES + (index_bytes(rows, count) if 0 <= count <= rows else 0)
        if not 0 <= count <= rows or payload.shape[0] < cut:
            raise ValueError(f"{self.name}: {payload.shape[0]} bytes came in, for {count} of {rows} rows")
        indices, encoded = decode_indices(ops, payload[COUNT_BYTES:cut], rows, count), payload[cut:]
        if isinstance(self.codec, GatherCompressor) and count * width:
            values = self.codec.decode(ops, encoded, _part(state, (count, width)).layout)
        else:
            wire = torch.float16 if isinstance(self.codec, HalfPrecision) else dtype
            check_length(self.name, encoded, count * width * wire.itemsize)
            values = ops.from_bytes(encoded, str(wire).removeprefix("torch.")).to(dtype)
        return indices, values.reshape(count, width)


def _part(state: State, shape: tuple[int, ...]) -> State:
    """Return a parameter's state, with its random numbers, for some of its rows."""
    return state.of(Layout.of([(state.layout.parameters[0].name, tuple(shape))]))


def _strides(tensor: Tensor) -> list[int]:
    axes = tensor.sparse_dim()
    return [math.prod(tensor.shape[axis + 1 : axes]) for axis in range(axes)]


def _flat_indices(tensor: Tensor) -> Tensor:
    """Return the indices of a coalesced sparse tensor, of all sparse axes in one: ascending, of shape (nnz,)."""
    strides = torch.tensor(_strides(tensor), device=tensor.device)
    return (tensor.indices() * strides[:, None]).sum(dim=0)


def _sparse(indices: Tensor, values: Tensor, like: Tensor) -> Tensor:
    """Return rows as a coalesced sparse tensor; those of one index are added.

    Args:
        indices: of shape (count,), of all sparse axes in one.
        values: of shape (count, width).
        like: a sparse tensor of the same shape and sparse axes.
    """
    axes = [indices // stride % size for stride, size in zip(_strides(like), like.shape, strict=False)]
    values = values.reshape(len(values), *like.shape[like.sparse_dim() :])
    return torch.sparse_coo_tensor(torch.stack(axes), values, like.shape, check_invariants=False).coalesce()


def as_rows(gradient: Tensor | None, parameter: Tensor, sparse_dim: int) -> Tensor:
    """Return a parameter's gradient as a coalesced sparse tensor; one that is missing is one of no rows."""
    if gradient is None:
        shape = (0, *parameter.shape[sparse_dim:])
        values = torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)
        indices = torch.zeros(sparse_dim, 0, dtype=torch.int64, device=parameter.device)
        gradient = torch.sparse_coo_tensor(indices, values, parameter.shape, check_invariants=False)
    return (gradient if gradient.is_sparse else gradient.to_sparse(sparse_dim)).coalesce()
