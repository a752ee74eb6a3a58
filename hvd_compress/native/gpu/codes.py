"""Quantizers: the formulas of `hvd_compress.compressors.quantize` and `sign`, operation by operation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from hvd_compress.native.gpu.groups import group_max_abs, group_max_square, joined_sides, magnitude_bits, store_sides
from hvd_compress.native.gpu.launch import TILE, division, launch, signed, tiles
from hvd_compress.native.gpu.numbers import noise_at
from hvd_compress.native.gpu.packing import load_rows, places_of, store_packed, wide
from hvd_compress.native.kernels import Code, Groups, Words
from hvd_compress.ops import packed_bytes

RANDOM = ("levels", "natural")  # kinds that round at random

# --- a coordinate: its code and the value that a code stands for


@triton.jit
def _reciprocal(scale, numerator):
    sound = scale >= 7.888609052210118e-31  # 2^-100, SMALLEST_SCALE
    return tl.where(sound, tl.div_rn(numerator + scale * 0.0, tl.where(sound, scale, 1.0)), 0.0)


@triton.jit
def _unit(up, numerator, KIND: tl.constexpr):
    """Return what a coordinate is multiplied with for its code."""
    unit = up
    if KIND == "levels":
        unit = _reciprocal(up, 65536.0 * numerator)
    elif KIND == "dynamic":
        unit = _reciprocal(up, 1.0)
    return unit


@triton.jit
def _step(up, numerator, KIND: tl.constexpr):
    """Return what a code is multiplied with for its value."""
    return tl.div_rn(up, numerator + up * 0.0) if KIND == "levels" else up


@triton.jit
def _code(x, noise, unit, offset, top, KIND: tl.constexpr):
    if KIND == "levels":
        units = x * unit + offset
        units = tl.where(units > 0.0, units, 0.0)  # NaN becomes the lowest level
        units = tl.where(units < top, units, top)
        code = (units.to(tl.int32) + noise) >> 16
    elif KIND == "natural":
        bits = x.to(tl.int32, bitcast=True)
        magnitude = bits & 0x7FFFFFFF
        exponent = ((magnitude + noise * 128 + 64).to(tl.uint32, bitcast=True) >> 23).to(tl.int32)
        exponent = tl.where(exponent < 254, exponent, 254)
        code = tl.where(magnitude >= 0x7F800000, 255, exponent) | (((bits >> 31) & 1) << 8)
    elif KIND == "dynamic":
        relative = tl.abs(x) * unit
        slope = relative * 0.0
        cells = relative * 0.0
        low: tl.constexpr = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
        slopes: tl.constexpr = (
            1 / 0.9 * 1e6,
            2 / 0.9 * 1e5,
            4 / 0.9 * 1e4,
            8 / 0.9 * 1e3,
            16 / 0.9 * 1e2,
            32 / 0.9 * 1e1,
            64 / 0.9,
        )
        for decade in tl.static_range(7):
            there = relative >= low[decade]
            slope = tl.where(there, slopes[decade], slope)
            cells = tl.where(there, 1.0 * (1 << decade), cells)
        cell = relative * slope - cells * 0.1111111111111111
        cell = tl.where(cell > 0.0, cell, 0.0)
        cell = tl.where(cell < cells - 1.0, cell, cells - 1.0)
        code = tl.where(cells > 0.0, cell.to(tl.int32) + cells.to(tl.int32), 0) + tl.where(x < 0.0, 128, 0)
    elif KIND == "bfloat":
        word = x.to(tl.uint32, bitcast=True)
        nearest = (word + 0x7FFF + ((word >> 16) & 1)) >> 16
        code = tl.where(x == x, nearest.to(tl.int32), 0x7FC0)
    else:
        code = (x >= 0.0).to(tl.int32)
    return code


@triton.jit
def _value(code, step, down, low, KIND: tl.constexpr):
    if KIND == "levels":
        value = (code + low).to(tl.float32) * step
    elif KIND == "natural":
        value = (((code & 255) << 23) | ((code >> 8) << 31)).to(tl.float32, bitcast=True)
    elif KIND == "dynamic":
        cell = (code & 127).to(tl.float32)
        centre = cell * 0.0
        shifts: tl.constexpr = (
            1 / 9 + 0.5 - 1,
            2 / 9 + 0.5 - 2,
            4 / 9 + 0.5 - 4,
            8 / 9 + 0.5 - 8,
            16 / 9 + 0.5 - 16,
            32 / 9 + 0.5 - 32,
            64 / 9 + 0.5 - 64,
        )
        widths: tl.constexpr = (
            0.9 / 1e6,
            1 / (2 / 0.9 * 1e5),
            1 / (4 / 0.9 * 1e4),
            1 / (8 / 0.9 * 1e3),
            1 / (16 / 0.9 * 1e2),
            1 / (32 / 0.9 * 1e1),
            1 / (64 / 0.9),
        )
        for decade in tl.static_range(7):
            at = (cell + shifts[decade]) * widths[decade]
            centre = tl.where(cell >= 1.0 * (1 << decade), at, centre)
        value = tl.where(code >= 128, -centre, centre) * step
    elif KIND == "bfloat":
        value = (code << 16).to(tl.float32, bitcast=True)
    else:
        value = tl.where(code > 0, step, down)
    return value


# --- the scales of coordinates


@triton.jit
def _scales(
    scales_ptr,
    i,
    count,
    block,
    starts_ptr,
    tiles_ptr,
    numerator,
    KIND: tl.constexpr,
    EACH: tl.constexpr,
    LISTED: tl.constexpr,
    CODES: tl.constexpr,
    VALUES: tl.constexpr,
):
    """Return for each place the unit of CODES, the step of VALUES, and the second scale.

    They are those of blocks, or of the listed groups that the tile touches, of which each is divided once.
    """
    unit = i.to(tl.float32) * 0.0 + 1.0
    step, down = unit, -unit
    if EACH > 0:
        if LISTED:
            tile = tl.program_id(0)
            for group in range(tl.load(tiles_ptr + tile), tl.load(tiles_ptr + tl.num_programs(0) + tile) + 1):
                here = i >= tl.load(starts_ptr + group)
                up = tl.load(scales_ptr + group * EACH)
                if CODES:
                    unit = tl.where(here, _unit(up, numerator, KIND), unit)
                if VALUES:
                    step = tl.where(here, _step(up, numerator, KIND), step)
                if EACH == 2:
                    down = tl.where(here, tl.load(scales_ptr + group * EACH + 1), down)
        else:
            up = tl.load(scales_ptr + (i // block) * EACH, mask=i < count, other=1.0)
            if CODES:
                unit = _unit(up, numerator, KIND)
            if VALUES:
                step = _step(up, numerator, KIND)
            if EACH == 2:
                down = tl.load(scales_ptr + (i // block) * EACH + 1, mask=i < count, other=1.0)
        if EACH == 1:
            down = -step
    return unit, step, down


# --- whole vectors


@triton.jit(do_not_specialize=["first", "second", "low"])
def _quantize(
    x_ptr,
    residual_ptr,
    scales_ptr,
    out_ptr,
    count,
    block,
    starts_ptr,
    tiles_ptr,
    numerator,
    offset,
    top,
    low,
    first,
    second,
    KIND: tl.constexpr,
    BITS: tl.constexpr,
    EACH: tl.constexpr,
    LISTED: tl.constexpr,
    NORM: tl.constexpr,
    RANDOM: tl.constexpr,
    RESIDUAL: tl.constexpr,
    REST: tl.constexpr,
    WIDE: tl.constexpr,
    TILE: tl.constexpr,
):
    start = tl.program_id(0) * TILE
    i = places_of(start, TILE)
    x = tl.load(x_ptr + i, mask=i < count, other=0.0)
    if RESIDUAL:
        x += tl.load(residual_ptr + i, mask=i < count, other=0.0)
    if NORM == "given":
        unit, step, down = _scales(
            scales_ptr, i, count, block, starts_ptr, tiles_ptr, numerator, KIND, EACH, LISTED, True, REST
        )
    else:  # the tile is a block
        if NORM == "max":
            up = tl.max(tl.max(magnitude_bits(x), 1), 0).to(tl.float32, bitcast=True)
        else:
            wide = x.to(tl.float64)
            up = tl.sqrt(tl.sum(tl.sum(wide * wide, 1), 0)).to(tl.float32)
        unit, step, down = _unit(up, numerator, KIND), _step(up, numerator, KIND), -up
        tl.store(scales_ptr + tl.program_id(0), up)
    noise = noise_at(i, first, second) if RANDOM else i * 0
    code = tl.where(i < count, _code(x, noise, unit, offset, top, KIND), 0)
    if REST:
        tl.store(x_ptr + i, x - _value(code, step, down, low, KIND), mask=i < count)
    store_packed(out_ptr, code, i, start, count, BITS, WIDE, TILE)


@triton.jit(do_not_specialize=["low"])
def _dequantize(
    payloads_ptr,
    stride,
    workers,
    skip,
    total_ptr,
    count,
    block,
    starts_ptr,
    tiles_ptr,
    numerator,
    low,
    factor,
    KIND: tl.constexpr,
    BITS: tl.constexpr,
    EACH: tl.constexpr,
    LISTED: tl.constexpr,
    ADD: tl.constexpr,
    VOTE: tl.constexpr,
    TILE: tl.constexpr,
):
    start = tl.program_id(0) * TILE
    i = places_of(start, TILE)
    total = tl.zeros([TILE // 8, 8], tl.float32)
    if ADD:
        total = tl.load(total_ptr + i, mask=i < count, other=0.0)
    for worker in range(0, workers):
        payload_ptr = payloads_ptr + worker * tl.cast(stride, tl.int64)
        scales_ptr = payload_ptr.to(tl.pointer_type(tl.float32))
        _, step, down = _scales(
            scales_ptr, i, count, block, starts_ptr, tiles_ptr, numerator, KIND, EACH, LISTED, False, True
        )
        code = load_rows(payload_ptr + skip, start, i, count, BITS, TILE)
        value = _value(code, step, down, low, KIND) * factor
        total = tl.where((worker > 0) | ADD, total + value, value)  # of a first one a zero keeps its sign
    if VOTE:
        sign = (total > 0.0).to(tl.float32) - (total < 0.0).to(tl.float32)
        total = tl.where(total == total, sign, total)
    tl.store(total_ptr + i, total, mask=i < count)


class _Grouping:
    """How kernels find a coordinate's group: blocks of one size, or tables (see `Division`)."""

    def __init__(self, groups: Groups, vector: Tensor, each: int) -> None:
        self.block, self.starts, self.tiles = 1, vector, vector
        self.listed = False
        self.count = 0
        if isinstance(groups, int):
            self.block, self.count = groups, -(-vector.shape[0] // groups)
        else:
            self.count = len(groups)
            if each:
                parts = division(groups, vector)
                self.starts, self.tiles, self.listed = parts.starts, parts.of_tiles, True


def _levels(code: Code) -> tuple[float, float, float, int]:
    """Return numerator, offset, top and low of the kind "levels"."""
    _, _, numerator, low, high, _ = code
    return float(numerator), 0.5 - 65536.0 * low, 65536.0 * (high - low), low


def quantize(
    vector: Tensor,
    residual: Tensor | None,
    rest: bool,
    code: Code,
    groups: Groups,
    scales: Literal["max", "l2"] | Tensor | None,
    stream: Words,
) -> Tensor:
    """Return the payload of vector + residual: the scales and the packed codes."""
    _, bits, *_, each = code
    size, at = vector.shape[0], _Grouping(groups, vector, each)
    skip = 4 * each * at.count
    payload = torch.empty(skip + packed_bytes(size, bits), dtype=torch.uint8, device=vector.device)
    own = payload[:skip].view(torch.float32) if skip else vector
    norm, tile = "given", TILE
    if isinstance(scales, str):
        if 64 <= at.block <= TILE and at.block & (at.block - 1) == 0:
            norm, tile = scales, at.block
        elif scales == "max":
            own.copy_(group_max_abs(vector, groups, residual))
        else:
            own.copy_(group_max_square(vector, groups, residual)[1].sqrt())
    elif scales is not None:
        own.copy_(scales)
    _encode(payload[skip:], vector, residual, rest, code, at, own, norm, tile, stream)
    return payload


def _encode(
    out: Tensor,
    vector: Tensor,
    residual: Tensor | None,
    rest: bool,
    code: Code,
    at: _Grouping,
    scales: Tensor,
    norm: str,
    tile: int,
    stream: Words,
) -> None:
    """Write the packed codes, and with a norm the scales, of groups that are tiles."""
    kind, bits, *_, each = code
    numerator, offset, top, low = _levels(code)
    size = vector.shape[0]
    launch(
        _quantize, (tiles(size, tile),), vector, vector if residual is None else residual, scales, out, size, at.block,
        at.starts, at.tiles, numerator, offset, top, low, *map(signed, stream), KIND=kind, BITS=bits, EACH=each,
        LISTED=at.listed, NORM=norm, RANDOM=kind in RANDOM, RESIDUAL=residual is not None, REST=rest,
        WIDE=wide(out, size, bits), TILE=tile, warps=max(1, min(8, tile // 512)),
    )  # fmt: skip


@triton.jit
def _signs(x_ptr, size, starts_ptr, tiles_ptr, out_ptr, sums_ptr, parts, TILE: tl.constexpr):
    """Pack the signs of a tile, and sum up either side of what each group has there."""
    tile = tl.program_id(0)
    i = places_of(tile * TILE, TILE)
    x = tl.load(x_ptr + i, mask=i < size, other=0.0)
    store_packed(out_ptr, ((x >= 0.0) & (i < size)).to(tl.int32), i, tile * TILE, size, 1, False, TILE)
    for group in range(tl.load(tiles_ptr + tile), tl.load(tiles_ptr + tl.num_programs(0) + tile) + 1):
        inside = (i >= tl.load(starts_ptr + group)) & (i < tl.load(starts_ptr + group + 1))
        store_sides(sums_ptr, parts, tile + group, x, inside)


def signs(vector: Tensor, lengths: Sequence[int], header: int) -> tuple[Tensor, Tensor]:
    """Return `header` bytes of any content and the packed signs, and of each group what `group_sides` does."""
    size, groups = vector.shape[0], division(lengths, vector)
    payload = torch.empty(header + packed_bytes(size, 1), dtype=torch.uint8, device=vector.device)
    sums = torch.empty(3, tiles(size) + groups.count, dtype=torch.float64, device=vector.device)
    tables = groups.starts, groups.of_tiles
    launch(_signs, (tiles(size),), vector, size, *tables, payload[header:], sums, sums.shape[1], TILE=TILE, warps=16)
    return payload, joined_sides(sums, groups)


def dequantize(
    payloads: Sequence[Tensor],
    code: Code,
    groups: Groups,
    size: int,
    factor: float,
    vote: bool,
    total: Tensor | None,
) -> Tensor:
    """Return the sum of `factor` times the vectors in payloads; with `vote` its sign; added to `total` if given."""
    kind, bits, *_, each = code
    together, stride = _side_by_side(payloads)
    out = torch.empty(size, device=together.device) if total is None else total
    at = _Grouping(groups, out, each)
    numerator, _, _, low = _levels(code)
    given: dict[str, Any] = {"KIND": kind, "BITS": bits, "EACH": each, "LISTED": at.listed}
    launch(
        _dequantize, (tiles(size),), together, stride, len(payloads), 4 * each * at.count, out, size, at.block,
        at.starts, at.tiles, numerator, low, factor, ADD=total is not None, VOTE=vote, TILE=TILE, **given,
    )  # fmt: skip
    return out


def _side_by_side(payloads: Sequence[Tensor]) -> tuple[Tensor, int]:
    """Return payloads of one length behind each other, each aligned, and the distance of two of them in bytes."""
    first = payloads[0]
    stride = -(-first.shape[0] // 16) * 16
    if len(payloads) == 1 and first.data_ptr() % 4 == 0 and first.is_contiguous():
        return first, stride
    together = torch.empty(len(payloads), stride, dtype=torch.uint8, device=first.device)
    for row, payload in zip(together, payloads, strict=True):
        row[: payload.shape[0]].copy_(payload)
    return together, stride
