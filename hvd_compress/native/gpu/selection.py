"""Selection of coordinates: by a limit, at random, and by number."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from hvd_compress.native.gpu.groups import magnitude_bits
from hvd_compress.native.gpu.launch import TILE, division, launch, persistent, signed, tiles
from hvd_compress.native.gpu.marks import (
    indices_of,
    new_marks,
    ones_of,
    places,
    starts_of,
    store_marks,
    store_words,
    write_marked,
)
from hvd_compress.native.gpu.numbers import mix, uniform_at
from hvd_compress.native.kernels import Words
from hvd_compress.ops.torch import uploaded

DIGITS = ((20, 11), (10, 10), (0, 10))  # of a magnitude's 31 bits, from the highest: shift and number of bits
LARGE = 1 << 22  # elements of a group from which on a sample is worth its kernels
SAMPLE = 1 << 17  # magnitudes from which the last selected one's neighbourhood is estimated
MARGIN = 6  # standard deviations of the estimate, to either side
ROOM = 32  # one coordinate in so many may be in that neighbourhood

# --- by a limit


@triton.jit(do_not_specialize=["first", "second"])
def _mark_chosen(x_ptr, size, limit_ptr, words_ptr, counts_ptr, first, second, DRAW: tl.constexpr, TILE: tl.constexpr):
    """Mark what is not below the limit; or what is drawn with a probability of the limit times the magnitude."""
    i = places(tl.program_id(0) * TILE, TILE)
    magnitude = tl.abs(tl.load(x_ptr + i, mask=i < size, other=0.0))
    limit = tl.load(limit_ptr)
    left_out = uniform_at(i, first, second) >= magnitude * limit if DRAW else magnitude < limit
    store_marks(words_ptr, counts_ptr, (left_out == 0) & (i < size), TILE)


def _marked(vector: Tensor, limit: float | Tensor, stream: Words, draw: bool) -> tuple[Tensor, Tensor]:
    """Return the marks of what is chosen, and their number in each tile."""
    size, device = vector.shape[0], vector.device
    at = limit.float() if isinstance(limit, Tensor) else torch.full((1,), limit, device=device)
    words, counts = new_marks(size, device)
    first, second = map(signed, stream)
    launch(_mark_chosen, (tiles(size),), vector, size, at, words, counts, first, second, DRAW=draw, TILE=TILE)
    return words, counts


def above(vector: Tensor, threshold: float | Tensor) -> Tensor:
    """Return the indices of the magnitudes that are not below `threshold`, ascending; NaN never is."""
    return above_each([vector], [threshold])[0]


def above_each(vectors: Sequence[Tensor], thresholds: Sequence[float | Tensor]) -> list[Tensor]:
    """Return `above` of each vector with its threshold; the host waits, once, for all their numbers."""
    marked = [_marked(vector, limit, (0, 0), False) for vector, limit in zip(vectors, thresholds, strict=True)]
    numbers = torch.stack([counts.sum() for _, counts in marked]).tolist()
    return [indices_of(words, counts, number) for (words, counts), number in zip(marked, numbers, strict=True)]


def draw(vector: Tensor, scale: float | Tensor, stream: Words) -> Tensor:
    """Return each index with probability min(1, scale * magnitude), ascending; NaN for certain."""
    words, counts = _marked(vector, scale, stream, True)
    return indices_of(words, counts, int(counts.sum()))


# --- by number, of each of several groups. The state of a group's search, int32: the digits found of the last magnitude
# that is selected; how many are wanted of those that begin so; where to search (among the neighbours, in the vector, or
# nowhere, for it is known); how many neighbours there are.

NEIGHBOURS: tl.constexpr = tl.constexpr(0)
VECTOR: tl.constexpr = tl.constexpr(1)
NOWHERE: tl.constexpr = tl.constexpr(2)


@triton.jit
def _sample(x_ptr, out_ptr, stride, TILE: tl.constexpr):
    """Store the magnitude of one element, drawn at random, of each part."""
    part = tl.program_id(0) * TILE + tl.arange(0, TILE)
    i = part * stride + (mix(part.to(tl.uint32, bitcast=True)) % stride.to(tl.uint32)).to(tl.int32)
    tl.store(out_ptr + part, magnitude_bits(tl.load(x_ptr + i)))


@triton.jit
def _mark_near(x_ptr, size, bounds_ptr, words_ptr, counts_ptr, above_ptr, TILE: tl.constexpr):
    """Mark the magnitudes within the bounds, and count those and the ones above."""
    i = places(tl.program_id(0) * TILE, TILE)
    magnitude = magnitude_bits(tl.load(x_ptr + i, mask=i < size, other=0.0))
    low, high = tl.load(bounds_ptr), tl.load(bounds_ptr + 1)
    store_marks(words_ptr, counts_ptr, (magnitude >= low) & (magnitude <= high) & (i < size), TILE)
    above = ((magnitude > high) & (i < size)).to(tl.int32)
    tl.store(above_ptr + tl.program_id(0), tl.sum(tl.sum(above, 1), 0))


@triton.jit
def _where_to_search(state_ptr, bounds_ptr, near_ptr, above_ptr, room):
    near, wanted = tl.load(near_ptr).to(tl.int32), tl.load(state_ptr + 1) - tl.load(above_ptr).to(tl.int32)
    low, high = tl.load(bounds_ptr), tl.load(bounds_ptr + 1)
    if (wanted > 0) & (wanted <= near):
        if low == high:
            tl.store(state_ptr, low)
            tl.store(state_ptr + 1, wanted)
            tl.store(state_ptr + 2, NOWHERE)
        elif near <= room:
            tl.store(state_ptr + 1, wanted)
            tl.store(state_ptr + 2, NEIGHBOURS)
            tl.store(state_ptr + 3, near)


@triton.jit
def _digits(x_ptr, size, prefix, counts, SHIFT: tl.constexpr, BITS: tl.constexpr, TILE: tl.constexpr):
    for tile in range(tl.program_id(0), tl.cdiv(size, TILE), tl.num_programs(0)):
        i = tile * TILE + tl.arange(0, TILE)
        magnitude = magnitude_bits(tl.load(x_ptr + i, mask=i < size, other=0.0))
        among = (i < size) & ((magnitude >> (SHIFT + BITS)) == prefix)
        counts += tl.histogram((magnitude >> SHIFT) & ((1 << BITS) - 1), 1 << BITS, mask=among)
    return counts


@triton.jit
def _histogram(
    x_ptr,
    starts_ptr,
    near_ptr,
    state_ptr,
    counts_ptr,
    SHIFT: tl.constexpr,
    BITS: tl.constexpr,
    MOST: tl.constexpr,
    TILE: tl.constexpr,
):
    """Count the next digit of a group's magnitudes that begin with the digits found so far."""
    group = tl.program_id(1)
    prefix, place = tl.load(state_ptr + group * 4), tl.load(state_ptr + group * 4 + 2)
    start, end = tl.load(starts_ptr + group), tl.load(starts_ptr + group + 1)
    near = tl.where(place == NEIGHBOURS, tl.load(state_ptr + group * 4 + 3), 0)
    size = tl.where(place == VECTOR, end - start, 0).to(tl.int32)
    counts = tl.zeros([1 << BITS], tl.int32)
    counts = _digits(near_ptr, near, prefix, counts, SHIFT, BITS, TILE)
    counts = _digits(x_ptr + start, size, prefix, counts, SHIFT, BITS, TILE)
    if tl.sum(counts, 0) > 0:
        tl.atomic_add(counts_ptr + group * MOST + tl.arange(0, 1 << BITS), counts, sem="relaxed")


