"""Wangni's lambda: the scale by which magnitudes become probabilities that add up to a number of coordinates.

The state of its search, float64: lambda, the number of coordinates that are capped, whether it goes on, and the number
that is aimed at.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hvd_compress.native.gpu.launch import TILE, launch, tiles


@triton.jit
def _sum_below(x_ptr, size, state_ptr, sums_ptr, FIRST: tl.constexpr, TILE: tl.constexpr):
    """Sum up a tile's magnitudes below 1 / lambda, at FIRST all, and count the others."""
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    magnitude = tl.abs(tl.load(x_ptr + i, mask=i < size, other=0.0))
    below = magnitude < (float("inf") if FIRST else (1.0 / tl.load(state_ptr)).to(tl.float32))
    tl.store(sums_ptr + tl.program_id(0), tl.sum(tl.where(below, magnitude, 0.0).to(tl.float64), 0))
    others = tl.sum(((below == 0) & (i < size)).to(tl.int32), 0)
    tl.store(sums_ptr + tl.num_programs(0) + tl.program_id(0), others.to(tl.float64))


@triton.jit
def _next_scale(sums_ptr, parts, state_ptr, FIRST: tl.constexpr, PARTS: tl.constexpr):
    """Find lambda anew, if it goes on."""
    going, before, target = tl.load(state_ptr + 2) > 0, tl.load(state_ptr + 1), tl.load(state_ptr + 3)
    sums = tl.zeros([PARTS], tl.float64)
    others = tl.zeros([PARTS], tl.float64)
    for part in range(0, parts, PARTS):
        i = part + tl.arange(0, PARTS)
        sums += tl.load(sums_ptr + i, mask=i < parts, other=0.0)
        others += tl.load(sums_ptr + parts + i, mask=i < parts, other=0.0)
    below, capped = tl.sum(sums, 0), tl.sum(others, 0)
    going = (below > 0) & (FIRST | (going & (capped != before) & (capped < target)))
    if going:
        tl.store(state_ptr, (target - capped if not FIRST else target) / below)
    elif FIRST:
        tl.store(state_ptr, below * 0.0)
    tl.store(state_ptr + 1, capped)
    tl.store(state_ptr + 2, going.to(tl.float64))


def inclusion_scale(vector: Tensor, target: float, rounds: int) -> Tensor:
    """Return the number of `hvd_compress.compressors.sparsify.inclusion_scale`, float64 of no axes on the device."""
    size, parts = vector.shape[0], tiles(vector.shape[0])
    state = torch.full((4,), target, dtype=torch.float64, device=vector.device)
    sums = torch.empty(2 * parts, dtype=torch.float64, device=vector.device)
    for number in range(rounds + 1):
        launch(_sum_below, (parts,), vector, size, state, sums, FIRST=number == 0, TILE=TILE)
        launch(_next_scale, (1,), sums, parts, state, FIRST=number == 0, PARTS=4096)
    return state[0]
