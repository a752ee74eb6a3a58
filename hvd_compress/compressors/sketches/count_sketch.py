"""The count sketch: a small table, linear in the vector, that knows the vector's large coordinates."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from hvd_compress.native.kernels import Hashing
from hvd_compress.ops import Array, Ops, random
from hvd_compress.ops.numpy import NumpyOps
from hvd_compress.ops.random import Stream, make_key

MOST_ROWS = 15
AT_ONCE = 1 << 20  # coordinates whose places are computed together where there is no kernel


class CountSketch:
    """A table of `rows` times `columns` sums of a vector's coordinates, with signs (Charikar et al. 2002).

    The vector is cut into blocks of `columns` coordinates. In each row, every block is rotated by a shift of its own,
    multiplied by a sign of its own, and added to the row; before that, every coordinate has got the sign of its place
    in the block, the same in all rows. Coordinates of one block never share a column. Those of two blocks do with
    probability 1 / `columns`, and the product of their signs is 1 or -1 with equal probability, independently in each
    row: the variance of an estimate is that of the classic sketch, ||v||^2 / columns in a row, with no table of hashes
    and with contiguous access to memory.

    Sketches with the same numbers and seed are linear: the sum of two is the sketch of the sum of their vectors.

    Attributes:
        size: coordinates of the vector.
        rows: independent sums of each coordinate, odd, 1 to 15; the estimate is their median.
        columns: sums in a row, 1 to `size`.
        seed: of the shifts and signs.
        ops: the operations of the framework whose arrays it takes; NumPy's unless told otherwise.
        table: the sums, float32 of shape (rows * columns,), row after row.

    Raises:
        TypeError: if a number is not an integer.
        ValueError: if it is outside its allowed range.
    """

    def __init__(self, size: int, rows: int, columns: int, seed: int = 0, *, ops: Ops | None = None) -> None:
        check_shape("CountSketch", size, rows, columns)
        if rows % 2 == 0:
            raise ValueError(f"CountSketch: rows must be odd, for the estimate is their median; got {rows}")
        self.size, self.rows, self.columns, self.seed = size, rows, columns, seed
        self.ops: Ops = ops or NumpyOps()
        self.table: Array = self.ops.zeros(rows * columns)

    def sketch(self, vector: Array, offset: int = 0) -> CountSketch:
        """Add a vector, or the part of one that begins at coordinate `offset`; return this sketch.

        Args:
            vector: float32 of shape (n,), finite.
            offset: where it begins, 0 to size - n. Parts in ascending order add up to the very table of the whole.

        Raises:
            TypeError: if the vector is not of float32, or of another framework than the table.
            ValueError: if it is not one-dimensional, is not finite, or does not lie in the size.
        """
        if not isinstance(vector, type(self.table)):
            kinds = (f"{type(array).__module__}.{type(array).__qualname__}" for array in (self.table, vector))
            raise TypeError("CountSketch: vectors must be of type {}, as the table is; got {}".format(*kinds))
        if "float32" not in str(vector.dtype):
            raise TypeError(f"CountSketch: vectors must be of float32; got {vector.dtype}")
        if len(vector.shape) != 1 or not 0 <= offset <= self.size - vector.shape[0]:
            raise ValueError(
                f"CountSketch: a vector of shape {tuple(vector.shape)} at {offset} does not lie in ({self.size},)"
            )
        if not self.ops.all_finite(vector):
            raise ValueError("CountSketch: vectors must be finite; one of the coordinates is NaN or infinite")
        self.add(vector, offset)
        return self

    def add(self, vector: Array, offset: int = 0) -> None:
        """Add as `sketch` does, without checks: what is not finite spreads to the sums that it shares."""
        ops = self.ops
        if ops.kernels:
            ops.kernels.sketch(self.table, self.size, self.rows, self._hashing, vector, offset)
            return
        for start in range(0, vector.shape[0], AT_ONCE):
            values = vector[start : start + AT_ONCE]
            self._add_at(ops.arange(values.shape[0]) + (offset + start), values)

    def add_sparse(self, indices: Array, values: Array) -> None:
        """Add a vector that is zero but for the values, float32, at ascending distinct int64 indices."""
        if self.ops.kernels:
            self.ops.kernels.sketch_sparse(self.table, self.size, self.rows, self._hashing, indices, values)
        else:
            self._add_at(indices, values)

    def estimate(self, indices: Array | None = None) -> Array:
        """Return the estimates of the coordinates, float32: of those at int64 `indices`, or of all, shape (size,)."""
        ops = self.ops
        if ops.kernels:
            return ops.kernels.estimate(self.table, self.size, self.rows, self._hashing, indices)
        if indices is None:
            starts = range(0, self.size, AT_ONCE)
            parts = [self.estimate(ops.arange(min(AT_ONCE, self.size - start)) + start) for start in starts]
            return ops.concat(parts)
        return ops.median([sign * ops.take(self.table, place) for place, sign in self._places(indices)])

    def l2_norm(self) -> float:
        """Return the estimate of the vector's Euclidean norm: the median of the rows' norms."""
        return statistics.median(self.ops.norm(row) for row in self._rows)

    def heavy_hitters(self, count: int) -> Array:
        """Return the indices of the `count` coordinates of largest estimated magnitude, int64 ascending.

        Among equal estimates the lower index is taken.

        Raises:
            ValueError: if `count` is not in 0 to size.
        """
        if not 0 <= count <= self.size:
            raise ValueError(f"CountSketch: the number of heavy hitters must be in 0 to {self.size}; got {count}")
        if self.ops.kernels:
            return self.ops.kernels.heavy(self.table, self.size, self.rows, self._hashing, count)
        return self.ops.top_k(self.estimate(), count) if count else self.ops.arange(0)

    def __add__(self, other: CountSketch) -> CountSketch:
        """Return the sketch of the sum of both vectors.

        Raises:
            ValueError: if the other one has another size, other rows or columns, or another seed.
        """
        if not isinstance(other, CountSketch):
            return NotImplemented
        for name in ("size", "rows", "columns", "seed"):
            mine, others = getattr(self, name), getattr(other, name)
            if mine != others:
                raise ValueError(f"CountSketch: sketches of different {name} cannot be added; got {mine} and {others}")
        return self.with_table(self.table + other.table)

    def __mul__(self, factor: float) -> CountSketch:
        """Return the sketch of the vector times a number."""
        return self.with_table(self.table * factor)

    __rmul__ = __mul__

    def __repr__(self) -> str:
        return f"CountSketch(size={self.size}, rows={self.rows}, columns={self.columns}, seed={self.seed})"

    def with_table(self, table: Array) -> CountSketch:
        """Return a sketch with these sums and this one's shifts and signs: what an AllReduce of tables gives, say."""
        other = CountSketch.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.table = table
        return other

    @cached_property
    def _hashing(self) -> Hashing:
        """Shifts and flips, int64 and uint8, of each row and in it of each block; and a bit of sign for each column."""
        key, blocks = make_key("count sketch", self.seed), -(-self.size // self.columns)
        words = random.bits(2 * self.rows * blocks, Stream(key, 0)).reshape(2, -1)
        shifts, flips = rotated(words[0], self.columns), (words[1] >> 31).astype(np.uint8)
        return self.ops.hashing(shifts, flips, random.bits(-(-self.columns // 32), Stream(key, 1)))

    @cached_property
    def _arrays(self) -> tuple[Array, Array, Array]:
        """Shifts and flips (1 or -1), shape (rows, blocks), and signs (1 or -1) as the framework's arrays."""
        shifts, flips, words = self._hashing  # NumPy's, for these are for operations without kernels
        signs = np.unpackbits(words.view(np.uint8), bitorder="little")[: self.columns]
        turned = (1 - 2 * bits.astype(np.float32) for bits in (flips.reshape(self.rows, -1), signs))
        return tuple(map(self.ops.from_numpy, (shifts.reshape(self.rows, -1), *turned)))

    def _places(self, indices: Array) -> Iterator[tuple[Array, Array]]:
        """Give for each row where the coordinates lie in the table, and with what signs."""
        ops, c = self.ops, self.columns
        shifts, flips, signs = self._arrays
        block = indices // c
        position = indices - block * c
        for r in range(self.rows):
            column = column_of(ops, position, ops.take(shifts[r], block), c)
            yield r * c + column, ops.take(signs, position) * ops.take(flips[r], block)

    def _add_at(self, indices: Array, values: Array) -> None:
        for place, sign in self._places(indices):
            self.table = self.ops.add_repeated(self.table, place, sign * values)

    @property
    def _rows(self) -> Sequence[Array]:
        return [self.table[r * self.columns : (r + 1) * self.columns] for r in range(self.rows)]


def check_shape(kind: str, size: int, rows: int, columns: int) -> None:
    """Raise TypeError or ValueError, with the kind of sketch, if a number is not one that its table can have."""
    for name, value, most in (("size", size, 2**40), ("rows", rows, MOST_ROWS), ("columns", columns, size)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{kind}: {name} must be an integer; got {value!r}")
        if not 1 <= value <= most:
            limit = "the vector's size, " if name == "columns" else ""
            raise ValueError(f"{kind}: {name} must be in 1 to {limit}{most}; got {value}")


def rotated(words: np.ndarray[Any, Any], columns: int) -> np.ndarray[Any, Any]:
    """Return random 32-bit words as shifts of blocks, int64 below `columns`."""
    return (words.astype(np.uint64) * np.uint64(columns) >> np.uint64(32)).astype(np.int64)


def column_of(ops: Ops, positions: Array, shifts: Array, columns: int) -> Array:
    """Return the columns that positions in a block are rotated to."""
    places = positions + shifts
    return places - columns * ops.cast(places >= columns, "int64")
