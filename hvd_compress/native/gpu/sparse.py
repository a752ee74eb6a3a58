"""Values at indices, and the indices on the wire (`hvd_compress.compressors.indices`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hvd_compress.native.gpu.launch import TILE, launch, tiles
from hvd_compress.native.gpu.marks import ends_of, indices_of, marks_of
from hvd_compress.native.gpu.packing import load_packed, places_of, store_packed, wide
from hvd_compress.ops import packed_bytes
from hvd_compress.ops.index_code import index_code

UNSOUND = "the indices that came in are not those of an encoder: wrong number, order or range"


@triton.jit
def _take_out(vector_ptr, indices_ptr, out_ptr, count, TILE: tl.constexpr):
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    at = tl.load(indices_ptr + i, mask=i < count, other=0)
    tl.store(out_ptr + i, tl.load(vector_ptr + at, mask=i < count, other=0.0), mask=i < count)
    tl.store(vector_ptr + at, tl.zeros([TILE], tl.float32), mask=i < count)


@triton.jit
def _scatter_add(total_ptr, indices_ptr, values_ptr, count, factor, TILE: tl.constexpr):
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    at = tl.load(indices_ptr + i, mask=i < count, other=0)
    value = tl.load(values_ptr + i, mask=i < count, other=0.0) * factor
    tl.store(total_ptr + at, tl.load(total_ptr + at, mask=i < count, other=0.0) + value, mask=i < count)


@triton.jit
def _encode(
    indices_ptr,
    low_ptr,
    words_ptr,
    count,
    LOW: tl.constexpr,
    WIDE: tl.constexpr,
    RANKED: tl.constexpr,
    TILE: tl.constexpr,
):
    """Pack the low bits, and set the bits of the rest; of each plus its rank, if RANKED."""
    start = tl.program_id(0) * TILE
    i = places_of(start, TILE)
    index = tl.load(indices_ptr + i, mask=i < count, other=0)
    if LOW > 0:
        store_packed(low_ptr, index.to(tl.int32), i, start, count, LOW, WIDE, TILE)
    bit = index >> LOW
    if RANKED:
        bit += i
    tl.atomic_or(words_ptr + (bit >> 5), (1 << (bit & 31)).to(tl.int32), mask=i < count, sem="relaxed")


@triton.jit
def _join(
    high_ptr,
    low_ptr,
    ends_ptr,
    tiles,
    out_ptr,
    unsound_ptr,
    count,
    size,
    LOW: tl.constexpr,
    RANKED: tl.constexpr,
    TILE: tl.constexpr,
):
    """Join high parts and low bits to indices, and tell whether these are so many, ascending, and below the size."""
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    index = tl.load(high_ptr + i, mask=i < count, other=0)
    before = tl.load(high_ptr + i - 1, mask=(i < count) & (i > 0), other=0)
    if RANKED:
        index = ((index - i) << LOW) | load_packed(low_ptr, i, count, LOW)
        before = ((before - (i - 1)) << LOW) | load_packed(low_ptr, tl.maximum(i - 1, 0), count, LOW)
    tl.store(out_ptr + i, index, mask=i < count)
    bad = (i < count) & ((index >= size) | ((i > 0) & (index <= before)))
    if (tl.max(bad.to(tl.int32), 0) > 0) | (tl.load(ends_ptr + tiles - 1) != count):
        tl.store(unsound_ptr, 1)


def take_out(vector: Tensor, indices: Tensor) -> Tensor:
    """Return the elements at distinct indices, and set them to zero."""
    out = torch.empty(indices.shape[0], device=vector.device)
    launch(_take_out, (tiles(indices.shape[0], 1024),), vector, indices, out, indices.shape[0], TILE=1024, warps=4)
    return out


def scatter_add(total: Tensor, indices: Tensor, values: Tensor, factor: float = 1.0) -> None:
    """Add `factor` times values at distinct indices."""
    count = indices.shape[0]
    launch(_scatter_add, (tiles(count, 1024),), total, indices, values, count, factor, TILE=1024, warps=4)


def scatter(size: int, parts: Sequence[tuple[Tensor, Tensor]], factor: float) -> Tensor:
    """Return zeros plus `factor` times the values at the indices, for pairs of distinct indices and values."""
    total = torch.zeros(size, device=parts[0][0].device)
    for indices, values in parts:
        scatter_add(total, indices, values, factor)
    return total


def scatter_zero(total: Tensor, indices: Tensor) -> None:
    """Set the elements at the indices to zero."""
    total.index_fill_(0, indices, 0.0)


def _encoded(indices: Tensor, low: int, cut: int, bits: int, ranked: bool) -> Tensor:
    """Return `cut` bytes of the indices' low bits, and `bits` bits, those of the rest set; of each plus its rank."""
    count = indices.shape[0]
    begin = -cut % 4  # so that the words that are set are aligned, and share none with the low bits
    words = torch.zeros((begin + cut) // 4 + -(-bits // 32), dtype=torch.int32, device=indices.device)
    out = words.view(torch.uint8)[begin:]
    launch(
        _encode, (tiles(count),), indices, out, words[(begin + cut) // 4 :], count, LOW=low, WIDE=wide(out, count, low),
        RANKED=ranked, TILE=TILE,
    )  # fmt: skip
    return out[: cut + packed_bytes(bits, 1)]


def bitmap(indices: Tensor, size: int) -> Tensor:
    """Return `size` bits, those at the indices set."""
    return _encoded(indices, 0, 0, size, False)


def encode_indices(indices: Tensor, size: int) -> Tensor:
    """Return the bytes of `hvd_compress.compressors.indices.encode_indices`, for indices that are sound."""
    low, cut, bits = index_code(size, indices.shape[0])
    return _encoded(indices, low or 0, cut, bits, low is not None)


def decode_indices(payload: Tensor, size: int, count: int) -> Tensor:
    """Undo `encode_indices`; ValueError unless the bytes hold `count` ascending distinct indices below `size`.

    The host waits, once, to know whether they do.
    """
    if count == 0:
        return torch.arange(0, device=payload.device)
    code = index_code(size, count)
    low, cut, bits = code
    if payload.shape[0] != code.bytes:
        raise ValueError(UNSOUND)
    words, counts = marks_of(payload[cut:], bits)
    ends = ends_of(counts)
    high = indices_of(words, ends, count)
    out, unsound = torch.empty_like(high), torch.zeros((), dtype=torch.int32, device=high.device)
    given = {"LOW": low or 0, "RANKED": low is not None, "TILE": TILE}
    launch(_join, (tiles(count),), high, payload, ends, ends.shape[0], out, unsound, count, size, **given)
    if unsound.item():
        raise ValueError(UNSOUND)
    return out
