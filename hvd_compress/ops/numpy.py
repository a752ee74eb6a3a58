"""The operations on NumPy arrays: the reference for the other frameworks and, without kernels, for the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hvd_compress import native
from hvd_compress.ops import random
from hvd_compress.ops.random import Stream

Array = np.ndarray[Any, Any]


class NumpyOps:
    """See `hvd_compress.ops.Ops`; with `kernels`, through those where there are any and they fit the arrays."""

    name = "numpy"

    def __init__(self, kernels: bool = True) -> None:
        self.kernels: Any = native.load() if kernels else None

    def _has_kernel_for(self, array: Array, *dtypes: str) -> bool:
        flags = array.flags
        return bool(self.kernels and array.ndim == 1 and array.dtype in dtypes and flags.c_contiguous and flags.aligned)

    def from_numpy(self, array: Array) -> Array:
        return array

    def to_numpy(self, array: Array) -> Array:
        return array

    def zeros(self, size: int) -> Array:
        return self.kernels.zeros(size) if self.kernels else np.zeros(size, np.float32)

    def arange(self, count: int) -> Array:
        return np.arange(count, dtype=np.int64)

    def ones_like(self, array: Array) -> Array:
        return np.ones_like(array)

    def zeros_like(self, array: Array) -> Array:
        return np.zeros_like(array)

    def copy(self, array: Array) -> Array:
        if self._has_kernel_for(array, "float32"):
            copied = self.kernels.empty(array.shape[0])
            self.kernels.copy(copied, array)
            return copied
        return array.copy()

    def cast(self, array: Array, dtype: str) -> Array:
        if dtype == "float16" and self._has_kernel_for(array, "float32"):
            return self.kernels.to_half(array).view(np.float16)
        if dtype == "float32" and self._has_kernel_for(array, "float16"):
            return self.kernels.from_half(array.view(np.uint16))
        with np.errstate(invalid="ignore", over="ignore"):
            return array.astype(dtype, copy=False)

    def concat(self, arrays: Sequence[Array]) -> Array:
        return np.concatenate(arrays) if arrays else self.zeros(0)

    def stack(self, matrices: Sequence[Array]) -> Array:
        return np.stack(matrices)

    def flatten(self, array: Array) -> Array:
        return array.reshape(-1)

    def transpose(self, matrix: Array) -> Array:
        return matrix.swapaxes(-1, -2)

    def bits_of(self, array: Array) -> Array:
        return array.view(np.int32)

    def float_of(self, array: Array) -> Array:
        return array.view(np.float32)

    def where(self, condition: Array, yes: Array, no: Array) -> Array:
        return np.where(condition, yes, no)

    def clip(self, array: Array, low: float, high: float) -> Array:
        return np.clip(array, low, high)

    def add(self, total: Array, vector: Array, factor: float = 1.0) -> Array:
        if self._has_kernel_for(total, "float32") and self._has_kernel_for(vector, "float32"):
            if factor == 1:
                self.kernels.add_(total, vector)
            else:
                self.kernels.affine(total, 1.0, vector, factor, total)
        else:
            total += vector if factor == 1 else vector * total.dtype.type(factor)
        return total

    def affine(self, x: Array, a: float, y: Array, b: float, out: Array | None = None) -> Array:
        if self._has_kernel_for(x, "float32") and self._has_kernel_for(y, "float32"):
            return self.kernels.affine(x, a, y, b, out)
        return np.add(x * a, y * b, out=out)

    def half_rest(self, vector: Array, residual: Array | None) -> tuple[Array, Array]:
        if self.kernels:
            return self.kernels.half_rest(vector, residual).view(np.float16), vector
        if residual is not None:
            vector += residual
        half = self.cast(vector, "float16")
        vector -= half
        return half, vector

    def median(self, vectors: Sequence[Array]) -> Array:
        return np.median(np.stack(vectors), axis=0)

    def sort(self, vector: Array) -> Array:
        return np.sort(vector)

    def searchsorted(self, vector: Array, values: Array) -> Array:
        return np.searchsorted(vector, values, side="right")

    def sign(self, array: Array) -> Array:
        return np.sign(array)

    def floor(self, array: Array) -> Array:
        return np.floor(array)

    def largest(self, array: Array) -> float:
        return array.max().item()

    def norm(self, vector: Array) -> float:
        return float(np.sqrt(np.square(vector, dtype=np.float64).sum()))

    def all_finite(self, vector: Array) -> bool:
        if self._has_kernel_for(vector, "float32"):
            return self.kernels.all_finite(vector)
        with np.errstate(over="ignore", invalid="ignore"):  # the sum may overflow where no element does
            return bool(np.isfinite(vector.sum())) or bool(np.isfinite(vector).all())

    def poison(self, vector: Array) -> Array:
        return vector if self.all_finite(vector) else np.full_like(vector, np.nan)

    def blocks(self, vector: Array, block: int) -> Array:
        missing = -vector.shape[0] % block
        padded = np.concatenate([vector, np.zeros(missing, vector.dtype)]) if missing else vector
        return padded.reshape(-1, block)

    def column(self, vector: Array) -> Array:
        return vector[:, None]

    def row_max_abs(self, rows: Array, plus: Array | None = None) -> Array:
        if self._has_kernel_for(rows.reshape(-1), "float32"):
            return self.kernels.group_max_abs(rows.reshape(-1), _lengths(rows), _flat(plus))
        return np.abs(_sum(rows, plus)).max(axis=1, initial=0)

    def row_norm(self, rows: Array) -> Array:
        return np.linalg.norm(rows.astype(np.float64), axis=1).astype(np.float32)

    def row_max_norm(self, rows: Array, plus: Array | None = None) -> tuple[Array, Array]:
        if self._has_kernel_for(rows.reshape(-1), "float32"):
            largest, squares = self.kernels.group_max_square(rows.reshape(-1), _lengths(rows), _flat(plus))
            return largest, np.sqrt(squares).astype(np.float32)
        return self.row_max_abs(rows, plus), self.row_norm(_sum(rows, plus))

    def row_sides(self, rows: Array, plus: Array | None = None) -> tuple[Array, Array, Array]:
        if self._has_kernel_for(rows.reshape(-1), "float32"):
            sides = self.kernels.group_sides(rows.reshape(-1), _lengths(rows), _flat(plus))
            up, down, count = sides.reshape(-1, 3).T
            return up, down, count
        rows = _sum(rows, plus)
        positive, wide = rows >= 0, rows.astype(np.float64)
        up, down = np.where(positive, wide, 0).sum(axis=1), np.where(positive, 0, wide).sum(axis=1)
        return up, down, positive.sum(axis=1).astype(np.float64)

    def top_k(self, vector: Array, count: int) -> Array:
        if self._has_kernel_for(vector, "float32"):
            return self.kernels.top_k(vector, count)
        if count >= vector.shape[0]:
            return self.arange(vector.shape[0])
        # As integers, the bits without the sign are in the order of the magnitudes, with NaN above all.
        magnitude = vector.view(np.int32) & 0x7FFFFFFF
        least = np.partition(magnitude, vector.shape[0] - count)[vector.shape[0] - count]
        above = np.flatnonzero(magnitude > least)
        equal = np.flatnonzero(magnitude == least)[: count - above.shape[0]]
        return np.sort(np.concatenate([above, equal]))

    def above(self, vector: Array, threshold: float) -> Array:
        if self._has_kernel_for(vector, "float32"):
            return self.kernels.above(vector, threshold)
        return np.flatnonzero(~(np.abs(vector) < np.float32(threshold)))

    def sum_abs_below(self, vector: Array, bound: float) -> tuple[float, int]:
        if self._has_kernel_for(vector, "float32"):
            return self.kernels.sum_abs_below(vector, bound)
        magnitude = np.abs(vector)
        below = magnitude < np.float32(bound)
        return float(magnitude[below].sum(dtype=np.float64)), int(vector.shape[0] - below.sum())

    def take(self, vector: Array, indices: Array) -> Array:
        if self._has_kernel_for(vector, "float32") and self._has_kernel_for(indices, "int64"):
            return self.kernels.take(vector, indices)
        return vector[indices]

    def scatter(self, size: int, parts: Sequence[tuple[Array, Array]], factor: float) -> Array:
        if self.kernels:
            return self.kernels.scatter(size, list(parts), factor)
        total = self.zeros(size)
        for indices, values in parts:
            total[indices] += values * np.float32(factor)
        return total

    def scatter_add(self, total: Array, indices: Array, values: Array) -> Array:
        fit = self._has_kernel_for(total, "float32") and self._has_kernel_for(indices, "int64")
        if fit and self._has_kernel_for(values, "float32"):
            self.kernels.scatter_add(total, indices, values)
        else:
            total[indices] += values
        return total

    def add_repeated(self, total: Array, indices: Array, values: Array) -> Array:
        np.add.at(total, indices, values)
        return total

    def sum_rows(self, indices: Array, values: Array) -> tuple[Array, Array]:
        if (indices[1:] > indices[:-1]).all():
            return indices, values
        order = np.argsort(indices, kind="stable")
        ordered = indices[order]
        first = np.flatnonzero(np.diff(ordered, prepend=ordered[0] - 1))
        return ordered[first], np.add.reduceat(values[order], first, axis=0)

    def scatter_zero(self, total: Array, indices: Array) -> Array:
        total[indices] = 0
        return total

    def ascending_below(self, indices: Array, size: int) -> bool:
        if not indices.shape[0]:
            return True
        return bool((indices[1:] > indices[:-1]).all()) and bool(indices[0] >= 0) and bool(indices[-1] < size)

    def uniform(self, count: int, stream: Stream) -> Array:
        if self.kernels:
            return self.kernels.uniform(count, stream.words())
        return (random.bits(count, stream) >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)

    def noise(self, count: int, stream: Stream) -> Array:
        return random.noise(count, stream)

    def draw(self, vector: Array, scale: float, stream: Stream) -> Array:
        if self._has_kernel_for(vector, "float32"):
            return self.kernels.draw(vector, scale, stream.words())
        return np.flatnonzero(~(self.uniform(vector.shape[0], stream) >= np.abs(vector) * np.float32(scale)))

    def distinct(self, count: int, size: int, stream: Stream) -> Array:
        if self.kernels:
            return self.kernels.distinct(count, size, stream.words())
        return random.distinct(count, size, stream)

    def to_bytes(self, array: Array) -> Array:
        return np.ascontiguousarray(array).view(np.uint8)

    def from_bytes(self, payload: Array, dtype: str) -> Array:
        return np.require(np.ascontiguousarray(payload).view(dtype), requirements="A")

    def pack(self, numbers: Array, bits: int) -> Array:
        if self._has_kernel_for(numbers, "uint8", "int32", "int64"):
            return self.kernels.pack(numbers, bits)
        planes = [(numbers >> 8 * i & 0xFF).astype(np.uint8) for i in range(bits // 8)]
        rest = bits % 8
        if rest:
            top = numbers >> 8 * (bits // 8) & ((1 << rest) - 1)
            eights = self.blocks(top.astype(np.uint64), 8)
            words = np.bitwise_or.reduce(eights << np.arange(0, 8 * rest, rest, dtype=np.uint64), axis=1)
            planes.append(words.view(np.uint8).reshape(-1, 8)[:, :rest].reshape(-1))
        return np.concatenate(planes) if planes else np.zeros(0, np.uint8)

    def unpack(self, payload: Array, bits: int, count: int) -> Array:
        if self._has_kernel_for(payload, "uint8"):
            return self.kernels.unpack(payload, bits, count)
        numbers = np.zeros(count, np.int32)
        for i in range(bits // 8):
            numbers |= payload[i * count : (i + 1) * count].astype(np.int32) << 8 * i
        rest = bits % 8
        if rest:
            words = np.zeros((-(-count // 8), 8), np.uint8)
            words[:, :rest] = payload[bits // 8 * count :].reshape(-1, rest)
            shifted = words.view(np.uint64) >> np.arange(0, 8 * rest, rest, dtype=np.uint64)
            top = (shifted & np.uint64((1 << rest) - 1)).astype(np.int32).reshape(-1)[:count]
            numbers |= top << 8 * (bits // 8)
        return numbers

    def bitmap(self, indices: Array, size: int) -> Array:
        if self._has_kernel_for(indices, "int64"):
            return self.kernels.bitmap(indices, size)
        bits = np.zeros(size, np.uint8)
        bits[indices] = 1
        return np.packbits(bits, bitorder="little")

    def set_bits(self, payload: Array, size: int) -> Array:
        if self._has_kernel_for(payload, "uint8"):
            return self.kernels.set_bits(payload, size)
        return np.flatnonzero(np.unpackbits(payload, bitorder="little")[:size])

    def times(self, vector: Array, places: Sequence[slice], shape: tuple[int, int], right: Array) -> Array:
        if self._has_kernel_for(vector, "float32"):
            flat = np.ascontiguousarray(right).reshape(-1)
            product = self.kernels.times(vector, [p.start for p in places], shape, flat, right.shape[2])
            return product.reshape(len(places), shape[0], right.shape[2])
        return np.stack([vector[p].reshape(shape) @ q for p, q in zip(places, right, strict=True)])

    def times_transposed(self, vector: Array, places: Sequence[slice], shape: tuple[int, int], left: Array) -> Array:
        if self._has_kernel_for(vector, "float32"):
            flat = np.ascontiguousarray(left).reshape(-1)
            product = self.kernels.times_transposed(vector, [p.start for p in places], shape, flat, left.shape[2])
            return product.reshape(len(places), shape[1], left.shape[2])
        return np.stack([vector[p].reshape(shape).T @ q for p, q in zip(places, left, strict=True)])

    def add_product(self, total: Array, places: Sequence[slice], left: Array, right: Array, factor: float) -> Array:
        if self._has_kernel_for(total, "float32"):
            flat = [np.ascontiguousarray(x).reshape(-1) for x in (left, right)]
            shape = (left.shape[1], right.shape[1])
            self.kernels.add_product(total, [p.start for p in places], shape, *flat, left.shape[2], factor)
            return total
        for place, p, q in zip(places, left, right, strict=True):
            total[place] += (p @ q.T).reshape(-1) * np.float32(factor)
        return total

    def add_at(self, total: Array, place: slice, values: Array, factor: float) -> Array:
        total[place] += values * np.float32(factor)
        return total

    def orthogonalize(self, matrix: Array) -> Array:
        return np.linalg.qr(matrix)[0]


def _lengths(rows: Array) -> Array:
    return np.full(rows.shape[0], rows.shape[1], np.int64)


def _flat(rows: Array | None) -> Array | None:
    return None if rows is None else rows.reshape(-1)


def _sum(rows: Array, plus: Array | None) -> Array:
    return rows if plus is None else rows + plus
