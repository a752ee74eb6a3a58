"""Arithmetic on whole vectors, in one pass over memory each."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hvd_compress.native.gpu.launch import TILE, launch, persistent, tiles


@triton.jit
def _affine(x_ptr, a, y_ptr, b, out_ptr, size, TILE: tl.constexpr):
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    x = tl.load(x_ptr + i, mask=i < size)
    y = tl.load(y_ptr + i, mask=i < size)
    tl.store(out_ptr + i, x * a + y * b, mask=i < size)


@triton.jit
def _accumulate(u_ptr, momentum, g_ptr, v_ptr, out_ptr, size, NESTEROV: tl.constexpr, TILE: tl.constexpr):
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    g = tl.load(g_ptr + i, mask=i < size)
    u = tl.load(u_ptr + i, mask=i < size) * momentum + g
    step = u * momentum + g if NESTEROV else u
    tl.store(out_ptr + i, tl.load(v_ptr + i, mask=i < size) + step, mask=i < size)
    tl.store(g_ptr + i, u, mask=i < size)


@triton.jit
def _half_rest(x_ptr, residual_ptr, out_ptr, size, RESIDUAL: tl.constexpr, TILE: tl.constexpr):
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    x = tl.load(x_ptr + i, mask=i < size)
    if RESIDUAL:
        x += tl.load(residual_ptr + i, mask=i < size)
    half = x.to(tl.float16)
    tl.store(out_ptr + i, half, mask=i < size)
    tl.store(x_ptr + i, x - half.to(tl.float32), mask=i < size)


@triton.jit
def _convert(x_ptr, out_ptr, size, TILE: tl.constexpr):
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    tl.store(out_ptr + i, tl.load(x_ptr + i, mask=i < size).to(out_ptr.dtype.element_ty), mask=i < size)


@triton.jit
def _find_nonfinite(x_ptr, size, found_ptr, TILE: tl.constexpr):
    found = tl.zeros([TILE], tl.int32)
    for tile in range(tl.program_id(0), tl.cdiv(size, TILE), tl.num_programs(0)):
        i = tile * TILE + tl.arange(0, TILE)
        x = tl.load(x_ptr + i, mask=i < size, other=0.0)
        found = found | ((x.to(tl.int32, bitcast=True) & 0x7F800000) == 0x7F800000).to(tl.int32)
    if tl.max(found, 0) > 0:
        tl.store(found_ptr, 1)


@triton.jit
def _spoil(x_ptr, size, found_ptr, TILE: tl.constexpr):
    if tl.load(found_ptr) != 0:
        for tile in range(tl.program_id(0), tl.cdiv(size, TILE), tl.num_programs(0)):
            i = tile * TILE + tl.arange(0, TILE)
            tl.store(x_ptr + i, tl.full([TILE], float("nan"), tl.float32), mask=i < size)


def affine(x: Tensor, a: float, y: Tensor, b: float, out: Tensor | None) -> Tensor:
    """Return a * x + b * y, in `out` if it is given; that may be x or y."""
    out = torch.empty_like(x) if out is None else out
    launch(_affine, (tiles(x.shape[0]),), x, float(a), y, float(b), out, x.shape[0], TILE=TILE)
    return out


def accumulate(u: Tensor, momentum: float, vector: Tensor, v: Tensor, nesterov: bool) -> Tensor:
    """Return v + u', by Nesterov v + momentum * u' + vector; the vector becomes u' = momentum * u + vector."""
    out, size = torch.empty_like(v), v.shape[0]
    launch(_accumulate, (tiles(size),), u, float(momentum), vector, v, out, size, NESTEROV=nesterov, TILE=TILE)
    return out


def half_rest(vector: Tensor, residual: Tensor | None) -> Tensor:
    """Return vector + residual as float16, to the nearest; the vector becomes the rest."""
    out, size = torch.empty_like(vector, dtype=torch.float16), vector.shape[0]
    added = vector if residual is None else residual
    launch(_half_rest, (tiles(size),), vector, added, out, size, RESIDUAL=residual is not None, TILE=TILE)
    return out


def to_half(vector: Tensor) -> Tensor:
    """Return a vector as float16, to the nearest."""
    out = torch.empty_like(vector, dtype=torch.float16)
    launch(_convert, (tiles(vector.shape[0]),), vector, out, vector.shape[0], TILE=TILE)
    return out


def from_half(halves: Tensor) -> Tensor:
    """Return numbers of float16 as float32."""
    out = torch.empty_like(halves, dtype=torch.float32)
    launch(_convert, (tiles(halves.shape[0]),), halves, out, halves.shape[0], TILE=TILE)
    return out


def poison(vector: Tensor, overwrite: bool = False) -> tuple[Tensor, Tensor]:
    """Return the vector, or a copy, of NaN if it is not finite, and 1 if that is so, else 0, on the device."""
    found, size = nonfinite(vector), vector.shape[0]
    vector = vector if overwrite else vector.clone()
    launch(_spoil, (min(tiles(size), persistent(vector)),), vector, size, found, TILE=TILE)
    return vector, found


def nonfinite(vector: Tensor) -> Tensor:
    """Return 1 if an element is NaN or infinite, else 0: int32 of no axes, on the device."""
    found, size = torch.zeros((), dtype=torch.int32, device=vector.device), vector.shape[0]
    launch(_find_nonfinite, (min(tiles(size), persistent(vector)),), vector, size, found, TILE=TILE)
    return found