@triton.jit
def _next_digit(state_ptr, counts_ptr, BITS: tl.constexpr, MOST: tl.constexpr):
    """Find the digit of the last magnitude that is wanted, and how many of that digit are; empty the counts."""
    state_ptr += tl.program_id(0) * 4
    digit = tl.arange(0, 1 << BITS)
    at = counts_ptr + tl.program_id(0) * MOST + digit
    counts = tl.load(at)
    prefix, wanted = tl.load(state_ptr), tl.load(state_ptr + 1)
    above = tl.sum(counts, 0) - tl.cumsum(counts, 0)
    here = (above < wanted) & (above + counts >= wanted)
    if tl.load(state_ptr + 2) != NOWHERE:
        tl.store(state_ptr, (prefix << BITS) | tl.sum(tl.where(here, digit, 0), 0))
        tl.store(state_ptr + 1, wanted - tl.sum(tl.where(here, above, 0), 0))
    tl.store(at, counts * 0)


@triton.jit
def _mark_top(
    x_ptr,
    size,
    starts_ptr,
    tiles_ptr,
    state_ptr,
    above_ptr,
    above_counts,
    equal_ptr,
    parts_ptr,
    TILE: tl.constexpr,
):
    """Mark what is above its group's last magnitude, and what is equal, and count the latter of each group."""
    tile = tl.program_id(0)
    first, last = tl.load(tiles_ptr + tile), tl.load(tiles_ptr + tl.num_programs(0) + tile)
    i = places(tile * TILE, TILE)
    magnitude = magnitude_bits(tl.load(x_ptr + i, mask=i < size, other=0.0))
    least = magnitude * 0
    for group in range(first, last + 1):
        least = tl.where(i >= tl.load(starts_ptr + group), tl.load(state_ptr + group * 4), least)
    equal = (magnitude == least) & (i < size)
    store_marks(above_ptr, above_counts, (magnitude > least) & (i < size), TILE)
    store_words(equal_ptr, equal, TILE)
    for group in range(first, last + 1):
        own = equal & (i >= tl.load(starts_ptr + group)) & (i < tl.load(starts_ptr + group + 1))
        tl.store(parts_ptr + tile + group, tl.sum(tl.sum(own.to(tl.int32), 1), 0))


