"""Selection of coordinates: by a limit, at random, and by number."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from hvd_compress.native.gpu.groups import magnitude_bits
from hvd_compress.native.gpu.launch import TILE, Division, division, launch, persistent, signed, tiles
from hvd_compress.native.gpu.marks import (
    ends_of,
    indices_of,
    new_marks,
    ones_of,
    places,
    store_marks,
    words_at,
    words_of,
)
from hvd_compress.native.gpu.numbers import mix, uniform_at
from hvd_compress.native.kernels import Words
from hvd_compress.ops.torch import uploaded

DIGITS = ((20, 11), (10, 10), (0, 10))  # of a magnitude's 31 bits, from the highest: shift and number of bits
LARGE = 1 << 22  # elements of a group from which on a sample is worth its kernels
SAMPLE = 1 << 17  # magnitudes from which the last selected one's neighbourhood is estimated
MARGIN = 6  # standard deviations of the estimate, to either side
ROOM = 32  # one coordinate in so many may be in that neighbourhood
COUNTED = 2048  # elements of which a program counts the digits at once
COUNTERS = 2 + sum(1 << bits for _, bits in DIGITS)  # of a group: neighbours, those above them, and each digit's

# --- by a limit


@triton.jit(do_not_specialize=["first", "second"])
def _mark_chosen(x_ptr, size, limit, words_ptr, counts_ptr, first, second, DRAW: tl.constexpr, TILE: tl.constexpr):
    """Mark what is not below the limit; or what is drawn with a probability of a factor times the magnitude."""
    i = places(tl.program_id(0) * TILE, TILE)
    magnitude = tl.abs(tl.load(x_ptr + i, mask=i < size, other=0.0))
    number = tl.load(limit).to(tl.float32) if DRAW else limit
    left_out = uniform_at(i, first, second) >= magnitude * number if DRAW else magnitude < number
    store_marks(words_ptr, counts_ptr, (left_out == 0) & (i < size), TILE)


def _marked(vector: Tensor, limit: float | Tensor, stream: Words, draw: bool) -> tuple[Tensor, Tensor]:
    """Return the marks of what is chosen, and their number in each tile."""
    size, device = vector.shape[0], vector.device
    words, counts = new_marks(size, device)
    first, second = map(signed, stream)
    launch(_mark_chosen, (tiles(size),), vector, size, limit, words, counts, first, second, DRAW=draw, TILE=TILE)
    return words, counts


def above(vector: Tensor, threshold: float) -> Tensor:
    """Return the indices of the magnitudes that are not below `threshold`, ascending; NaN never is."""
    limit = float(np.float32(threshold))  # which the interpreter would not round
    words, counts = _marked(vector, limit, (0, 0), False)
    return indices_of(words, ends_of(counts))


def draw(vector: Tensor, scale: Tensor, stream: Words) -> Tensor:
    """Return each index with probability min(1, scale * magnitude), ascending; NaN for certain."""
    words, counts = _marked(vector, scale, stream, True)
    return indices_of(words, ends_of(counts))


# --- by number, of each of several groups: all groups together, with as many kernels as one takes


@dataclass(frozen=True)
class Plan:
    """What is searched for in a division, in tables on the device, int32.

    Attributes:
        rows: of each group how many are wanted (0: it is not searched), the places of the bounds among the ordered
            samples (-1: there is none), where its neighbours are copied to, and how many may be (0: it is not sampled).
        firsts: of each group the place of its first index among those of all.
        samples: of each group that is sampled its start, and the elements for each of the sample.
        workers: of each program that counts digits its group, its number among the group's, and how many these are.
        room: for neighbours, of all groups.
    """

    rows: Tensor
    firsts: Tensor
    samples: Tensor
    workers: Tensor
    room: int


@functools.lru_cache(maxsize=256)
def _plan(lengths: tuple[int, ...], counts: tuple[int, ...], programs: int, device: torch.device) -> Plan:
    """Return the plan of a search for so many of each group, by about so many programs."""
    rows: list[list[int]] = []
    samples: list[tuple[int, int]] = []
    work: list[int] = []  # elements of each group that are searched, as a rule at most
    room = start = 0
    for length, count in zip(lengths, counts, strict=True):
        row = [count, -1, -1, room, 0]
        if count and length >= LARGE:
            share = count / length
            rank, margin = SAMPLE * (1 - share), MARGIN * math.sqrt(SAMPLE * share * (1 - share)) + MARGIN
            low, high, before = math.floor(rank - margin), math.ceil(rank + margin), len(samples) * SAMPLE
            row[1:3] = before + low if low >= 0 else -1, before + high if high < SAMPLE else -1
            row[4] = length // ROOM
            samples.append((start, length // SAMPLE))
        rows.append(row)
        work.append(row[4] or length if count else 0)
        room, start = room + row[4], start + length
    each = [max(1, min(-(-own // COUNTED), programs * own // sum(work))) if own else 0 for own in work]
    workers = [(group, number, of) for group, of in enumerate(each) for number in range(of)]
    firsts = np.cumsum(counts) - counts
    tables = [np.array(table, np.int32).reshape(-1) for table in (rows, firsts, samples, workers)]
    parts = uploaded(np.concatenate(tables), device).split([table.size for table in tables])
    return Plan(parts[0], parts[1], parts[2], parts[3], room)


@triton.jit
def _sample(x_ptr, samples_ptr, out_ptr, TILE: tl.constexpr):
    """Store the magnitude of one element, drawn at random, of each part of a group that is sampled."""
    start, each = tl.load(samples_ptr + tl.program_id(1) * 2), tl.load(samples_ptr + tl.program_id(1) * 2 + 1)
    part = tl.program_id(0) * TILE + tl.arange(0, TILE)
    i = start + part * each + (mix(part.to(tl.uint32, bitcast=True)) % each.to(tl.uint32)).to(tl.int32)
    tl.store(out_ptr + tl.program_id(1) * tl.num_programs(0) * TILE + part, magnitude_bits(tl.load(x_ptr + i)))


@triton.jit
def _bounds(rows_ptr, ordered_ptr, group):
    """Return between which magnitudes a group's last selected one lies with near certainty."""
    low, high = tl.load(rows_ptr + group * 5 + 1), tl.load(rows_ptr + group * 5 + 2)
    least = tl.load(ordered_ptr + low, mask=low >= 0, other=0)
    return least, tl.load(ordered_ptr + high, mask=high >= 0, other=0x7FFFFFFF)


