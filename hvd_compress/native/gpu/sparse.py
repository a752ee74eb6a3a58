"""Values at indices, and the indices on the wire (`hvd_compress.compressors.indices`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hvd_compress.native.gpu.launch import TILE, launch, tiles
from hvd_compress.native.gpu.marks import indices_of, marks_of, set_marks
from hvd_compress.native.gpu.packing import load_packed, pack_into
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
def _join(
    high_ptr, low_ptr, out_ptr, unsound_ptr, count, size, LOW: tl.constexpr, RANKED: tl.constexpr, TILE: tl.constexpr
):
    """Join high parts and low bits to indices, and tell whether these do not ascend below the size."""
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    index = tl.load(high_ptr + i, mask=i < count, other=0)
    before = tl.load(high_ptr + i - 1, mask=(i < count) & (i > 0), other=0)
    if RANKED:
        index = ((index - i) << LOW) | load_packed(low_ptr, i, count, LOW)
        before = ((before - (i - 1)) << LOW) | load_packed(low_ptr, tl.maximum(i - 1, 0), count, LOW)
    tl.store(out_ptr + i, index, mask=i < count)
    bad = (i < count) & ((index >= size) | ((i > 0) & (index <= before)))
    if tl.max(bad.to(tl.int32), 0) > 0:
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


def _marked(indices: Tensor, bits: int, low: int, ranked: bool) -> Tensor:
    """Return `bits` bits, packed: those set of indices without their low bits, plus each one's rank if `ranked`."""
    words = torch.zeros(-(-bits // 32), dtype=torch.int32, device=indices.device)
    set_marks(words, indices, low, ranked)
    return words.view(torch.uint8)[: packed_bytes(bits, 1)]


def bitmap(indices: Tensor, size: int) -> Tensor:
    """Return `size` bits, those at the indices set."""
    return _marked(indices, size, 0, False)


def encode_indices(indices: Tensor, size: int) -> Tensor:
    """Return the bytes of `hvd_compress.compressors.indices.encode_indices`, for indices that are sound."""
    count = indices.shape[0]
    low, cut, bits = index_code(size, count)
    if low is None:
        return bitmap(indices, bits)
    high = _marked(indices, bits, low, True)
    out = torch.empty(cut + high.shape[0], dtype=torch.uint8, device=indices.device)
    if low:
        pack_into(out, indices, low)
    out[cut:] = high
    return out


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
    high = indices_of(words, counts, count)
    out = torch.empty_like(high)
    unsound = (counts.sum() != count).to(torch.int32)
    given = {"LOW": low or 0, "RANKED": low is not None, "TILE": TILE}
    launch(_join, (tiles(count),), high, payload, out, unsound, count, size, **given)
    if unsound.item():
        raise ValueError(UNSOUND)
    return out