@triton.jit
def _low_bits(number):
    """Return words of which so many of the lowest bits are set, at least 0 and at most 32."""
    number = tl.minimum(tl.maximum(number, 0), 32)
    return ((tl.full([1], 1, tl.int64) << number.to(tl.int64)) - 1).to(tl.int32)


@triton.jit
def _take_first(
    words_ptr,
    counts_ptr,
    equal_ptr,
    parts_ptr,
    starts_ptr,
    tiles_ptr,
    state_ptr,
    TILE: tl.constexpr,
    WORDS: tl.constexpr,
):
    """Mark of a group's that are marked equal the first ones as well, as many as are wanted.

    The parts have the number of a group's before the tile, counted from any place before the group.
    """
    tile = tl.program_id(0)
    at = tile * WORDS + tl.arange(0, WORDS)
    words = tl.load(words_ptr + at)
    number = tl.load(counts_ptr + tile)
    for group in range(tl.load(tiles_ptr + tile), tl.load(tiles_ptr + tl.num_programs(0) + tile) + 1):
        start, end = tl.load(starts_ptr + group), tl.load(starts_ptr + group + 1)
        inside = _low_bits(end - at * 32) & ~_low_bits(start - at * 32)
        equal = tl.load(equal_ptr + at) & inside
        ones = ones_of(equal)
        before = tl.load(parts_ptr + tile + group) - tl.load(parts_ptr + start // TILE + group)
        left = (tl.load(state_ptr + group * 4 + 1) - before).to(tl.int32) - (tl.cumsum(ones, 0) - ones)
        left = tl.minimum(tl.maximum(left, 0), ones)
        taken = tl.where(left == ones, equal, 0)
        part = tl.where(left < ones, left, 0)
        for _ in range(tl.max(part, 0)):
            taken = taken | tl.where(part > 0, equal & -equal, 0)
            equal = equal & (equal - 1)
            part -= 1
        words = words | taken
        number += tl.sum(left, 0)
    tl.store(words_ptr + at, words)
    tl.store(counts_ptr + tile, number)


def _neighbours(vector: Tensor, count: int, state: Tensor) -> Tensor:
    """Estimate from a sample where the last selected magnitude lies, and return the elements there."""
    size, device = vector.shape[0], vector.device
    room = size // ROOM
    sample = torch.empty(SAMPLE, dtype=torch.int32, device=device)
    launch(_sample, (SAMPLE // 1024,), vector, sample, size // SAMPLE, TILE=1024, warps=4)
    ordered = sample.sort().values
    share = count / size
    rank, margin = SAMPLE * (1 - share), MARGIN * math.sqrt(SAMPLE * share * (1 - share)) + MARGIN
    low, high = math.floor(rank - margin), math.ceil(rank + margin)
    bounds = torch.full((2,), 0, dtype=torch.int32, device=device)
    bounds[1].fill_(0x7FFFFFFF)
    if low >= 0:
        bounds[0].copy_(ordered[low])
    if high < SAMPLE:
        bounds[1].copy_(ordered[high])
    words, counts = new_marks(size, device)
    above = torch.empty_like(counts)
    launch(_mark_near, (tiles(size),), vector, size, bounds, words, counts, above, TILE=TILE)
    launch(_where_to_search, (1,), state, bounds, counts.sum(), above.sum(), room, warps=1)
    near = torch.empty(room, device=device)
    write_marked(words, counts, vector, near, room, copies=True)
    return near


@functools.lru_cache(maxsize=256)
def _beginning(counts: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the state of searches that have not begun, not to be changed."""
    return uploaded(np.array([[0, count, VECTOR.value, 0] for count in counts], np.int32), device)


def _largest(vector: Tensor, lengths: Sequence[int], counts: Sequence[int]) -> Tensor:
    """Return the indices of the largest magnitudes of each group of a vector, with as many kernels as for one."""
    size, groups = vector.shape[0], division(lengths, vector)
    state = _beginning(tuple(counts), vector.device).clone()
    near = _neighbours(vector, counts[0], state) if size >= LARGE and groups.count == 1 else vector
    most = 1 << DIGITS[0][1]
    digits = torch.zeros(groups.count * most, dtype=torch.int32, device=vector.device)
    programs = min(tiles(max(lengths), 2048), max(1, persistent(vector) // groups.count))
    for shift, bits in DIGITS:
        given = {"SHIFT": shift, "BITS": bits, "MOST": most, "TILE": 2048}
        launch(_histogram, (programs, groups.count), vector, groups.starts, near, state, digits, **given)
        launch(_next_digit, (groups.count,), state, digits, BITS=bits, MOST=most)
    words, numbers = new_marks(size, vector.device)
    equal = torch.empty_like(words)
    parts = torch.empty(tiles(size) + groups.count, dtype=torch.int32, device=vector.device)
    tables = groups.starts, groups.of_tiles
    marks = words, numbers, equal, parts
    launch(_mark_top, (tiles(size),), vector, size, *tables, state, *marks, TILE=TILE)
    launch(
        _take_first, (tiles(size),), words, numbers, equal, starts_of(parts), *tables, state,
        TILE=TILE, WORDS=TILE // 32, warps=1,
    )  # fmt: skip
    return indices_of(words, numbers, sum(counts))


def top_k(vector: Tensor, count: int) -> Tensor:
    """Return the indices of the `count` largest magnitudes, ascending; of equal ones the first, NaN above all."""
    if count >= vector.shape[0] or count <= 0:
        return torch.arange(min(vector.shape[0], count), device=vector.device)
    return _largest(vector, [vector.shape[0]], [count])


def top_k_each(vector: Tensor, places: Sequence[slice], counts: Sequence[int]) -> Tensor:
    """Return `top_k` of each place, all places behind each other, as indices in the vector.

    Large places are searched one by one, all others between two of them together.
    """
    found: list[Tensor] = []
    run: list[tuple[slice, int]] = []
    for place, count in zip(places, counts, strict=True):
        if run and (place.stop - place.start >= LARGE or run[-1][0].stop - run[-1][0].start >= LARGE):
            found.append(_of_run(vector, run))
            run = []
        run.append((place, count))
    found.append(_of_run(vector, run))
    return torch.cat(found) if len(found) > 1 else found[0]


def _of_run(vector: Tensor, run: Sequence[tuple[slice, int]]) -> Tensor:
    start, end = run[0][0].start, run[-1][0].stop
    indices = _largest(vector[start:end], [p.stop - p.start for p, _ in run], [count for _, count in run])
    return indices + start if start else indices


# --- Wangni's lambda


@triton.jit
def _sum_below(x_ptr, size, bound_ptr, sums_ptr, TILE: tl.constexpr):
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    magnitude = tl.abs(tl.load(x_ptr + i, mask=i < size, other=0.0))
    below = magnitude < tl.load(bound_ptr)
    tl.store(sums_ptr + tl.program_id(0) * 2, tl.sum(tl.where(below, magnitude, 0.0).to(tl.float64), 0))
    others = ((below == 0) & (i < size)).to(tl.int32)
    tl.store(sums_ptr + tl.program_id(0) * 2 + 1, tl.sum(others, 0).to(tl.float64))


def _sum_abs_below(vector: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of the magnitudes below a bound, and the number of the others: float64 of no axes."""
    sums = torch.empty(tiles(vector.shape[0]), 2, dtype=torch.float64, device=vector.device)
    launch(_sum_below, (sums.shape[0],), vector, vector.shape[0], bound.float(), sums, TILE=TILE)
    below, others = sums.sum(0)
    return below, others


def inclusion_scale(vector: Tensor, target: float, rounds: int) -> Tensor:
    """Return the number of `hvd_compress.compressors.sparsify.inclusion_scale`, float64 of no axes on the device."""
    below, capped = _sum_abs_below(vector, torch.full((), math.inf, device=vector.device))
    scale = torch.where(below > 0, target / below, 0.0)
    going = scale > 0
    for _ in range(rounds):
        before = capped
        below, capped = _sum_abs_below(vector, 1 / scale)
        going = going & (capped != before) & (capped < target) & (below > 0)
        scale = torch.where(going, (target - capped) / below, scale)
    return scale
