"""Marks, a bit for each coordinate, from which the indices are written in order.

They are int32 words, 32 coordinates in each from the lowest bit on: as bytes, a bitmap.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hvd_compress.native.gpu.launch import TILE, launch, tiles

SPAN = 8  # tiles of which one program writes the indices


@triton.jit
def places(start, TILE: tl.constexpr):
    """Return TILE places from `start` on, in rows of 32, which become a word of marks each."""
    return start + tl.arange(0, TILE // 32)[:, None] * 32 + tl.arange(0, 32)[None, :]


@triton.jit
def words_of(marks):
    """Return marks in rows of 32 as words."""
    return tl.sum(marks.to(tl.int32) << tl.arange(0, 32)[None, :], 1)


@triton.jit
def words_at(start, TILE: tl.constexpr):
    """Return the places of the words of a tile that begins at `start`."""
    return start // 32 + tl.arange(0, TILE // 32)


@triton.jit
def store_marks(words_ptr, counts_ptr, marks, TILE: tl.constexpr):
    """Store the marks of this program's tile, and their number."""
    words = words_of(marks)
    tl.store(words_ptr + words_at(tl.program_id(0) * TILE, TILE), words)
    tl.store(counts_ptr + tl.program_id(0), tl.sum(ones_of(words), 0))


@triton.jit
def ones_of(word):
    """Return the number of bits set."""
    x = word.to(tl.uint32, bitcast=True)
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def _read(payload_ptr, bits, words_ptr, counts_ptr, WORDS: tl.constexpr):
    """Store packed bits as marks, and count them; there are none beyond the number of bits."""
    word = tl.program_id(0) * WORDS + tl.arange(0, WORDS)
    marks = word * 0
    for byte in tl.static_range(4):
        at = word * 4 + byte
        left = bits - at * 8  # bits from there on
        item = tl.load(payload_ptr + at, mask=left > 0, other=0).to(tl.int32)
        marks = marks | ((item & ((1 << tl.minimum(tl.maximum(left, 0), 8)) - 1)) << 8 * byte)
    tl.store(words_ptr + word, marks)
    tl.store(counts_ptr + tl.program_id(0), tl.sum(ones_of(marks), 0))


@triton.jit
def _count(words_ptr, counts_ptr, WORDS: tl.constexpr):
    word = tl.load(words_ptr + tl.program_id(0) * WORDS + tl.arange(0, WORDS))
    tl.store(counts_ptr + tl.program_id(0), tl.sum(ones_of(word), 0))


@triton.jit
def _write(words_ptr, number, ends_ptr, out_ptr, most, WORDS: tl.constexpr, SPAN: tl.constexpr):
    """Write the indices of marks: of each word in turn its lowest mark, then the next."""
    at = tl.program_id(0) * WORDS + tl.arange(0, WORDS)
    word = tl.load(words_ptr + at, mask=at < number, other=0)
    ones = ones_of(word)
    tile = tl.program_id(0) * SPAN
    to = tl.load(ends_ptr + tile - 1, mask=tile > 0, other=0) + tl.cumsum(ones, 0) - ones
    for _ in range(tl.max(ones, 0)):
        there = (word != 0) & (to < most)
        tl.store(out_ptr + to, (at * 32 + ones_of((word & -word) - 1)).to(tl.int64), mask=there)
        word = word & (word - 1)
        to += 1


def ends_of(counts: Tensor) -> Tensor:
    """Return how many there are up to each tile, and in it."""
    return counts.cumsum(0, dtype=torch.int32)


def new_marks(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return room for marks, in whole tiles, and for their number in each tile."""
    count = tiles(size)
    words = torch.empty(count * (TILE // 32), dtype=torch.int32, device=device)
    return words, torch.empty(count, dtype=torch.int32, device=device)


def indices_of(words: Tensor, ends: Tensor, count: int | None = None) -> Tensor:
    """Return the indices of the first `count` marks, int64 ascending; if it is None, of all: the host waits for it."""
    if count is None:
        count = int(ends[-1]) if ends.shape[0] else 0
    out = torch.empty(count, dtype=torch.int64, device=words.device)
    launch(
        _write, (tiles(ends.shape[0], SPAN),), words, words.shape[0], ends, out, count,
        WORDS=SPAN * (TILE // 32), SPAN=SPAN, warps=4,
    )  # fmt: skip
    return out


def marks_of(payload: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return `size` packed bits as marks, and their number in each tile."""
    words, counts = new_marks(size, payload.device)
    launch(_read, (counts.shape[0],), payload, size, words, counts, WORDS=TILE // 32, warps=1)
    return words, counts


def counts_of(words: Tensor) -> Tensor:
    """Return the number of marks in each tile."""
    counts = torch.empty(words.shape[0] // (TILE // 32), dtype=torch.int32, device=words.device)
    launch(_count, (counts.shape[0],), words, counts, WORDS=TILE // 32, warps=1)
    return counts


def set_bits(payload: Tensor, size: int) -> Tensor:
    """Return the positions of the bits set among the first `size`, ascending; the host waits for their number."""
    words, counts = marks_of(payload, size)
    return indices_of(words, ends_of(counts))
