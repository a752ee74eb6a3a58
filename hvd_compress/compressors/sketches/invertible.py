"""The invertible sketch: a small table from which the coordinates that were put into it are read back exactly."""

from __future__ import annotations

from functools import cached_property, lru_cache
from itertools import cycle, islice
from typing import Any

import numpy as np

from hvd_compress.compressors.sketches.count_sketch import check_shape, column_of, rotated
from hvd_compress.ops import Array, Ops, random
from hvd_compress.ops.by_kernel import by_kernel
from hvd_compress.ops.numpy import NumpyOps
from hvd_compress.ops.random import Stream, make_key

MOST_PASSES = 100  # over all rows; what can be read takes some twenty


class InvertibleSketch:
    """A table of `rows` times `columns` sums that names coordinates (Goodrich and Mitzenmacher 2011).

    Coordinates go to one sum in each row, as those of a `CountSketch`: blocks of `columns` are rotated. What is added
    there is the code of the block, 32 random bits, modulo 2^32. A sum to which v workers added one coordinate is v
    times a code, and so tells the block, and its place in the row tells the coordinate. What has been read is
    subtracted everywhere, so that more sums have one coordinate: the table is peeled. With three rows 1.23 sums for
    each coordinate are enough, if there are many, to read all of them (Molloy 2005), whatever the size.

    Tables with the same numbers and seed are linear: their sum names the union of their coordinates.

    Attributes:
        size: all coordinates that there are.
        rows: sums of each coordinate, 1 to 15; 3 need the least.
        columns: sums in a row, 1 to `size`.
        seed: of the rotations.
        ops: the operations of the framework whose arrays it takes; NumPy's unless told otherwise.
        table: the sums, int32 of shape (rows * columns,), row after row; they wrap.

    Raises:
        TypeError: if a number is not an integer.
        ValueError: if it is outside its allowed range.
    """

    def __init__(self, size: int, rows: int, columns: int, seed: int = 0, *, ops: Ops | None = None) -> None:
        check_shape("InvertibleSketch", size, rows, columns)
        self.size, self.rows, self.columns, self.seed = size, rows, columns, seed
        self.ops: Ops = ops or NumpyOps()
        self.blocks = -(-size // columns)
        words = random.bits(rows * self.blocks, Stream(make_key("invertible sketch", seed), 0))
        self._shifts = rotated(words, columns)
        self.table: Array = self.ops.cast(self.ops.zeros(rows * columns), "int32")

    def add(self, indices: Array) -> None:
        """Put in coordinates, distinct int64 indices below the size."""
        shifts = self._shifts.reshape(self.rows, self.blocks)
        self.table = add_names(self.ops, self.table, indices, shifts, _codes(self.blocks))

    def recover(self, most: int) -> tuple[Array, float]:
        """Return the coordinates that can be read, int64 ascending, and the part of the sums that is left unread.

        A sum of several coordinates is taken for one by mistake with a probability of at most blocks * most / 2^32.

        Args:
            most: workers that may have put in a coordinate, at least 1.
        """
        ops, c = self.ops, self.columns
        multiples, owners = _multiples(self.blocks, most)
        if ops.kernels:
            every, left = ops.kernels.recover(
                self.table, self.size, self.rows, self._shifts, multiples, owners, MOST_PASSES
            )
            return every, left / (self.rows * c)
        multiples, owners = map(ops.from_numpy, (multiples, owners))
        table = ops.copy(self.table)
        found: list[Array] = []
        idle = 0
        for r in islice(cycle(range(self.rows)), MOST_PASSES * self.rows):
            sums = table[r * c : (r + 1) * c]
            at = ops.searchsorted(multiples, sums) - 1
            at = ops.where(at < 0, ops.zeros_like(at), at)
            block = ops.take(owners, at)
            position = ops.arange(c) - ops.take(self._rotations[r], block)
            position = position + c * ops.cast(position < 0, "int64")
            alone = (ops.take(multiples, at) == sums) & (block * c + position < self.size)
            places = ops.nonzero(alone)
            idle = 0 if places.shape[0] else idle + 1
            if idle == self.rows:
                break
            if idle:
                continue
            block, position, sums = (ops.take(array, places) for array in (block, position, sums))
            table = _plus(ops, table, self._rotations, block, position, -sums)
            found.append(block * c + position)
        every = ops.arange(0)
        if found:
            every = ops.sort(ops.concat(found))  # perhaps with one that was read twice, once by mistake
            every = ops.take(every, ops.concat([ops.arange(1), 1 + ops.nonzero(every[1:] != every[:-1])]))
        return every, ops.nonzero(table != 0).shape[0] / (self.rows * c)

    @cached_property
    def _rotations(self) -> Array:
        """The shifts of each row's blocks as the framework's array."""
        return self.ops.from_numpy(self._shifts.reshape(self.rows, -1))


@by_kernel(table="int32", indices="int64")
def add_names(
    ops: Ops, table: Array, indices: Array, shifts: np.ndarray[Any, Any], codes: np.ndarray[Any, Any]
) -> Array:
    """Return a table, overwritten, in which coordinates are named.

    Args:
        ops: the array operations.
        table: int32, row after row.
        indices: the coordinates, distinct int64.
        shifts: of each row's blocks, shape (rows, blocks).
        codes: of the blocks, int32.
    """
    columns = table.shape[0] // shifts.shape[0]
    block = indices // columns
    position, sums = indices - block * columns, ops.take(ops.from_numpy(codes), block)
    return _plus(ops, table, ops.from_numpy(shifts), block, position, sums)


def _plus(ops: Ops, table: Array, rotations: Array, block: Array, position: Array, sums: Array) -> Array:
    """Return a table, overwritten, with something added to the sums of coordinates."""
    rows = rotations.shape[0]
    columns = table.shape[0] // rows
    for r in range(rows):
        column = column_of(ops, position, ops.take(rotations[r], block), columns)
        table = ops.add_repeated(table, r * columns + column, sums)
    return table


def _codes(blocks: int) -> np.ndarray[Any, Any]:
    """Return a code for each block, int32, odd."""
    return (random.bits(blocks, Stream(make_key("codes of blocks"), 0)) | np.uint32(1)).view(np.int32)


@lru_cache(maxsize=4)
def _multiples(blocks: int, most: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the codes' multiples by 1 to `most`, int32 ascending, and the block of each, int64."""
    factors = np.arange(1, most + 1, dtype=np.uint32)
    multiples = np.multiply.outer(factors, _codes(blocks).view(np.uint32)).view(np.int32).reshape(-1)
    order = np.argsort(multiples, kind="stable")
    return multiples[order], order % blocks
