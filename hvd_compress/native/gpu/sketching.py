"""Count sketches and invertible sketches (`hvd_compress.compressors.sketches`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from hvd_compress.native.gpu.launch import TILE, launch, tiles
from hvd_compress.native.gpu.marks import counts_of, ends_of, indices_of
from hvd_compress.native.gpu.selection import top_k
from hvd_compress.native.gpu.sparse import scatter
from hvd_compress.native.kernels import Hashing
from hvd_compress.ops.torch import uploaded

FIRST_PASSES, MORE_PASSES = 8, 2  # of peeling, after which the host asks whether anything was still read


@triton.jit
def _turned(x, turn):
    """Return numbers with their signs turned where the lowest bit says so."""
    return (x.to(tl.int32, bitcast=True) ^ (turn << 31)).to(tl.float32, bitcast=True)


@triton.jit
def _sign_bits(signs_ptr, position, mask):
    return (tl.load(signs_ptr + (position >> 5), mask=mask, other=0) >> (position & 31)) & 1


@triton.jit
def _sketch(
    x_ptr,
    offset,
    size,
    shifts_ptr,
    flips_ptr,
    signs_ptr,
    table_ptr,
    columns,
    blocks,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Add to a tile of a row what each block has there, block after block."""
    row = tl.program_id(0) % ROWS  # the rows of a tile run together, and read the same blocks
    column = (tl.program_id(0) // ROWS) * TILE + tl.arange(0, TILE)
    inside = column < columns
    at = table_ptr + row * tl.cast(columns, tl.int64) + column
    total = tl.load(at, mask=inside, other=0.0)
    for block in range(offset // columns, tl.cdiv(offset + size, columns)):
        position = column - tl.load(shifts_ptr + row * blocks + block)
        position += tl.where(position < 0, columns, 0)
        i = position.to(tl.int64) + block * columns - offset
        mask = inside & (i >= 0) & (i < size)
        turn = _sign_bits(signs_ptr, position, inside) ^ tl.load(flips_ptr + row * blocks + block)
        x = tl.load(x_ptr + i, mask=mask, other=0.0)
        total = tl.where(mask, total + _turned(x, turn), total)
    tl.store(at, total, mask=inside)


@triton.jit
def _entry(table_ptr, row, block, position, turn, shifts_ptr, flips_ptr, columns, blocks, mask):
    column = position + tl.load(shifts_ptr + row * blocks + block, mask=mask, other=0)
    column -= tl.where(column >= columns, columns, 0)
    sum = tl.load(table_ptr + row * tl.cast(columns, tl.int64) + column, mask=mask, other=0.0)
    return _turned(sum, turn ^ tl.load(flips_ptr + row * blocks + block, mask=mask, other=0))


@triton.jit
def _lesser(a, b):
    return tl.where(a < b, a, b)


@triton.jit
def _greater(a, b):
    return tl.where(a > b, a, b)


@triton.jit
def _middle(a, b, c):
    return _greater(_lesser(a, b), _lesser(_greater(a, b), c))


@triton.jit
def _estimate(
    table_ptr,
    shifts_ptr,
    flips_ptr,
    signs_ptr,
    indices_ptr,
    out_ptr,
    count,
    columns,
    blocks,
    ROWS: tl.constexpr,
    LISTED: tl.constexpr,
    TILE: tl.constexpr,
):
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    mask = i < count
    index = tl.load(indices_ptr + i, mask=mask, other=0).to(tl.int32) if LISTED else i
    block = index // columns
    position = index - block * columns
    turn = _sign_bits(signs_ptr, position, mask)
    a = _entry(table_ptr, 0, block, position, turn, shifts_ptr, flips_ptr, columns, blocks, mask)
    if ROWS == 1:
        median = a
    elif ROWS <= 5:
        b = _entry(table_ptr, 1, block, position, turn, shifts_ptr, flips_ptr, columns, blocks, mask)
        c = _entry(table_ptr, 2, block, position, turn, shifts_ptr, flips_ptr, columns, blocks, mask)
        if ROWS == 3:
            median = _middle(a, b, c)
        else:
            d = _entry(table_ptr, 3, block, position, turn, shifts_ptr, flips_ptr, columns, blocks, mask)
            e = _entry(table_ptr, 4, block, position, turn, shifts_ptr, flips_ptr, columns, blocks, mask)
            low = _greater(_lesser(a, b), _lesser(c, d))
            high = _lesser(_greater(a, b), _greater(c, d))
            median = _middle(low, high, e)
    else:
        row = tl.arange(0, 16)[None, :]
        there = mask[:, None] & (row < ROWS)
        sums = _entry(
            table_ptr, row, block[:, None], position[:, None], turn[:, None], shifts_ptr, flips_ptr, columns, blocks,
            there,
        )  # fmt: skip
        sums = tl.where(row < ROWS, sums, float("inf"))
        one, other = sums[:, :, None], sums[:, None, :]
        earlier = tl.arange(0, 16)[None, None, :] < tl.arange(0, 16)[None, :, None]
        rank = tl.sum(((other < one) | ((other == one) & earlier)).to(tl.int32), 2)
        median = tl.sum(tl.where(rank == ROWS // 2, sums, 0.0), 1)
        median += 0.0 * tl.sum(tl.where(row < ROWS, sums, 0.0), 1)  # NaN has no rank
    tl.store(out_ptr + i, median, mask=mask)


@triton.jit
def _add_codes(
    table_ptr, shifts_ptr, codes_ptr, indices_ptr, count, columns, blocks, ROWS: tl.constexpr, TILE: tl.constexpr
):
    """Add the codes of coordinates' blocks to their sums in all rows."""
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    index = tl.load(indices_ptr + i, mask=i < count, other=0)
    block = (index // columns).to(tl.int32)
    position = (index - block.to(tl.int64) * columns).to(tl.int32)
    _add_to_rows(table_ptr, shifts_ptr, block, position, tl.load(codes_ptr + block), i < count, columns, blocks, ROWS)


@triton.jit
def _add_to_rows(table_ptr, shifts_ptr, block, position, sum, mask, columns, blocks, ROWS: tl.constexpr):
    for row in tl.static_range(ROWS):
        to = position + tl.load(shifts_ptr + row * blocks + block)
        to -= tl.where(to >= columns, columns, 0)
        tl.atomic_add(table_ptr + row * columns + to, sum, mask=mask, sem="relaxed")


@triton.jit(do_not_specialize=["turn"])
def _peel(
    table_ptr,
    turn,
    shifts_ptr,
    multiples_ptr,
    owners_ptr,
    words_ptr,
    numbers_ptr,
    size,
    columns,
    blocks,
    multiples,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Read the sums of a row to which one coordinate was added, mark these, and subtract them in all rows.

    The number read in each turn is counted. After as many turns in vain as there are rows nothing is left to read.
    """
    recent = turn < ROWS
    for back in tl.static_range(ROWS):
        recent = recent | (tl.load(numbers_ptr + tl.maximum(turn - 1 - back, 0)) > 0)
    if recent:
        row = turn % ROWS
        column = tl.program_id(0) * TILE + tl.arange(0, TILE)
        inside = column < columns
        sum = tl.load(table_ptr + row * columns + column, mask=inside, other=0)
        at = tl.zeros([TILE], tl.int32)  # of the multiples not above the sum, the number
        for step in tl.static_range(STEPS):
            further = at + (1 << (STEPS - 1 - step))
            there = further <= multiples
            below = tl.load(multiples_ptr + further - 1, mask=there, other=0) <= sum
            at = tl.where(there & below, further, at)
        at = tl.maximum(at - 1, 0)
        block = tl.load(owners_ptr + at)
        position = column - tl.load(shifts_ptr + row * blocks + block)
        position += tl.where(position < 0, columns, 0)
        index = block.to(tl.int64) * columns + position
        alone = inside & (tl.load(multiples_ptr + at) == sum) & (index < size)
        number = tl.sum(alone.to(tl.int32), 0)
        if number > 0:
            tl.atomic_add(numbers_ptr + turn, number, sem="relaxed")
            bit = (1 << (index & 31)).to(tl.int32)
            tl.atomic_or(words_ptr + (index >> 5), bit, mask=alone, sem="relaxed")
            _add_to_rows(table_ptr, shifts_ptr, block, position, -sum, alone, columns, blocks, ROWS)


def sketch(table: Tensor, size: int, rows: int, hashing: Hashing, vector: Tensor, offset: int) -> None:
    """Add to the table a part of a vector of `size` coordinates that begins at an offset."""
    columns = table.shape[0] // rows
    launch(
        _sketch, (rows * tiles(columns, 1024),), vector, offset, vector.shape[0], *hashing,
        table, columns, -(-size // columns), ROWS=rows, TILE=1024, warps=4,
    )  # fmt: skip


def sketch_sparse(table: Tensor, size: int, rows: int, hashing: Hashing, indices: Tensor, values: Tensor) -> None:
    """Add a vector of values at indices; as a whole vector, so that sums are taken in the CPU's order."""
    sketch(table, size, rows, hashing, scatter(size, [(indices, values)], 1.0), 0)


def estimate(table: Tensor, size: int, rows: int, hashing: Hashing, indices: Tensor | None) -> Tensor:
    """Return the estimates at the indices, which are in range, or all."""
    columns, count = table.shape[0] // rows, size if indices is None else indices.shape[0]
    out = torch.empty(count, device=table.device)
    listed = table if indices is None else indices
    tile = 1024 if rows <= 5 else 64
    launch(
        _estimate, (tiles(count, tile),), table, *hashing, listed, out, count, columns,
        -(-size // columns), ROWS=rows, LISTED=indices is not None, TILE=tile, warps=4,
    )  # fmt: skip
    return out


def heavy(table: Tensor, size: int, rows: int, hashing: Hashing, count: int) -> Tensor:
    """Return the indices of the `count` estimates of largest magnitude, as `top_k` would of all estimates."""
    return top_k(estimate(table, size, rows, hashing, None), count)


def add_names(table: Tensor, indices: Tensor, shifts: np.ndarray[Any, Any], codes: np.ndarray[Any, Any]) -> Tensor:
    """Do `hvd_compress.compressors.sketches.invertible.add_names`."""
    (rows, blocks), count = shifts.shape, indices.shape[0]
    columns = table.shape[0] // rows
    given = _uploaded([shifts, codes], table.device)
    launch(
        _add_codes, (tiles(count, 1024),), table, *given, indices, count, columns, blocks, ROWS=rows, TILE=1024, warps=4
    )
    return table


def recover(
    table: Tensor,
    size: int,
    rows: int,
    shifts: np.ndarray[Any, Any],
    multiples: np.ndarray[Any, Any],
    owners: np.ndarray[Any, Any],
    passes: int,
) -> tuple[Tensor, int]:
    """Return what `InvertibleSketch.recover` reads, and how many sums are left; the host waits every few passes."""
    device, columns = table.device, table.shape[0] // rows
    left = table.clone()
    room = tiles(size) * (TILE // 32)
    zeros = torch.zeros(room + passes * rows, dtype=torch.int32, device=device)
    words, numbers = zeros[:room], zeros[room:]
    given = _uploaded([shifts, multiples, owners], device)
    turn = 0
    while turn < passes * rows:
        until = min(passes, turn // rows + (MORE_PASSES if turn else FIRST_PASSES)) * rows
        for number in range(turn, until):
            launch(
                _peel, (tiles(columns, 1024),), left, number, *given, words, numbers, size, columns,
                shifts.shape[0] // rows, multiples.shape[0], STEPS=int(multiples.shape[0]).bit_length(), ROWS=rows,
                TILE=1024, warps=4,
            )  # fmt: skip
        turn = until
        if not any(numbers[turn - rows : turn].tolist()):
            break
    return indices_of(words, ends_of(counts_of(words))), int(left.count_nonzero())


def _uploaded(arrays: list[np.ndarray[Any, Any]], device: torch.device) -> tuple[Tensor, ...]:
    """Return arrays on a device as int32 of one axis each, sent in one piece."""
    flat = [array.reshape(-1).astype(np.int32) for array in arrays]
    return uploaded(np.concatenate(flat), device).split([array.size for array in flat])