@triton.jit
def _low_bits(number):
    """Return words of which so many of the lowest bits are set, at least 0 and at most 32."""
    number = tl.minimum(tl.maximum(number, 0), 32)
    return ((tl.full([1], 1, tl.int64) << number.to(tl.int64)) - 1).to(tl.int32)


@triton.jit
def _inside(at, starts_ptr, group):
    """Return the words at these places of which the bits of a group's elements are set."""
    start, end = tl.load(starts_ptr + group), tl.load(starts_ptr + group + 1)
    return _low_bits(end - at * 32) & ~_low_bits(start - at * 32)


@triton.jit
def _copy_near(
    x_ptr,
    size,
    starts_ptr,
    tiles_ptr,
    rows_ptr,
    ordered_ptr,
    counts_ptr,
    near_ptr,
    groups,
    TILE: tl.constexpr,
):
    """Copy the magnitudes within a group's bounds, in any order, and count them and the ones above."""
    tile = tl.program_id(0)
    first, last = tl.load(tiles_ptr + tile), tl.load(tiles_ptr + tl.num_programs(0) + tile)
    any_room = 0
    for group in range(first, last + 1):
        any_room = tl.maximum(any_room, tl.load(rows_ptr + group * 5 + 4))
    if any_room > 0:
        i = places(tile * TILE, TILE)
        at = words_at(tile * TILE, TILE)
        magnitude = magnitude_bits(tl.load(x_ptr + i, mask=i < size, other=0.0))
        for group in range(first, last + 1):
            room = tl.load(rows_ptr + group * 5 + 4)
            if room > 0:
                low, high = _bounds(rows_ptr, ordered_ptr, group)
                inside = _inside(at, starts_ptr, group)
                above = tl.sum(ones_of(words_of(magnitude > high) & inside), 0)
                word = words_of((magnitude >= low) & (magnitude <= high)) & inside
                ones = ones_of(word)
                tl.atomic_add(counts_ptr + groups + group, above, sem="relaxed")
                to = tl.atomic_add(counts_ptr + group, tl.sum(ones, 0), sem="relaxed") + tl.cumsum(ones, 0) - ones
                if low < high:  # else all are the same
                    near = near_ptr + tl.load(rows_ptr + group * 5 + 3)
                    for _ in range(tl.max(ones, 0)):
                        there = (word != 0) & (to < room)
                        x = tl.load(x_ptr + at * 32 + ones_of((word & -word) - 1), mask=there, other=0.0)
                        tl.store(near + to, magnitude_bits(x), mask=there)
                        word = word & (word - 1)
                        to += 1


