"""The array operations that the algorithms are written in, one implementation for each framework.

Arithmetic, comparison, shifts, slices, ``abs``, ``@``, ``reshape`` and ``shape`` are the arrays' own; what the
frameworks spell differently is here. Nothing changes its arguments, except where a docstring says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from hvd_compress.native.kernels import Hashing, Kernels
from hvd_compress.ops import random
from hvd_compress.ops.by_kernel import by_kernel, inherit
from hvd_compress.ops.random import Stream

Array = Any


def dtype_name(array: Array) -> str:
    """Return the name of an array's dtype, the same in all frameworks: "float32"."""
    return str(array.dtype).removeprefix("torch.")


def packed_bytes(count: int, bits: int) -> int:
    """Return the bytes of `count` packed numbers of `bits` bits: a plane of bytes for each 8 bits, and the rest.

    The rest of 1 to 7 bits is packed eight numbers at a time into as many bytes as it has bits, lowest bits first.
    """
    return count * (bits // 8) + -(-count // 8) * (bits % 8)


def _scatter_add(ops: Ops, kernels: Kernels, total: Array, indices: Array, values: Array) -> Array:
    kernels.scatter_add(total, indices, values)
    return total


def _take_out(ops: Ops, kernels: Kernels, vector: Array, indices: Array) -> tuple[Array, Array]:
    return kernels.take_out(vector, indices), vector


def _scatter_zero(ops: Ops, kernels: Kernels, total: Array, indices: Array) -> Array:
    kernels.scatter_zero(total, indices)
    return total


def _add_product(
    ops: Ops,
    kernels: Kernels,
    total: Array,
    places: Sequence[slice],
    left: Array,
    right: Array,
    factor: float,
    fresh: bool = False,
) -> Array:
    offsets, shape = [place.start for place in places], (left.shape[1], right.shape[1])
    kernels.add_product(total, offsets, shape, ops.flatten(left), ops.flatten(right), left.shape[2], factor, fresh)
    return total


def _filled_with_products(
    ops: Ops,
    kernels: Kernels,
    vector: Array,
    places: Sequence[Sequence[slice]],
    lefts: Sequence[Array],
    rights: Sequence[Array],
) -> Array:
    total = kernels.empty(vector.shape[0])
    for at, left, right in zip(places, lefts, rights, strict=True):
        _add_product(ops, kernels, total, at, left, right, 1.0, fresh=True)
    return total


class Ops(Protocol):
    """What an algorithm may ask of a framework's arrays.

    The classes that implement it derive from it: what is written in other operations is written here.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        inherit(cls, Ops)

    name: str

    kernels: Kernels | None
    """The compiled kernels on this framework's arrays, or None where there are none (see `hvd_compress.native`).

    An algorithm may use a kernel that does several of the operations below in one pass (`by_kernel` chooses), and must
    give the same bits without.
    """

    def fit_kernels(self, arguments: Sequence[Any], arrays: Sequence[tuple[int, Sequence[str]]]) -> bool:
        """Tell whether kernels take the arrays among some arguments: of one axis, contiguous and aligned.

        Args:
            arguments: of an operation.
            arrays: for each array its place among them, and the dtypes that fit. One that is None or missing fits.
        """

    # --- making and converting

    def from_numpy(self, array: Any) -> Array:
        """Return a NumPy array as the framework's, on the device in use."""

    def hashing(self, shifts: Any, flips: Any, signs: Any) -> Hashing:
        """Return NumPy's arrays of a count sketch's hashing as the kernels want them."""
        return shifts, flips, signs

    def to_numpy(self, array: Array) -> Any:
        """Return an array as NumPy's."""

    @by_kernel()
    def zeros(self, size: int) -> Array:
        """Return float32 zeros of shape (size,)."""

    def doubles(self, values: Sequence[float]) -> Array:
        """Return numbers as float64, in an array that may be kept, and is not to be changed."""
        return self.from_numpy(np.array(values, np.float64))

    def number(self, value: float) -> Array:
        """Return float32 of shape (1,), which the host may read without waiting for a device."""
        return self.zeros(1) + value

    def arange(self, count: int) -> Array:
        """Return 0 to count - 1, int64."""

    def ones_like(self, array: Array) -> Array:
        """Return ones of the same shape and dtype."""

    def zeros_like(self, array: Array) -> Array:
        """Return zeros of the same shape and dtype."""

    def copy(self, array: Array) -> Array:
        """Return a copy of its own."""

    def cast(self, array: Array, dtype: str) -> Array:
        """Return the array in another dtype; floats become integers by truncation, NaN some integer."""

    def concat(self, arrays: Sequence[Array]) -> Array:
        """Join one-dimensional arrays of one dtype; an empty list gives an empty float32 array."""

    def stack(self, matrices: Sequence[Array]) -> Array:
        """Return n matrices of one shape as an array of shape (n, rows, columns)."""

    def flatten(self, array: Array) -> Array:
        """Return the array in one dimension."""
        return array.reshape(-1)

    def transpose(self, matrix: Array) -> Array:
        """Swap the last two axes."""

    def bits_of(self, array: Array) -> Array:
        """Return the bits of float32 numbers as int32."""

    def float_of(self, array: Array) -> Array:
        """Return float32 numbers of which the bits are given as int32."""

    # --- elementwise and reductions

    def where(self, condition: Array, yes: Array, no: Array) -> Array:
        """Choose elementwise."""

    def clip(self, array: Array, low: float, high: float) -> Array:
        """Limit to [low, high]; NaN stays."""

    def add(self, total: Array, vector: Array, factor: float = 1.0) -> Array:
        """Return total + factor * vector, in the dtype of `total`, which may be overwritten."""

    @by_kernel(lambda ops, kernels, x, a, y, b, out=None: kernels.affine(x, a, y, b, out), x="float32", y="float32")
    def affine(self, x: Array, a: float, y: Array, b: float, out: Array | None = None) -> Array:
        """Return a * x + b * y for vectors of float32, in `out` if it is given; that may be x or y."""

    def divided(self, array: Array, by: float) -> Array:
        """Return the quotients, rounded once."""
        return array / by

    def median(self, vectors: Sequence[Array]) -> Array:
        """Return the elementwise median of an odd number of vectors."""

    def sort(self, vector: Array) -> Array:
        """Return the elements, ascending."""

    def searchsorted(self, vector: Array, values: Array) -> Array:
        """Return for each value how many elements of an ascending vector are not above it, int64."""

    def sign(self, array: Array) -> Array:
        """Return -1, 0 or 1; NaN stays."""

    def floor(self, array: Array) -> Array:
        """Round down, in the same dtype."""

    def largest(self, array: Array) -> float:
        """Return the largest element as a number."""

    def norm(self, vector: Array) -> float:
        """Return the Euclidean norm as a Python float, computed in float64."""

    @by_kernel(vector="float32")
    def all_finite(self, vector: Array) -> bool:
        """Tell whether no element is NaN or infinite."""

    @by_kernel(vector="float32")
    def nonfinite(self, vector: Array) -> Any:
        """Return what is true if an element is NaN or infinite; on a GPU nobody waits before it is asked for."""
        return not self.all_finite(vector)

    @by_kernel(vector="float32")
    def poison(self, vector: Array, overwrite: bool = False) -> tuple[Array, Any]:
        """Return the vector if it is finite, else one of NaN; and what `nonfinite` does.

        With `overwrite` the vector may be overwritten.
        """
        if self.all_finite(vector):
            return vector, False
        return self.zeros_like(vector) + math.nan, True

    # --- blocks of a vector

    def blocks(self, vector: Array, block: int) -> Array:
        """Return the vector as rows of `block` elements, the last one filled up with zeros."""

    def column(self, vector: Array) -> Array:
        """Return shape (n, 1), to multiply rows with."""
        return vector.reshape(-1, 1)

    def row_max_abs(self, rows: Array) -> Array:
        """Return the largest magnitude of each row; NaN where a row has one."""

    def row_norm(self, rows: Array) -> Array:
        """Return the Euclidean norm of each row, float32, computed in float64."""

    def row_sum(self, rows: Array) -> Array:
        """Return the sum of each row, float64, or int64 of integers."""

    # --- selection

    @by_kernel(vector="float32")
    def top_k(self, vector: Array, count: int) -> Array:
        """Return the indices of the `count` largest magnitudes, int64 ascending.

        Among equal magnitudes the lower index is taken; NaN counts as larger than any number.
        """

    @by_kernel(vector="float32")
    def top_k_each(self, vector: Array, places: Sequence[slice], counts: Sequence[int]) -> Array:
        """Return `top_k` of each place, all places behind each other, as indices in the vector."""
        found = [self.top_k(vector[place], count) for place, count in zip(places, counts, strict=True)]
        found = [own + place.start if place.start else own for own, place in zip(found, places, strict=True)]
        return self.concat(found) if len(found) > 1 else found[0]

    @by_kernel(vector="float32")
    def above(self, vector: Array, threshold: float) -> Array:
        """Return the indices of magnitudes that are not below a threshold (NaN never is), int64 ascending."""

    def nonzero(self, condition: Array) -> Array:
        """Return the indices at which a condition is true, int64 ascending."""

    @by_kernel(vector="float32", indices="int64")
    def take(self, vector: Array, indices: Array) -> Array:
        """Return the elements at the indices."""

    @by_kernel(lambda ops, kernels, size, parts, factor: kernels.scatter(size, list(parts), factor))
    def scatter(self, size: int, parts: Sequence[tuple[Array, Array]], factor: float) -> Array:
        """Return zeros of shape (size,) plus `factor` times the values of each pair (ascending indices, values)."""
        total = self.zeros(size)
        for indices, values in parts:
            total = self.scatter_add(total, indices, values * factor)
        return total

    @by_kernel(_scatter_add, total="float32", indices="int64", values="float32")
    def scatter_add(self, total: Array, indices: Array, values: Array) -> Array:
        """Add values at ascending distinct indices; `total` may be overwritten."""

    def add_repeated(self, total: Array, indices: Array, values: Array) -> Array:
        """Add values at indices that may repeat, on the CPU in their order; `total` may be overwritten."""

    def sum_rows(self, indices: Array, values: Array) -> tuple[Array, Array]:
        """Return the distinct ones of int64 indices, ascending, and the sum of each one's rows, in their order.

        The values are of shape (count, width).
        """

    @by_kernel(_take_out, vector="float32", indices="int64")
    def take_out(self, vector: Array, indices: Array) -> tuple[Array, Array]:
        """Return the elements at ascending distinct indices, and the vector, overwritten, with zeros there."""
        return self.take(vector, indices), self.scatter_zero(vector, indices)

    @by_kernel(_scatter_zero, total="float32", indices="int64")
    def scatter_zero(self, total: Array, indices: Array) -> Array:
        """Set the elements at ascending distinct indices to zero; `total` may be overwritten."""

    def ascending_below(self, indices: Array, size: int) -> bool:
        """Tell whether the indices are ascending, distinct and in [0, size)."""
        if not indices.shape[0]:
            return True
        ascending = not self.nonzero(indices[1:] <= indices[:-1]).shape[0]
        return ascending and int(indices[0]) >= 0 and int(indices[-1]) < size

    # --- randomness (see `hvd_compress.ops.random`)

    @by_kernel(lambda ops, kernels, count, stream: kernels.uniform(count, stream.words()))
    def uniform(self, count: int, stream: Stream) -> Array:
        """Return numbers in [0, 1), float32 with 24 random bits."""
        return self.cast(random.signed_words(self, count, stream) >> 8 & 0xFFFFFF, "float32") * 2**-24

    def noise(self, count: int, stream: Stream) -> Array:
        """Return int32 numbers of 16 random bits, for rounding."""
        words = random.signed_words(self, -(-count // 32) * 16, stream).reshape(-1, 1, 16)
        halves = self.cast(self.arange(2), "int32").reshape(1, 2, 1) * 16
        return self.flatten(words >> halves & 0xFFFF)[:count]

    @by_kernel(lambda ops, kernels, count, size, stream: kernels.distinct(count, size, stream.words()))
    def distinct(self, count: int, size: int, stream: Stream) -> Array:
        """Return `count` distinct random indices below `size`, int64 ascending."""
        return self.from_numpy(random.distinct(count, size, stream))

    # --- bytes and bits

    def to_bytes(self, array: Array) -> Array:
        """Return the little-endian bytes of a one-dimensional array."""

    def from_bytes(self, payload: Array, dtype: str) -> Array:
        """Return bytes as an array of a dtype."""

    @by_kernel(numbers="uint8 int32 int64")
    def pack(self, numbers: Array, bits: int) -> Array:
        """Pack integers of 0 to 30 bits into `packed_bytes(len(numbers), bits)` bytes."""
        whole, rest = divmod(bits, 8)
        planes = [self.cast(numbers >> 8 * i & 0xFF, "uint8") for i in range(whole)]
        if rest:
            top = self.cast(numbers >> 8 * whole & (1 << rest) - 1, "int64")
            words = self.row_sum(self.blocks(top, 8) << self.arange(8).reshape(1, 8) * rest)
            planes.append(self.flatten(self.to_bytes(words).reshape(-1, 8)[:, :rest]))
        return self.concat(planes) if planes else self.cast(self.zeros(0), "uint8")

    @by_kernel(payload="uint8")
    def unpack(self, payload: Array, bits: int, count: int) -> Array:
        """Undo `pack`: int32 of 0 to 30 bits."""
        whole, rest = divmod(bits, 8)
        numbers = self.cast(self.zeros(count), "int32")
        for i in range(whole):
            numbers = numbers | self.cast(payload[i * count : (i + 1) * count], "int32") << 8 * i
        if rest:
            parts = self.cast(payload[whole * count :].reshape(-1, rest), "int64")
            words = self.column(self.row_sum(parts << self.arange(rest).reshape(1, rest) * 8))
            top = self.flatten(words >> self.arange(8).reshape(1, 8) * rest & (1 << rest) - 1)[:count]
            numbers = numbers | self.cast(top, "int32") << 8 * whole
        return numbers

    @by_kernel(indices="int64")
    def bitmap(self, indices: Array, size: int) -> Array:
        """Return `size` bits, packed, with those at ascending distinct indices set."""
        ones = self.cast(self.ones_like(indices), "int32")
        return self.pack(self.scatter_add(self.cast(self.zeros(size), "int32"), indices, ones), 1)

    @by_kernel(payload="uint8")
    def set_bits(self, payload: Array, size: int) -> Array:
        """Return the positions of the bits set among the first `size`, int64 ascending."""
        shifts = self.cast(self.arange(8), "uint8").reshape(1, 8)
        return self.nonzero(self.flatten(payload.reshape(-1, 1) >> shifts & 1)[:size] > 0)

    # --- linear algebra

    def add_at(self, total: Array, place: slice, values: Array, factor: float) -> Array:
        """Add factor * values at a place; `total` may be overwritten."""

    @by_kernel(_add_product, total="float32")
    def add_product(self, total: Array, places: Sequence[slice], left: Array, right: Array, factor: float) -> Array:
        """Add factor * P Q^T at each place; `total` may be overwritten.

        P and Q are the matrices of `left`, of shape (count, n, r), and of `right`, of shape (count, m, r).
        """
        products = left @ self.transpose(right)
        for i, place in enumerate(places):
            total = self.add_at(total, place, self.flatten(products[i]), factor)
        return total

    @by_kernel(_filled_with_products, vector="float32")
    def filled_with_products(
        self, vector: Array, places: Sequence[Sequence[slice]], lefts: Sequence[Array], rights: Sequence[Array]
    ) -> Array:
        """Return an array like `vector`, which the P Q^T of all matrices fill, each at its place.

        Matrices of one shape are together; their places and factors are those of `add_product`.
        """
        total = self.zeros_like(vector)
        for at, left, right in zip(places, lefts, rights, strict=True):
            total = self.add_product(total, at, left, right, 1.0)
        return total

    def orthogonalize(self, matrix: Array) -> Array:
        """Return orthonormal bases of the columns of n matrices, of the same shape; NaN for a matrix with NaN."""
