"""Reductions of groups of a vector: of blocks of one size, or of consecutive pieces of any lengths.

Sums are taken in float64, in an order of their own: rounded to float32, they are those of other orders.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hvd_compress.native.gpu.launch import TILE, WARPS, Division, division, launch, tiles
from hvd_compress.native.gpu.packing import places_of
from hvd_compress.native.kernels import Groups

SMALL = 8192  # size of blocks up to which one program reduces one block or several


@triton.jit
def magnitude_bits(x):
    """Return the bits of magnitudes, int32, which are ordered as these are, with NaN above all."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def _loaded(x_ptr, plus_ptr, i, mask, PLUS: tl.constexpr):
    x = tl.load(x_ptr + i, mask=mask, other=0.0)
    if PLUS:
        x += tl.load(plus_ptr + i, mask=mask, other=0.0)
    return x


@triton.jit
def _squares(x):
    return x.to(tl.float64) * x.to(tl.float64)


@triton.jit
def _sides(x, inside):
    """Return what is at least zero and all else, float64 with zeros elsewhere, and which is at least zero."""
    positive = inside & (x >= 0)
    wide = x.to(tl.float64)
    up, down = tl.where(positive, wide, 0.0), tl.where(inside & (positive == 0), wide, 0.0)  # NaN is in the latter
    return up, down, positive.to(tl.int32)


@triton.jit
def store_sides(sums_ptr, parts, to, x, inside):
    """Store what is inside, of two axes, as part `to` of so many of a group: one number behind another's parts."""
    up, down, positive = _sides(x, inside)
    tl.store(sums_ptr + to, tl.sum(up))
    tl.store(sums_ptr + parts + to, tl.sum(down))
    tl.store(sums_ptr + 2 * parts + to, tl.sum(positive).to(tl.float64))


