"""Products of matrices with factors of few columns: cuBLAS's, but for the one that it takes long for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hvd_compress.native.gpu.launch import launch
from hvd_compress.native.kernels import Shape

ROWS = 256  # of a matrix, of which one program adds up the products
COLUMNS = 512


@triton.jit
def _times_transposed(
    matrix_ptr,
    left_ptr,
    out_ptr,
    rows,
    columns,
    rank,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Add up some rows' products with their rows of the factor, for some columns."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    factor = tl.arange(0, RANK)
    total = tl.zeros([COLUMNS, RANK], tl.float32)
    for number in range(0, ROWS, 4):
        for part in tl.static_range(4):
            row = tl.program_id(1) * ROWS + number + part
            at = matrix_ptr + row * tl.cast(columns, tl.int64) + column
            x = tl.load(at, mask=(column < columns) & (column * 0 + row < rows), other=0.0)
            p = tl.load(left_ptr + row * rank + factor, mask=(factor < rank) & (factor * 0 + row < rows), other=0.0)
            total += x[:, None] * p[None, :]
    at = (tl.program_id(1) * tl.cast(columns, tl.int64) + column[:, None]) * rank + factor[None, :]
    tl.store(out_ptr + at, total, mask=(column[:, None] < columns) & (factor[None, :] < rank))


def times(vector: Tensor, offsets: Sequence[int], shape: Shape, right: Tensor, rank: int) -> Tensor:
    """Return M Q for each matrix, all rows one behind the other; `right` has the factors Q in the same way."""
    factors = right.reshape(-1, shape[1], rank)
    return torch.cat([(m @ q).reshape(-1) for m, q in zip(_matrices(vector, offsets, shape), factors, strict=True)])


def times_transposed(vector: Tensor, offsets: Sequence[int], shape: Shape, left: Tensor, rank: int) -> Tensor:
    """Return M^T P for each matrix."""
    (rows, columns), parts = shape, []
    factors = left.reshape(-1, rows, rank)
    grid = (triton.cdiv(columns, COLUMNS), triton.cdiv(rows, ROWS))
    constants = {"RANK": triton.next_power_of_2(rank), "ROWS": ROWS, "COLUMNS": COLUMNS}
    for offset, factor in zip(offsets, factors, strict=True):
        sums = torch.empty(grid[1], columns * rank, device=vector.device)
        matrix = vector[offset : offset + rows * columns]
        launch(_times_transposed, grid, matrix, factor.contiguous(), sums, rows, columns, rank, warps=4, **constants)
        parts.append(sums.sum(0))
    return torch.cat(parts)


def add_product(
    total: Tensor,
    offsets: Sequence[int],
    shape: Shape,
    left: Tensor,
    right: Tensor,
    rank: int,
    factor: float,
    fresh: bool = False,
) -> None:
    """Add factor * P Q^T to each matrix in `total`; or write it, where the memory is `fresh`, of any content."""
    rows, columns = shape
    factors = zip(left.reshape(-1, rows, rank), right.reshape(-1, columns, rank), strict=True)
    for matrix, (p, q) in zip(_matrices(total, offsets, shape), factors, strict=True):
        torch.addmm(matrix, p, q.T, beta=0.0 if fresh else 1.0, alpha=factor, out=matrix)


def _matrices(vector: Tensor, offsets: Sequence[int], shape: Shape) -> list[Tensor]:
    size = shape[0] * shape[1]
    return [vector[offset : offset + size].view(shape) for offset in offsets]
