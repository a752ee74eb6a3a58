"""How the Triton kernels are started, and what they have in common."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor

from hvd_compress.ops.torch import uploaded

TILE = 4096  # elements that a program of an elementwise kernel does
WARPS = 8  # threads of such a program, in units of 32
MOST = (1 << 31) - (1 << 16)  # elements of a vector


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, warps: int = WARPS, **constants: Any) -> None:
    """Start a kernel on the device of its first tensor; nothing waits for it.

    Products and sums are not contracted to fused operations, which round once: the results have the bits of the CPU's.
    """
    if not all(grid):
        return
    with device_of(next(a for a in arguments if isinstance(a, Tensor))):
        kernel[grid](*arguments, **constants, num_warps=warps, enable_fp_fusion=False)


def device_of(array: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Make an array's device the current one, on whose stream kernels are started."""
    return torch.cuda.device(array.device) if array.is_cuda else contextlib.nullcontext()


def tiles(count: int, tile: int = TILE) -> int:
    """Return the number of tiles that `count` elements fill.

    Raises:
        ValueError: if the places in the last one do not fit into 32 bits.
    """
    if count > MOST:
        raise ValueError(f"a GPU's kernels take at most {MOST} elements in one vector; got {count}")
    return int(triton.cdiv(count, tile))


def persistent(array: Tensor) -> int:
    """Return how many programs keep a device busy that each do many tiles."""
    return 4 * (torch.cuda.get_device_properties(array.device).multi_processor_count if array.is_cuda else 1)


def signed(word: int) -> int:
    """Return 32 bits as a signed number, which kernels take."""
    return word - (1 << 32) if word >> 31 else word


@dataclass(frozen=True)
class Division:
    """A vector divided into groups, with what kernels look up: see `division`.

    Attributes:
        count: groups.
        starts: first elements of the groups and the vector's size, int32 of shape (count + 1,).
        of_tiles: for each tile the group of its first element, then for each that of its last, int32.
    """

    count: int
    starts: Tensor
    of_tiles: Tensor


@functools.lru_cache(maxsize=256)
def _division(lengths: tuple[int, ...], device: torch.device) -> Division:
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    firsts = np.arange(0, starts[-1], TILE)
    ends = np.stack([firsts, np.minimum(firsts + TILE, starts[-1]) - 1])
    of_tiles = (np.searchsorted(starts, ends.reshape(-1), side="right") - 1).astype(np.int32)
    return Division(len(lengths), uploaded(starts.astype(np.int32), device), uploaded(of_tiles, device))


def division(lengths: Sequence[int], array: Tensor) -> Division:
    """Return a vector's groups of these lengths; the tables of a model's buckets are kept."""
    return _division(tuple(lengths), array.device)
