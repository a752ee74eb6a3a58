"""The counter-based random numbers of `hvd_compress.ops.random`, word by word."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hvd_compress.native.gpu.launch import TILE, launch, signed, tiles
from hvd_compress.native.kernels import Words
from hvd_compress.ops.random import MASK
from hvd_compress.ops.random import mix as mixed


@triton.jit
def mix(x):
    """Mix 32-bit words."""
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def word_at(index, first, second):
    """Return words of a stream, uint32."""
    whitened = index.to(tl.uint32, bitcast=True) + first.to(tl.uint32, bitcast=True)
    return mix(mix(whitened) ^ second.to(tl.uint32, bitcast=True))


@triton.jit
def noise_at(index, first, second):
    """Return numbers of 16 random bits, int32: of 32 in a row the first 16 are the low halves of 16 words."""
    word = word_at((index >> 5) * 16 + (index & 15), first, second)
    return ((word >> (index & 16).to(tl.uint32)) & 0xFFFF).to(tl.int32)


@triton.jit
def uniform_at(index, first, second):
    """Return numbers in [0, 1) of 24 random bits, float32."""
    return (word_at(index, first, second) >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08  # 2^-24


@triton.jit(do_not_specialize=["first", "second"])
def _uniform(out_ptr, count, first, second, TILE: tl.constexpr):
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    tl.store(out_ptr + i, uniform_at(i, first, second), mask=i < count)


@triton.jit
def _feistel(number, a, b, c, d, e, f, half, mask):
    left, right = (number >> half).to(tl.uint32), number.to(tl.uint32) & mask
    for key in tl.static_range(6):
        word = a if key == 0 else b if key == 1 else c if key == 2 else d if key == 3 else e if key == 4 else f
        left, right = right, left ^ (mix(right + word.to(tl.uint32, bitcast=True)) & mask)
    return (left.to(tl.int64) << half) | right.to(tl.int64)


@triton.jit(do_not_specialize=["size", "a", "b", "c", "d", "e", "f", "half", "mask"])
def _permuted(out_ptr, count, size, a, b, c, d, e, f, half, mask, TILE: tl.constexpr):
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    low = mask.to(tl.uint32)
    number = _feistel(i.to(tl.int64), a, b, c, d, e, f, half, low)
    while tl.max(((number >= size) & (i < count)).to(tl.int32), 0) > 0:
        number = tl.where(number >= size, _feistel(number, a, b, c, d, e, f, half, low), number)
    tl.store(out_ptr + i, number, mask=i < count)


def uniform(count: int, words: Words, device: torch.device) -> Tensor:
    """Return `count` numbers in [0, 1), float32."""
    out = torch.empty(count, device=device)
    launch(_uniform, (tiles(count),), out, count, *map(signed, words), TILE=TILE)
    return out


def distinct(count: int, size: int, words: Words, device: torch.device) -> Tensor:
    """Return ascending distinct numbers below `size`, int64, as `hvd_compress.ops.random.distinct`."""
    first, second = words
    keys = [signed(mixed(mixed(first + i & MASK) ^ second)) for i in range(6)]
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    out = torch.empty(count, dtype=torch.int64, device=device)
    launch(_permuted, (tiles(count, 1024),), out, count, size, *keys, half, (1 << half) - 1, TILE=1024, warps=4)
    return out.sort().values
