"""Products of low rank: P Q^T is added in one pass, the others are cuBLAS's, which reads a matrix once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hvd_compress.native.gpu.launch import launch
from hvd_compress.native.kernels import Shape

ROWS, COLUMNS = 16, 256  # of a matrix, that one program does


@triton.jit
def _add_product(
    total_ptr,
    left_ptr,
    right_ptr,
    rows,
    columns,
    factor,
    RANK: tl.constexpr,
    FRESH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    product = tl.zeros([ROWS, COLUMNS], tl.float32)
    for i in tl.static_range(RANK):
        p = tl.load(left_ptr + row * RANK + i, mask=row < rows, other=0.0)
        q = tl.load(right_ptr + column * RANK + i, mask=column < columns, other=0.0)
        product += p[:, None] * q[None, :]
    at = total_ptr + row[:, None].to(tl.int64) * columns + column[None, :]
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    product = product * factor
    if not FRESH:
        product = tl.load(at, mask=inside, other=0.0) + product
    tl.store(at, product, mask=inside)


def times(
    vector: Tensor, offsets: Sequence[int], shape: Shape, right: Tensor, rank: int, plus: Tensor | None = None
) -> Tensor:
    """Return M Q for each matrix, all rows one behind the other; with `plus`, M becomes M + plus before."""
    products = []
    for offset, factor in zip(offsets, right.reshape(-1, shape[1], rank), strict=True):
        matrix = _matrix(vector, offset, shape)
        if plus is not None:
            matrix.add_(_matrix(plus, offset, shape))
        products.append((matrix @ factor).reshape(-1))
    return torch.cat(products)


def times_transposed(
    vector: Tensor, offsets: Sequence[int], shape: Shape, left: Tensor, rank: int, rest: bool = False
) -> Tensor:
    """Return Q = M^T P for each matrix; with `rest`, M becomes M - P Q^T in the vector."""
    factors = left.reshape(-1, shape[0], rank)
    products = [
        (_matrix(vector, offset, shape).T @ factor).reshape(-1) for offset, factor in zip(offsets, factors, strict=True)
    ]
    product = torch.cat(products)
    if rest:
        add_product(vector, offsets, shape, left, product, rank, -1.0)
    return product


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
    grid = (triton.cdiv(columns, COLUMNS), triton.cdiv(rows, ROWS))
    for number, offset in enumerate(offsets):
        p = left[number * rows * rank : (number + 1) * rows * rank]
        q = right[number * columns * rank : (number + 1) * columns * rank]
        launch(
            _add_product, grid, total[offset : offset + rows * columns], p, q, rows, columns, float(factor),
            RANK=rank, FRESH=fresh, ROWS=ROWS, COLUMNS=COLUMNS, warps=4,
        )  # fmt: skip


def _matrix(vector: Tensor, offset: int, shape: Shape) -> Tensor:
    return vector[offset : offset + shape[0] * shape[1]].view(shape)