NEIGHBOURS: tl.constexpr = tl.constexpr(0)
VECTOR: tl.constexpr = tl.constexpr(1)
NOWHERE: tl.constexpr = tl.constexpr(2)


@triton.jit
def _where_to_search(rows_ptr, ordered_ptr, counts_ptr, groups, group):
    """Return where a group's magnitude is searched, how many are wanted there, the neighbours, and the magnitude.

    That is among the neighbours, or in the vector; or nowhere, where it is known, or not wanted.
    """
    wanted, room = tl.load(rows_ptr + group * 5), tl.load(rows_ptr + group * 5 + 4)
    near, above = tl.load(counts_ptr + group), tl.load(counts_ptr + groups + group)
    low, high = _bounds(rows_ptr, ordered_ptr, group)
    sound = (room > 0) & (wanted > above) & (wanted - above <= near)
    known = (wanted == 0) | (sound & (low == high))
    among = sound & (near <= room)
    place = tl.where(known, NOWHERE, tl.where(among, NEIGHBOURS, VECTOR))
    return place, tl.where(sound & (known | among), wanted - above, wanted), near, tl.where(known, low, 0)


@triton.jit
def _found(
    rows_ptr,
    ordered_ptr,
    counts_ptr,
    state_ptr,
    groups,
    group,
    LEVEL: tl.constexpr,
    BITS: tl.constexpr,
    BEFORE: tl.constexpr,
):
    """Return where to search, neighbours, the digits found so far, and how many are wanted of what begins with them.

    The last digit is found from its counts, of BITS bits behind the BEFORE counts of the digits before it.
    """
    place, wanted, near, digits = _where_to_search(rows_ptr, ordered_ptr, counts_ptr, groups, group)
    if LEVEL > 1:
        digits, wanted = tl.load(state_ptr + group * 2), tl.load(state_ptr + group * 2 + 1)
    if LEVEL > 0:
        digit = tl.arange(0, 1 << BITS)
        counts = tl.load(counts_ptr + groups * (2 + BEFORE) + group * (1 << BITS) + digit)
        above = tl.sum(counts, 0) - tl.cumsum(counts, 0)
        here = (above < wanted) & (above + counts >= wanted)
        further = (digits << BITS) | tl.sum(tl.where(here, digit, 0), 0)
        digits = tl.where(place == NOWHERE, digits, further)
        wanted = tl.where(place == NOWHERE, wanted, wanted - tl.sum(tl.where(here, above, 0), 0))
    return place, near, digits, wanted