@triton.jit
def _blocks(
    x_ptr,
    plus_ptr,
    most_ptr,
    sums_ptr,
    size,
    block,
    count,
    MODE: tl.constexpr,
    PLUS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    group = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    i = group[:, None] * block + column[None, :]
    inside = (column[None, :] < block) & (i < size) & (group[:, None] < count)
    x = _loaded(x_ptr, plus_ptr, i, inside, PLUS)
    mask = group < count
    if MODE == "sides":
        up, down, positive = _sides(x, inside)
        tl.store(sums_ptr + group * 3, tl.sum(up, 1), mask=mask)
        tl.store(sums_ptr + group * 3 + 1, tl.sum(down, 1), mask=mask)
        tl.store(sums_ptr + group * 3 + 2, tl.sum(positive, 1).to(tl.float64), mask=mask)
    else:
        tl.store(most_ptr + group, tl.max(magnitude_bits(x), 1), mask=mask)
        if MODE == "squares":
            tl.store(sums_ptr + group, tl.sum(_squares(x), 1), mask=mask)


@triton.jit
def _tiles(
    x_ptr,
    plus_ptr,
    starts_ptr,
    tiles_ptr,
    most_ptr,
    sums_ptr,
    size,
    parts,
    MODE: tl.constexpr,
    PLUS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Reduce what each group has in a tile; a group's parts lie behind each other, at tile + group."""
    tile = tl.program_id(0)
    i = places_of(tile * TILE, TILE)
    x = _loaded(x_ptr, plus_ptr, i, i < size, PLUS)
    for group in range(tl.load(tiles_ptr + tile), tl.load(tiles_ptr + tl.num_programs(0) + tile) + 1):
        inside = (i >= tl.load(starts_ptr + group)) & (i < tl.load(starts_ptr + group + 1))
        to = tile + group
        if MODE == "sides":
            store_sides(sums_ptr, parts, to, x, inside)
        else:
            own = tl.where(inside, x, 0.0)
            tl.store(most_ptr + to, tl.max(magnitude_bits(own)))
            if MODE == "squares":
                tl.store(sums_ptr + to, tl.sum(_squares(own)))


@triton.jit
def _joined(
    most_in,
    sums_in,
    starts_ptr,
    most_ptr,
    sums_ptr,
    parts,
    MODE: tl.constexpr,
    EACH: tl.constexpr,
    TILE: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Join the parts of each group, and of its sums each."""
    group, number = tl.program_id(0), tl.program_id(1)
    start, end = tl.load(starts_ptr + group), tl.load(starts_ptr + group + 1)
    first = start // TILE + group
    last = tl.where(end > start, (end - 1) // TILE + group + 1, first)
    if MODE != "sides":
        most = tl.zeros([PARTS], tl.int32)
        for part in range(first, last, PARTS):
            i = part + tl.arange(0, PARTS)
            most = tl.maximum(most, tl.load(most_in + i, mask=i < last, other=0))
        tl.store(most_ptr + group, tl.max(most, 0))
    if EACH > 0:
        total = tl.zeros([PARTS], tl.float64)
        for part in range(first, last, PARTS):
            i = part + tl.arange(0, PARTS)
            total += tl.load(sums_in + number * parts + i, mask=i < last, other=0.0)
        tl.store(sums_ptr + group * EACH + number, tl.sum(total, 0))


def _reduced(vector: Tensor, groups: Groups, plus: Tensor | None, mode: str) -> tuple[Tensor, Tensor]:
    """Return the largest magnitudes (not for "sides"), and the sums in float64 (not for "max")."""
    each = {"max": 0, "squares": 1, "sides": 3}[mode]

    def made(count: int) -> tuple[Tensor, Tensor]:
        return (
            torch.empty(count, device=vector.device),
            torch.empty(count * each, dtype=torch.float64, device=vector.device),
        )

    given: dict[str, Any] = {"MODE": mode, "PLUS": plus is not None, "warps": 16 if mode == "sides" else WARPS}
    added = vector if plus is None else plus
    size = vector.shape[0]
    if isinstance(groups, int) and groups <= SMALL:
        count = -(-size // groups)
        most, sums = made(count)
        width = triton.next_power_of_2(groups)
        rows = max(1, 4096 // width)
        grid = (triton.cdiv(count, rows),)
        bits = most.view(torch.int32)
        launch(_blocks, grid, vector, added, bits, sums, size, groups, count, ROWS=rows, WIDTH=width, **given)
        return most, sums
    if isinstance(groups, int):
        groups = [min(groups, size - start) for start in range(0, size, groups)]
    parts, count = division(groups, vector), tiles(size) + len(groups)
    most, sums = made(parts.count)
    part_most, part_sums = made(count)
    part_bits, tables = part_most.view(torch.int32), (parts.starts, parts.of_tiles)
    launch(_tiles, (tiles(size),), vector, added, *tables, part_bits, part_sums, size, count, TILE=TILE, **given)
    _join(part_bits, part_sums, parts, most.view(torch.int32), sums, count, mode, each)
    return most, sums


def _join(
    part_bits: Tensor, part_sums: Tensor, parts: Division, bits: Tensor, sums: Tensor, count: int, mode: str, each: int
) -> None:
    """Write what `_joined` makes of so many parts."""
    given: dict[str, Any] = {"MODE": mode, "EACH": each, "TILE": TILE, "PARTS": 4096}
    launch(_joined, (parts.count, max(1, each)), part_bits, part_sums, parts.starts, bits, sums, count, **given)


def joined_sides(part_sums: Tensor, groups: Division) -> Tensor:
    """Return what `group_sides` does, of what `store_sides` stored, of shape (3, parts)."""
    sums = torch.empty(3 * groups.count, dtype=torch.float64, device=part_sums.device)
    _join(part_sums, part_sums, groups, sums, sums, part_sums.shape[1], "sides", 3)
    return sums


def group_max_abs(vector: Tensor, groups: Groups, plus: Tensor | None) -> Tensor:
    """Return each group's largest magnitude: 0 if it is empty, NaN if it has one."""
    return _reduced(vector, groups, plus, "max")[0]


def group_max_square(vector: Tensor, groups: Groups, plus: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return each group's largest magnitude and its sum of squares."""
    return _reduced(vector, groups, plus, "squares")


def group_sides(vector: Tensor, groups: Groups, plus: Tensor | None) -> Tensor:
    """Return three numbers a group: the sum of what is at least zero, that of all else, and the first's number."""
    return _reduced(vector, groups, plus, "sides")[1]
