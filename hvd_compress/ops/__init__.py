"""The array operations that the algorithms are written in, one implementation for each framework.

Arithmetic, comparison, shifts, slices, ``abs``, ``@``, ``reshape`` and ``shape`` are the arrays' own; what the
frameworks spell differently is here. Nothing changes its arguments, except where a docstring says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from hvd_compress.ops.random import Stream

Array = Any


def packed_bytes(count: int, bits: int) -> int:
    """Return the bytes of `count` packed numbers of `bits` bits: a plane of bytes for each 8 bits, and the rest.

    The rest of 1 to 7 bits is packed eight numbers at a time into as many bytes as it has bits, lowest bits first.
    """
    return count * (bits // 8) + -(-count // 8) * (bits % 8)


class Ops(Protocol):
    """What an algorithm may ask of a framework's arrays."""

    name: str

    kernels: Any
    """The compiled kernels on this framework's arrays, or None where there are none (see `hvd_compress.native`).

    An algorithm may use a kernel that does several of the operations below in one pass, and must give the same bits
    without.
    """

    # --- making and converting

    def from_numpy(self, array: Any) -> Array:
        """Return a NumPy array as the framework's, on the device in use."""

    def to_numpy(self, array: Array) -> Any:
        """Return an array as NumPy's."""

    def zeros(self, size: int) -> Array:
        """Return float32 zeros of shape (size,)."""

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

    def affine(self, x: Array, a: float, y: Array, b: float, out: Array | None = None) -> Array:
        """Return a * x + b * y for vectors of float32, in `out` if it is given; that may be x or y."""

    def half_rest(self, vector: Array, residual: Array | None) -> tuple[Array, Array]:
        """Return vector + residual as float16, and what that does not carry, for which `vector` is overwritten."""

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
        """Return the largest element as a Python number."""

    def norm(self, vector: Array) -> float:
        """Return the Euclidean norm as a Python float, computed in float64."""

    def all_finite(self, vector: Array) -> bool:
        """Tell whether no element is NaN or infinite."""

    def poison(self, vector: Array) -> Array:
        """Return the vector itself if it is finite, else one of NaN."""

    # --- blocks of a vector

    def blocks(self, vector: Array, block: int) -> Array:
        """Return the vector as rows of `block` elements, the last one filled up with zeros."""

    def column(self, vector: Array) -> Array:
        """Return shape (n, 1), to multiply rows with."""

    def row_max_abs(self, rows: Array, plus: Array | None = None) -> Array:
        """Return the largest magnitude of each row (of rows + plus, if given); NaN where a row has one."""

    def row_norm(self, rows: Array) -> Array:
        """Return the Euclidean norm of each row, computed in float64."""

    def row_max_norm(self, rows: Array, plus: Array | None = None) -> tuple[Array, Array]:
        """Return what `row_max_abs` and `row_norm` do, of rows + plus, if given."""

    def row_sides(self, rows: Array, plus: Array | None = None) -> tuple[Array, Array, Array]:
        """Return each row's sum of what is at least zero, sum of all else, and number of the former, in float64.

        They are those of rows + plus, if given.
        """

    # --- selection

    def top_k(self, vector: Array, count: int) -> Array:
        """Return the indices of the `count` largest magnitudes, int64 ascending.

        Among equal magnitudes the lower index is taken; NaN counts as larger than any number.
        """

    def above(self, vector: Array, threshold: float) -> Array:
        """Return the indices of magnitudes that are not below a threshold (NaN never is), int64 ascending."""

    def sum_abs_below(self, vector: Array, bound: float) -> tuple[float, int]:
        """Return the sum, in float64, of the magnitudes below a bound, and the number of the others."""

    def take(self, vector: Array, indices: Array) -> Array:
        """Return the elements at the indices."""

    def scatter(self, size: int, parts: Sequence[tuple[Array, Array]], factor: float) -> Array:
        """Return zeros of shape (size,) plus `factor` times the values of each pair (ascending indices, values)."""

    def scatter_add(self, total: Array, indices: Array, values: Array) -> Array:
        """Add values at ascending distinct indices; `total` may be overwritten."""

    def add_repeated(self, total: Array, indices: Array, values: Array) -> Array:
        """Add values at indices that may repeat, on the CPU in their order; `total` may be overwritten."""

    def sum_rows(self, indices: Array, values: Array) -> tuple[Array, Array]:
        """Return the distinct ones of int64 indices, ascending, and the sum of each one's rows, in their order.

        The values are of shape (count, width).
        """

    def scatter_zero(self, total: Array, indices: Array) -> Array:
        """Set the elements at distinct indices to zero; `total` may be overwritten."""

    def ascending_below(self, indices: Array, size: int) -> bool:
        """Tell whether the indices are ascending, distinct and in [0, size)."""

    # --- randomness (see `hvd_compress.ops.random`)

    def uniform(self, count: int, stream: Stream) -> Array:
        """Return numbers in [0, 1), float32 with 24 random bits."""

    def noise(self, count: int, stream: Stream) -> Array:
        """Return int32 numbers of 16 random bits, for rounding."""

    def draw(self, vector: Array, scale: float, stream: Stream) -> Array:
        """Return each index with probability min(1, scale * magnitude), NaN for certain; int64 ascending."""

    def distinct(self, count: int, size: int, stream: Stream) -> Array:
        """Return `count` distinct random indices below `size`, int64 ascending."""

    # --- bytes and bits

    def to_bytes(self, array: Array) -> Array:
        """Return the little-endian bytes of a one-dimensional array."""

    def from_bytes(self, payload: Array, dtype: str) -> Array:
        """Return bytes as an array of a dtype."""

    def pack(self, numbers: Array, bits: int) -> Array:
        """Pack integers of 0 to 30 bits into `packed_bytes(len(numbers), bits)` bytes."""

    def unpack(self, payload: Array, bits: int, count: int) -> Array:
        """Undo `pack`: int32 of 0 to 30 bits."""

    def bitmap(self, indices: Array, size: int) -> Array:
        """Return `size` bits, packed, with those at ascending distinct indices set."""

    def set_bits(self, payload: Array, size: int) -> Array:
        """Return the positions of the bits set among the first `size`, int64 ascending."""

    # --- linear algebra

    # Matrices of one shape (n, m) that lie at places of a vector:

    def times(self, vector: Array, places: Sequence[slice], shape: tuple[int, int], right: Array) -> Array:
        """Return M Q for each matrix M and its Q in `right`, of shape (count, m, r): shape (count, n, r)."""

    def times_transposed(self, vector: Array, places: Sequence[slice], shape: tuple[int, int], left: Array) -> Array:
        """Return M^T P for each matrix M and its P in `left`, of shape (count, n, r): shape (count, m, r)."""

    def add_product(self, total: Array, places: Sequence[slice], left: Array, right: Array, factor: float) -> Array:
        """Add factor * P Q^T at each place; `total` may be overwritten."""

    def add_at(self, total: Array, place: slice, values: Array, factor: float) -> Array:
        """Add factor * values at a place; `total` may be overwritten."""

    def orthogonalize(self, matrix: Array) -> Array:
        """Return orthonormal bases of the columns of n matrices, of the same shape; NaN for a matrix with NaN."""
