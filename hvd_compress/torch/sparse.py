"""Sparse gradients (of embeddings) as Horovod sends them: the rows of all workers, gathered and averaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hvd_compress.compressors import AllGather, Compressor, Exchanging, Reduced
from hvd_compress.ops import Ops
from hvd_compress.state import State


@dataclass(frozen=True)
class SparseRows(Compressor):
    """Gather coalesced sparse gradients; a payload is the indices (int64) and then the values.

    The vector that it exchanges is a sparse tensor of the one parameter in the layout.
    """

    name: ClassVar[str] = "sparse_rows"
    wire: ClassVar[str] = "indices (int64), values"
    collectives: ClassVar[tuple[str, ...]] = ("allgather",)
    unbiased: ClassVar[bool] = True
    stateful: ClassVar[bool] = False

    def reduce(self, ops: Ops, vector: Tensor, state: State) -> Exchanging:
        """Average the gathered rows; the mean is a coalesced sparse tensor."""
        axes, shape, dtype = vector.sparse_dim(), vector.shape, vector.dtype
        parts = (vector.indices().reshape(-1), vector.values().reshape(-1))
        payloads = yield AllGather(torch.cat([ops.to_bytes(part) for part in parts]), varying=True)
        row = shape[axes:].numel() * dtype.itemsize
        indices, values = [], []
        for payload in payloads:
            count, rest = divmod(payload.shape[0], 8 * axes + row)
            if rest:
                raise ValueError(f"{payload.shape[0]} bytes came in, not a number of rows of {8 * axes + row} bytes")
            cut = 8 * axes * count
            indices.append(ops.from_bytes(payload[:cut], "int64").reshape(axes, count))
            plain = ops.from_bytes(payload[cut:], str(dtype).removeprefix("torch."))
            values.append(plain.reshape(count, *shape[axes:]))
        mean = torch.sparse_coo_tensor(  # indices outside the shape raise
            torch.cat(indices, dim=1), torch.cat(values) / len(payloads), shape, check_invariants=True
        ).coalesce()
        return Reduced(mean, None)


def as_rows(gradient: Tensor | None, parameter: Tensor, sparse_dim: int) -> Tensor:
    """Return a parameter's gradient as a coalesced sparse tensor; one that is missing is one of no rows."""
    if gradient is None:
        shape = (0, *parameter.shape[sparse_dim:])
        values = torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)
        indices = torch.zeros(sparse_dim, 0, dtype=torch.int64, device=parameter.device)
        gradient = torch.sparse_coo_tensor(indices, values, parameter.shape, check_invariants=False)
    return (gradient if gradient.is_sparse else gradient.to_sparse(sparse_dim)).coalesce()
