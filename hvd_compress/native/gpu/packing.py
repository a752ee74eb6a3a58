"""Integers of few bits, packed as `Ops.pack` says: whole bytes in planes, the rest of eight numbers side by side.

In a program, numbers are in rows of eight.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hvd_compress.native.gpu.launch import TILE, launch, tiles
from hvd_compress.ops import packed_bytes


@triton.jit
def places_of(start, TILE: tl.constexpr):
    """Return TILE numbers from `start` on, in rows of eight."""
    return start + tl.arange(0, TILE // 8)[:, None] * 8 + tl.arange(0, 8)[None, :]


@triton.jit
def store_packed(out_ptr, numbers, i, start, count, BITS: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr):
    """Pack the numbers at places i; of those beyond the count there must be zeros."""
    whole: tl.constexpr = BITS // 8
    rest: tl.constexpr = BITS % 8
    for plane in tl.static_range(whole):
        at = out_ptr + plane * tl.cast(count, tl.int64) + i
        tl.store(at, ((numbers >> 8 * plane) & 255).to(tl.uint8), mask=i < count)
    if rest > 0:
        top = (numbers >> 8 * whole) & ((1 << rest) - 1)
        shifts = tl.arange(0, 8)[None, :] * rest
        row = start // 8 + tl.arange(0, TILE // 8)
        at = out_ptr + whole * tl.cast(count, tl.int64) + row.to(tl.int64) * rest
        inside = row * 8 < count
        if rest > 4:
            long = tl.sum(top.to(tl.int64) << shifts, 1)
            for byte in tl.static_range(rest):
                tl.store(at + byte, ((long >> 8 * byte) & 255).to(tl.uint8), mask=inside)
        else:
            word = tl.sum(top.to(tl.int32) << shifts, 1)
            if rest == 4 and WIDE:
                tl.store(at.to(tl.pointer_type(tl.int32)), word, mask=inside)
            elif rest == 2 and WIDE:
                tl.store(at.to(tl.pointer_type(tl.int16)), word.to(tl.int16), mask=inside)
            else:
                for byte in tl.static_range(rest):
                    tl.store(at + byte, ((word >> 8 * byte) & 255).to(tl.uint8), mask=inside)


@triton.jit
def load_packed(payload_ptr, i, count, BITS: tl.constexpr):
    """Return the numbers at places i, int32."""
    whole: tl.constexpr = BITS // 8
    rest: tl.constexpr = BITS % 8
    numbers = i * 0
    for plane in tl.static_range(whole):
        byte = tl.load(payload_ptr + plane * tl.cast(count, tl.int64) + i, mask=i < count, other=0)
        numbers = numbers | (byte.to(tl.int32) << 8 * plane)
    if rest > 0:
        at = payload_ptr + whole * tl.cast(count, tl.int64) + (i >> 3).to(tl.int64) * rest
        bit = (i & 7) * rest
        word = tl.load(at + (bit >> 3), mask=i < count, other=0).to(tl.int32)
        if rest != 1 and rest != 2 and rest != 4:  # else none crosses a byte
            crosses = (bit & 7) + rest > 8
            word = word | (tl.load(at + (bit >> 3) + 1, mask=(i < count) & crosses, other=0).to(tl.int32) << 8)
        numbers = numbers | (((word >> (bit & 7)) & ((1 << rest) - 1)) << 8 * whole)
    return numbers


@triton.jit
def load_rows(payload_ptr, start, i, count, BITS: tl.constexpr, TILE: tl.constexpr):
    """Return the numbers at places that are rows of eight: of 1, 2 or 4 bits, which are aligned, a row at once."""
    if BITS == 1 or BITS == 2 or BITS == 4:
        row = start // 8 + tl.arange(0, TILE // 8)
        if BITS == 1:
            word = tl.load(payload_ptr + row, mask=row * 8 < count, other=0).to(tl.int32)
        elif BITS == 2:
            word = tl.load(payload_ptr.to(tl.pointer_type(tl.int16)) + row, mask=row * 8 < count, other=0).to(tl.int32)
        else:
            word = tl.load(payload_ptr.to(tl.pointer_type(tl.int32)) + row, mask=row * 8 < count, other=0)
        numbers = (word[:, None] >> tl.arange(0, 8)[None, :] * BITS) & ((1 << BITS) - 1)
    else:
        numbers = load_packed(payload_ptr, i, count, BITS)
    return numbers


@triton.jit
def _pack(numbers_ptr, out_ptr, count, BITS: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr):
    start = tl.program_id(0) * TILE
    i = places_of(start, TILE)
    numbers = tl.load(numbers_ptr + i, mask=i < count, other=0).to(tl.int32)
    store_packed(out_ptr, numbers, i, start, count, BITS, WIDE, TILE)


@triton.jit
def _unpack(payload_ptr, out_ptr, count, BITS: tl.constexpr, TILE: tl.constexpr):
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    tl.store(out_ptr + i, load_packed(payload_ptr, i, count, BITS), mask=i < count)


def wide(place: Tensor, count: int, bits: int) -> bool:
    """Tell whether the rests of eight numbers each, packed at a place, are aligned to their size."""
    size = bits % 8
    return size in (2, 4) and (place.data_ptr() + bits // 8 * count) % size == 0


def pack_into(out: Tensor, numbers: Tensor, bits: int) -> None:
    """Pack the low bits of numbers into `packed_bytes` bytes."""
    count = numbers.shape[0]
    launch(_pack, (tiles(count),), numbers, out, count, BITS=bits, WIDE=wide(out, count, bits), TILE=TILE)


def pack(numbers: Tensor, bits: int) -> Tensor:
    """Return the low 0 to 30 bits of each number, packed."""
    out = torch.empty(packed_bytes(numbers.shape[0], bits), dtype=torch.uint8, device=numbers.device)
    if bits:
        pack_into(out, numbers, bits)
    return out


def unpack(payload: Tensor, bits: int, count: int) -> Tensor:
    """Undo `pack`; ValueError if the payload is of the wrong length."""
    expected = packed_bytes(count, bits)
    if payload.shape[0] != expected:
        raise ValueError(f"the packed numbers must take {expected} bytes; got {payload.shape[0]}")
    out = torch.empty(count, dtype=torch.int32, device=payload.device)
    launch(_unpack, (tiles(count),), payload, out, count, BITS=bits, TILE=TILE)
    return out
