"""The operations on NumPy arrays: the reference for the other frameworks and, without kernels, for the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hvd_compress import native
from hvd_compress.native.kernels import Kernels
from hvd_compress.ops import Ops, random
from hvd_compress.ops.by_kernel import by_kernel
from hvd_compress.ops.random import Stream

Array = np.ndarray[Any, Any]


def _copy(ops: Ops, kernels: Kernels, array: Array) -> Array:
    copied = kernels.empty(array.shape[0])
    kernels.copy(copied, array)
    return copied


def _add(ops: Ops, kernels: Kernels, total: Array, vector: Array, factor: float = 1.0) -> Array:
    if factor == 1:
        kernels.add_(total, vector)
    else:
        kernels.affine(total, 1.0, vector, factor, total)
    return total


class NumpyOps(Ops):
    """The operations of `Ops`; with `kernels`, by those where there are any and they fit the arrays."""

    name = "numpy"

    def __init__(self, kernels: bool = True) -> None:
        self.kernels = native.load() if kernels else None

    def fit_kernels(self, arguments: Sequence[Any], arrays: Sequence[tuple[int, Sequence[str]]]) -> bool:
        for place, dtypes in arrays:
            array = arguments[place] if place < len(arguments) else None
            if array is None:
                continue
            flags = array.flags
            if array.ndim != 1 or array.dtype not in dtypes or not flags.c_contiguous or not flags.aligned:
                return False
        return True

    def from_numpy(self, array: Array) -> Array:
        return array

    def to_numpy(self, array: Array) -> Array:
        return array

    def zeros(self, size: int) -> Array:
        return np.zeros(size, np.float32)

    def arange(self, count: int) -> Array:
        return np.arange(count, dtype=np.int64)

    def ones_like(self, array: Array) -> Array:
        return np.ones_like(array)

    def zeros_like(self, array: Array) -> Array:
        return np.zeros_like(array)

    @by_kernel(_copy, array="float32")
    def copy(self, array: Array) -> Array:
        return array.copy()

    def cast(self, array: Array, dtype: str) -> Array:
        if self.kernels and dtype == "float16" and self.fit_kernels((array,), ((0, ("float32",)),)):
            return self.kernels.to_half(array).view(np.float16)
        if self.kernels and dtype == "float32" and self.fit_kernels((array,), ((0, ("float16",)),)):
            return self.kernels.from_half(array.view(np.uint16))
        with np.errstate(invalid="ignore", over="ignore"):
            return array.astype(dtype, copy=False)

    def concat(self, arrays: Sequence[Array]) -> Array:
        return np.concatenate(arrays) if arrays else self.zeros(0)

    def stack(self, matrices: Sequence[Array]) -> Array:
        return np.stack(matrices)

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

    @by_kernel(_add, total="float32", vector="float32")
    def add(self, total: Array, vector: Array, factor: float = 1.0) -> Array:
        total += vector if factor == 1 else vector * total.dtype.type(factor)
        return total

    def affine(self, x: Array, a: float, y: Array, b: float, out: Array | None = None) -> Array:
        return np.add(x * a, y * b, out=out)

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
        with np.errstate(over="ignore", invalid="ignore"):  # the sum may overflow where no element does
            return bool(np.isfinite(vector.sum())) or bool(np.isfinite(vector).all())

    def blocks(self, vector: Array, block: int) -> Array:
        missing = -vector.shape[0] % block
        padded = np.concatenate([vector, np.zeros(missing, vector.dtype)]) if missing else vector
        return padded.reshape(-1, block)

    def row_max_abs(self, rows: Array) -> Array:
        return np.abs(rows).max(axis=1, initial=0)

    def row_norm(self, rows: Array) -> Array:
        return np.linalg.norm(rows.astype(np.float64), axis=1).astype(np.float32)

    def row_sum(self, rows: Array) -> Array:
        return rows.sum(axis=1, dtype=np.float64 if rows.dtype.kind == "f" else np.int64)

    def top_k(self, vector: Array, count: int) -> Array:
        if count >= vector.shape[0]:
            return self.arange(vector.shape[0])
        # As integers, the bits without the sign are in the order of the magnitudes, with NaN above all.
        magnitude = vector.view(np.int32) & 0x7FFFFFFF
        least = np.partition(magnitude, vector.shape[0] - count)[vector.shape[0] - count]
        above = np.flatnonzero(magnitude > least)
        equal = np.flatnonzero(magnitude == least)[: count - above.shape[0]]
        return np.sort(np.concatenate([above, equal]))

    def above(self, vector: Array, threshold: float) -> Array:
        return np.flatnonzero(~(np.abs(vector) < np.float32(threshold)))

    def nonzero(self, condition: Array) -> Array:
        return np.flatnonzero(condition)

    def take(self, vector: Array, indices: Array) -> Array:
        return vector[indices]

    def scatter_add(self, total: Array, indices: Array, values: Array) -> Array:
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

    def uniform(self, count: int, stream: Stream) -> Array:
        return (random.bits(count, stream) >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)

    def noise(self, count: int, stream: Stream) -> Array:
        return random.noise(count, stream)

    def to_bytes(self, array: Array) -> Array:
        return np.ascontiguousarray(array).view(np.uint8)

    def from_bytes(self, payload: Array, dtype: str) -> Array:
        return np.require(np.ascontiguousarray(payload).view(dtype), requirements="A")

    def bitmap(self, indices: Array, size: int) -> Array:
        bits = np.zeros(size, np.uint8)
        bits[indices] = 1
        return np.packbits(bits, bitorder="little")

    def set_bits(self, payload: Array, size: int) -> Array:
        return np.flatnonzero(np.unpackbits(payload, bitorder="little")[:size])

    def add_at(self, total: Array, place: slice, values: Array, factor: float) -> Array:
        total[place] += values * np.float32(factor)
        return total

    def orthogonalize(self, matrix: Array) -> Array:
        return np.linalg.qr(matrix)[0]