@triton.jit
def _digits(x_ptr, size, number, of, digits, counts, SHIFT: tl.constexpr, BITS: tl.constexpr, TILE: tl.constexpr):
    for tile in range(number, tl.cdiv(size, TILE), of):
        i = tile * TILE + tl.arange(0, TILE)
        magnitude = magnitude_bits(tl.load(x_ptr + i, mask=i < size, other=0))
        among = (i < size) & ((magnitude >> (SHIFT + BITS)) == digits)
        counts += tl.histogram((magnitude >> SHIFT) & ((1 << BITS) - 1), 1 << BITS, mask=among)
    return counts


@triton.jit
def _count_digits(
    x_ptr,
    starts_ptr,
    near_ptr,
    workers_ptr,
    rows_ptr,
    ordered_ptr,
    counts_ptr,
    before_ptr,
    state_ptr,
    groups,
    LEVEL: tl.constexpr,
    SHIFT: tl.constexpr,
    BITS: tl.constexpr,
    BEFORE: tl.constexpr,
    LAST_BITS: tl.constexpr,
    LAST_BEFORE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Count the next digit of a group's magnitudes that begin with the digits found so far."""
    worker = workers_ptr + tl.program_id(0) * 3
    group, number, of = tl.load(worker), tl.load(worker + 1), tl.load(worker + 2)
    place, near, digits, wanted = _found(
        rows_ptr, ordered_ptr, counts_ptr, before_ptr, groups, group, LEVEL, LAST_BITS, LAST_BEFORE
    )
    if number == 0:
        tl.store(state_ptr + group * 2, digits)
        tl.store(state_ptr + group * 2 + 1, wanted)
    start, end = tl.load(starts_ptr + group), tl.load(starts_ptr + group + 1)
    near = tl.where(place == NEIGHBOURS, near, 0)
    size = tl.where(place == VECTOR, end - start, 0)
    counts = tl.zeros([1 << BITS], tl.int32)
    counts = _digits(near_ptr + tl.load(rows_ptr + group * 5 + 3), near, number, of, digits, counts, SHIFT, BITS, TILE)
    counts = _digits(x_ptr + start, size, number, of, digits, counts, SHIFT, BITS, TILE)
    if tl.sum(counts, 0) > 0:
        to = counts_ptr + groups * (2 + BEFORE) + group * (1 << BITS) + tl.arange(0, 1 << BITS)
        tl.atomic_add(to, counts, sem="relaxed")


@triton.jit
def _store_found(
    rows_ptr,
    ordered_ptr,
    counts_ptr,
    before_ptr,
    found_ptr,
    groups,
    LEVEL: tl.constexpr,
    BITS: tl.constexpr,
    BEFORE: tl.constexpr,
):
    """Store a group's last magnitude, and how many of those equal to it are wanted."""
    group = tl.program_id(0)
    _, _, least, wanted = _found(rows_ptr, ordered_ptr, counts_ptr, before_ptr, groups, group, LEVEL, BITS, BEFORE)
    if tl.load(rows_ptr + group * 5) > 0:
        tl.store(found_ptr + group * 2, least)
        tl.store(found_ptr + group * 2 + 1, wanted)


def _search(vector: Tensor, groups: Division, plan: Plan, counts: Tensor, found: Tensor) -> None:
    """Find the last magnitude that is selected of each group, and how many of those equal to it are.

    Args:
        vector: float32.
        groups: its division.
        plan: of the search.
        counts: int32 zeros, of shape (at least groups * COUNTERS,).
        found: of each group the magnitude's bits and the number, int32; of those that are not searched it stays.
    """
    number, device = groups.count, vector.device
    ordered, near = plan.rows, vector
    if plan.room:
        sampled = plan.samples.shape[0] // 2
        sample = torch.empty(sampled, SAMPLE, dtype=torch.int32, device=device)
        launch(_sample, (SAMPLE // 1024, sampled), vector, plan.samples, sample, TILE=1024, warps=4)
        ordered = sample.sort().values
        near = torch.empty(plan.room, dtype=torch.int32, device=device)
        launch(
            _copy_near, (tiles(vector.shape[0]),), vector, vector.shape[0], groups.starts, groups.of_tiles, plan.rows,
            ordered, counts, near, number, TILE=TILE,
        )  # fmt: skip
    states = torch.empty(len(DIGITS), 2 * number, dtype=torch.int32, device=device).unbind()
    before, last, last_before = found, 0, 0  # of the digit before there is nothing
    at = 0
    for level, (shift, bits) in enumerate(DIGITS):
        launch(
            _count_digits, (plan.workers.shape[0] // 3,), vector, groups.starts, near, plan.workers, plan.rows, ordered,
            counts, before, states[level], number, LEVEL=level, SHIFT=shift, BITS=bits, BEFORE=at, LAST_BITS=last,
            LAST_BEFORE=last_before, TILE=COUNTED,
        )  # fmt: skip
        before, last, last_before, at = states[level], bits, at, at + (1 << bits)
    launch(
        _store_found, (number,), plan.rows, ordered, counts, before, found, number, LEVEL=len(DIGITS), BITS=last,
        BEFORE=last_before, warps=4,
    )  # fmt: skip


@triton.jit
def _mark_top(
    x_ptr,
    size,
    starts_ptr,
    tiles_ptr,
    rows_ptr,
    found_ptr,
    above_ptr,
    equal_ptr,
    counts_ptr,
    parts,
    AGAIN: tl.constexpr,
    TILE: tl.constexpr,
):
    """Mark what is above its group's last magnitude, and what is equal, and count both of each group in each tile.

    Of a group that was not searched all that is not below the magnitude counts as above, and none as equal. If this is
    done AGAIN, tiles without a group that was searched stay as they are.
    """
    tile = tl.program_id(0)
    first, last = tl.load(tiles_ptr + tile), tl.load(tiles_ptr + tl.num_programs(0) + tile)
    searched = 1
    if AGAIN:
        searched = 0
        for group in range(first, last + 1):
            searched = tl.maximum(searched, tl.load(rows_ptr + group * 5))
    if searched > 0:
        i = places(tile * TILE, TILE)
        magnitude = magnitude_bits(tl.load(x_ptr + i, mask=i < size, other=0.0))
        at = words_at(tile * TILE, TILE)
        above, equal = at * 0, at * 0
        for group in range(first, last + 1):
            limit, inside = tl.load(found_ptr + group * 2), _inside(at, starts_ptr, group)
            exact = tl.load(rows_ptr + group * 5) > 0
            below = tl.where(limit > 0x7F800000, -1, limit - 1)  # nothing is below NaN
            own_above = words_of(magnitude > tl.where(exact, limit, below)) & inside
            own_equal = words_of(magnitude == tl.where(exact, limit, -1)) & inside
            tl.store(counts_ptr + tile + group, tl.sum(ones_of(own_above), 0))
            tl.store(counts_ptr + parts + tile + group, tl.sum(ones_of(own_equal), 0))
            above, equal = above | own_above, equal | own_equal
        tl.store(above_ptr + at, above)
        tl.store(equal_ptr + at, equal)


@triton.jit
def _before(ends_ptr, part, first):
    """Return how many there are of a group before a part of it."""
    return tl.load(ends_ptr + part - 1, mask=part > 0, other=0) - tl.load(ends_ptr + first - 1, mask=first > 0, other=0)


@triton.jit
def _write_top(
    above_ptr,
    equal_ptr,
    ends_ptr,
    parts,
    starts_ptr,
    tiles_ptr,
    found_ptr,
    firsts_ptr,
    out_ptr,
    most,
    WORDS: tl.constexpr,
):
    """Write the indices of each group's that are marked above, and of the first of those equal as many as are wanted.

    The ends have how many are above up to each part of a group, with all groups before, and then how many are equal.
    """
    tile = tl.program_id(0)
    at = tile * WORDS + tl.arange(0, WORDS)
    for group in range(tl.load(tiles_ptr + tile), tl.load(tiles_ptr + tl.num_programs(0) + tile) + 1):
        part, first = tile + group, tl.load(starts_ptr + group) // (WORDS * 32) + group
        inside = _inside(at, starts_ptr, group)
        equal = tl.load(equal_ptr + at) & inside
        ones = ones_of(equal)
        wanted, before = tl.load(found_ptr + group * 2 + 1), _before(ends_ptr, parts + part, parts + first)
        left = tl.minimum(tl.maximum(wanted - before - (tl.cumsum(ones, 0) - ones), 0), ones)
        word = (tl.load(above_ptr + at) & inside) | tl.where(left == ones, equal, 0)
        some = tl.where(left < ones, left, 0)
        for _ in range(tl.max(some, 0)):
            word = word | tl.where(some > 0, equal & -equal, 0)
            equal = equal & (equal - 1)
            some -= 1
        ones = ones_of(word)
        to = tl.load(firsts_ptr + group) + _before(ends_ptr, part, first) + tl.minimum(before, wanted)
        to += tl.cumsum(ones, 0) - ones
        for _ in range(tl.max(ones, 0)):
            tl.store(out_ptr + to, (at * 32 + ones_of((word & -word) - 1)).to(tl.int64), mask=(word != 0) & (to < most))
            word = word & (word - 1)
            to += 1


class _Marks:
    """The marks of what is above, and equal to, a magnitude of each group, and how many there are up to each part."""

    def __init__(self, vector: Tensor, groups: Division, counts: Tensor) -> None:
        """Make room; the counts are zeros for each part, of those above and then of those equal."""
        self.vector, self.groups, self.counts = vector, groups, counts
        self.above, self.equal = (new_marks(vector.shape[0], vector.device)[0] for _ in range(2))
        self.ends = counts

    def mark(self, plan: Plan, found: Tensor, again: bool = False) -> None:
        """Mark all, or again those of which groups were searched since."""
        launch(
            _mark_top, (tiles(self.vector.shape[0]),), self.vector, self.vector.shape[0], self.groups.starts,
            self.groups.of_tiles, plan.rows, found, self.above, self.equal, self.counts, self.counts.shape[0] // 2,
            AGAIN=again, TILE=TILE,
        )  # fmt: skip
        self.ends = ends_of(self.counts)

    def indices(self, found: Tensor, firsts: Tensor, count: int) -> Tensor:
        """Return the indices of all groups, `count` in all, int64."""
        out = torch.empty(count, dtype=torch.int64, device=self.vector.device)
        launch(
            _write_top, (tiles(self.vector.shape[0]),), self.above, self.equal, self.ends, self.counts.shape[0] // 2,
            self.groups.starts, self.groups.of_tiles, found, firsts, out, count, WORDS=TILE // 32, warps=1,
        )  # fmt: skip
        return out


def _counters(vector: Tensor, groups: Division) -> tuple[Tensor, Tensor]:
    """Return zeros for a search, and for the marks of each part."""
    parts = 2 * (tiles(vector.shape[0]) + groups.count)
    both = torch.zeros(groups.count * COUNTERS + parts, dtype=torch.int32, device=vector.device)
    return both[:-parts], both[-parts:]


def _largest(vector: Tensor, lengths: Sequence[int], counts: Sequence[int]) -> Tensor:
    """Return the indices of the largest magnitudes of each group of a vector."""
    groups = division(lengths, vector)
    plan = _plan(tuple(lengths), tuple(counts), persistent(vector), vector.device)
    searched, marked = _counters(vector, groups)
    found = torch.empty(2 * groups.count, dtype=torch.int32, device=vector.device)
    _search(vector, groups, plan, searched, found)
    marks = _Marks(vector, groups, marked)
    marks.mark(plan, found)
    return marks.indices(found, plan.firsts, sum(counts))


def top_k(vector: Tensor, count: int) -> Tensor:
    """Return the indices of the `count` largest magnitudes, ascending; of equal ones the first, NaN above all."""
    if count >= vector.shape[0] or count <= 0:
        return torch.arange(min(vector.shape[0], count), device=vector.device)
    return _largest(vector, [vector.shape[0]], [count])


def top_k_each(vector: Tensor, places: Sequence[slice], counts: Sequence[int]) -> Tensor:
    """Return `top_k` of each place, all places behind each other, as indices in the vector, which they fill."""
    return _largest(vector, [place.stop - place.start for place in places], counts)


# --- by about a number


@triton.jit
def _take_every(x_ptr, starts_ptr, size, own_starts_ptr, tiles_ptr, out_ptr, stride, TILE: tl.constexpr):
    """Store the first element of every so many of each group."""
    tile = tl.program_id(0)
    to = tile * TILE + tl.arange(0, TILE)
    start = to * 0  # of its group in the vector, minus that among the elements taken
    own = to * 0
    for group in range(tl.load(tiles_ptr + tile), tl.load(tiles_ptr + tl.num_programs(0) + tile) + 1):
        here = to >= tl.load(own_starts_ptr + group)
        start = tl.where(here, tl.load(starts_ptr + group), start)
        own = tl.where(here, tl.load(own_starts_ptr + group), own)
    x = tl.load(x_ptr + start + (to - own) * stride, mask=to < size, other=0.0)
    tl.store(out_ptr + to, x, mask=to < size)


def about_largest(
    vector: Tensor,
    places: Sequence[slice],
    counts: Sequence[int],
    stride: int,
    sampled: Sequence[int],
    bounds: Sequence[tuple[float, float]],
) -> Tensor:
    """Do `hvd_compress.compressors.sparsify.about_largest`; the host waits once, for the numbers.

    Where a place has NaN beside numbers, NaN counts as larger than any; without kernels all pass a threshold of NaN.
    With feedback neither happens: a vector that is not finite has nothing but NaN by then.
    """
    device, lengths = vector.device, [place.stop - place.start for place in places]
    groups, every = division(lengths, vector), [-(-length // stride) for length in lengths]
    taken = division(every, vector)
    sample = torch.empty(sum(every), device=device)
    tables = taken.starts, taken.of_tiles
    launch(_take_every, (tiles(sum(every)),), vector, groups.starts, sum(every), *tables, sample, stride, TILE=TILE)
    found = torch.empty(2 * len(lengths), dtype=torch.int32, device=device)
    plan = _plan(tuple(every), tuple(sampled), persistent(vector), device)
    _search(sample, taken, plan, _counters(sample, taken)[0], found)
    plan = _plan(tuple(lengths), (0,) * len(lengths), 0, device)
    searched, marked = _counters(vector, groups)
    marks = _Marks(vector, groups, marked)
    marks.mark(plan, found)
    ends = marks.ends[_last_parts(tuple(lengths), device)].tolist()
    numbers = [end - before for end, before in zip(ends, [0, *ends], strict=False)]
    wrong = [not least <= number <= most for number, (least, most) in zip(numbers, bounds, strict=True)]
    if any(wrong):
        numbers = [count if again else number for number, count, again in zip(numbers, counts, wrong, strict=True)]
        exact = tuple(count if again else 0 for count, again in zip(counts, wrong, strict=True))
        plan = _plan(tuple(lengths), exact, persistent(vector), device)
        _search(vector, groups, plan, searched, found)
        marks.mark(plan, found, again=True)
    firsts = np.cumsum(numbers) - numbers
    return marks.indices(found, uploaded(firsts.astype(np.int32), device), sum(numbers))


@functools.lru_cache(maxsize=256)
def _last_parts(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the last part of each group."""
    ends = np.cumsum(lengths)
    return uploaded((ends - 1) // TILE + np.arange(len(lengths)), device)
