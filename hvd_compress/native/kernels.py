"""The compiled kernels: what there is, on the arrays of NumPy and, wrapped, of other frameworks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

Array = Any
# One-dimensional arrays:
Floats = Any  # of float32
Doubles = Any  # of float64
Halves = Any  # of uint16, the bits of float16
Integers = Any  # of int32
Indices = Any  # of int64
Bytes = Any  # of uint8

Words = tuple[int, int]  # `hvd_compress.ops.random.Stream.words()`
Shape = tuple[int, int]
Hashing = tuple[Indices, Bytes, Array]  # shifts, flips and signs (uint32); see "count sketches" below
Groups = int | list[int]
"""How a vector is divided: the size of blocks, of which the last may be shorter, or the lengths of all groups."""

Code = tuple[str, int, float, int, int, int]
"""Kind, bits, and for "levels" numerator and least and largest level; then the number of scales of a group.

Kinds are "levels" (1 to 12 bits), "natural" (9), "dynamic" (8), "bfloat" (16) and "sign" (1).
"""


class Kernels(Protocol):
    """The kernels, each with the bits of its counterpart in `hvd_compress.ops.numpy` or in the algorithm that calls it.

    Arrays are contiguous and aligned, of exactly the dtype that is named; TypeError or ValueError otherwise. Results do
    not depend on the number of threads or the level of SIMD. Nothing changes its arguments but what is named `total`,
    `to`, `out` or `table`, and the `vector` of what leaves a rest.

    A GPU's (`hvd_compress.native.gpu.kernels`) lack some of these, which leaves the operation to the Python body, and
    have others, of the names of more operations.
    """

    # --- settings of the process

    def simd_levels(self) -> list[str]:
        """Return the levels of SIMD that this processor has, of "portable", "avx2", "avx512"; the best one is last."""

    def simd(self) -> str:
        """Return the level in use: at first HVD_COMPRESS_SIMD, or else the best one."""

    def set_simd(self, level: str, /) -> None:
        """Use another level; ValueError if the processor does not have it."""

    def threads(self) -> int:
        """Return the most threads that a kernel uses: at first OMP_NUM_THREADS, or else one a core, up to 16."""

    def set_threads(self, count: int, /) -> None:
        """Use at most `count` threads, from whichever thread the kernels are called."""

    def float_environment(self, to: bytes | None, /) -> bytes:
        """Set how the calling thread's floats behave, None for the default; return how they did before.

        ValueError if `to` is nothing that was returned before.
        """

    # --- making and copying

    def empty(self, size: int, /) -> Floats:
        """Return an array of any content. A large array's memory, freed, is kept for the next of its size."""

    def zeros(self, size: int, /) -> Floats:
        """Return zeros, in memory as of `empty`."""

    def copy(self, to: Floats, source: Floats, /) -> None:
        """Copy an array to one of the same length."""

    def add_(self, total: Floats, vector: Floats, /) -> None:
        """Add a vector to a total of the same length, in place."""

    def affine(self, x: Floats, a: float, y: Floats, b: float, out: Floats | None, /) -> Floats:
        """Return a * x + b * y, in `out` if it is given; that may be x or y."""

    def accumulate(self, u: Floats, momentum: float, vector: Floats, v: Floats, nesterov: bool, /) -> Floats:
        """Return v + u', by Nesterov v + momentum * u' + vector; the vector becomes u' = momentum * u + vector."""

    def half_rest(self, vector: Floats, residual: Floats | None, /) -> Halves:
        """Return the bits of vector + residual as float16, to the nearest; the vector becomes the rest."""

    def to_half(self, vector: Floats, /) -> Halves:
        """Return the bits of a vector as float16, to the nearest."""

    def from_half(self, halves: Halves, /) -> Floats:
        """Return the numbers of which the bits are given, of float16."""

    def all_finite(self, vector: Floats, /) -> bool:
        """Tell whether no element is NaN or infinite."""

    # --- groups of the vector (or of vector + plus)

    def group_max_abs(self, vector: Floats, groups: Groups, plus: Floats | None, /) -> Floats:
        """Return each group's largest magnitude: 0 if it is empty, NaN if it has one."""

    def group_max_square(self, vector: Floats, groups: Groups, plus: Floats | None, /) -> tuple[Floats, Doubles]:
        """Return each group's largest magnitude, as `group_max_abs` does, and its sum of squares, in this order.

        A group is cut into pieces of 4096 elements. In a piece, element i is added to lane i % 16 of 16; the lanes are
        added 8 and 8, 4 and 4, 2 and 2, 1 and 1; the pieces one after the other.
        """

    def group_sides(self, vector: Floats, groups: Groups, plus: Floats | None, /) -> Doubles:
        """Return three numbers a group: the sum of what is at least zero, that of all else, and the first's number."""

    # --- quantizers (see `hvd_compress.compressors.quantize`)

    def quantize(
        self,
        vector: Floats,
        residual: Floats | None,
        rest: bool,
        code: Code,
        groups: Groups,
        scales: Literal["max", "l2"] | Floats | None,
        stream: Words,
        /,
    ) -> Bytes:
        """Return the payload of vector + residual: the scales and the packed codes.

        Args:
            vector: float32 of shape (d,); with `rest` it becomes what the payload does not carry.
            residual: of the same shape, or None.
            rest: whether to overwrite the vector.
            code: of a coordinate.
            groups: the size of blocks, or the lengths of all groups.
            scales: of blocks what to compute, else the scales themselves, or None for codes without any.
            stream: the words of the random numbers.
        """

    def signs(self, vector: Floats, lengths: list[int], header: int, /) -> tuple[Bytes, Doubles]:
        """Return `header` bytes of any content and the packed signs, and of each group what `group_sides` does."""

    def dequantize(
        self,
        payloads: list[Bytes],
        code: Code,
        groups: Groups,
        size: int,
        factor: float,
        vote: bool,
        total: Floats | None,
        /,
    ) -> Floats:
        """Return the sum of `factor` times the vectors in payloads; with `vote` its sign; added to `total` if given."""

    # --- selection

    def top_k(self, vector: Floats, count: int, /) -> Indices:
        """Return the indices of the `count` largest magnitudes, ascending; of equal ones the first, NaN above all."""

    def top_k_each(self, vector: Floats, places: Sequence[slice], counts: Sequence[int], /) -> Indices:
        """Return `top_k` of each place, a slice of step 1, behind each other, as indices in the vector."""

    def above(self, vector: Floats, threshold: float, /) -> Indices:
        """Return the indices of the magnitudes that are not below `threshold`, ascending; NaN never is."""

    def draw(self, vector: Floats, scale: float, stream: Words, /) -> Indices:
        """Return each index with probability min(1, scale * magnitude), ascending; NaN for certain."""

    def sum_abs_below(self, vector: Floats, bound: float, /) -> tuple[float, int]:
        """Return the sum, in float64, of the magnitudes below a bound, and the number of the others."""

    def take(self, vector: Floats, indices: Indices, /) -> Floats:
        """Return the elements at the indices; ValueError if one is out of range."""

    def scatter(self, size: int, parts: list[tuple[Indices, Floats]], factor: float, /) -> Floats:
        """Return zeros plus `factor` times the values at the indices, for pairs of ascending indices and values.

        ValueError if indices do not ascend, or are out of range.
        """

    def scatter_add(self, total: Floats, indices: Indices, values: Floats, /) -> None:
        """Add values at ascending distinct indices; ValueError, and nothing added, if they are not."""

    def take_out(self, vector: Floats, indices: Indices, /) -> Floats:
        """Return the elements at ascending distinct indices, and set them to zero; ValueError if they are not."""

    def scatter_zero(self, total: Floats, indices: Indices, /) -> None:
        """Set the elements at ascending distinct indices to zero; ValueError, and nothing set, if they are not."""

    # --- products of low rank: matrices of one shape at offsets of a vector, and factors of `rank` columns for each

    def times(
        self,
        vector: Floats,
        offsets: list[int],
        shape: Shape,
        right: Floats,
        rank: int,
        plus: Floats | None = None,
        /,
    ) -> Floats:
        """Return M Q for each matrix, all rows one behind the other; `right` has the factors Q in the same way.

        With `plus`, a vector of the same length, M becomes M + plus before, in the vector.
        """

    def times_transposed(
        self, vector: Floats, offsets: list[int], shape: Shape, left: Floats, rank: int, rest: bool = False, /
    ) -> Floats:
        """Return Q = M^T P for each matrix; with `rest`, M becomes M - P Q^T in the vector."""

    def add_product(
        self,
        total: Floats,
        offsets: list[int],
        shape: Shape,
        left: Floats,
        right: Floats,
        rank: int,
        factor: float,
        fresh: bool = False,
        /,
    ) -> None:
        """Add factor * P Q^T to each matrix in `total`; or write it, where the memory is `fresh`, of any content."""

    # --- count sketches (see `hvd_compress.compressors.sketches`). A table has `rows` times as many sums as
    # columns; a hashing is shifts, below the columns, and flips, 0 or 1, of each row and in it each block, and a bit of
    # sign for each column

    def sketch(self, table: Floats, size: int, rows: int, hashing: Hashing, vector: Floats, offset: int, /) -> None:
        """Add to the table a part of a vector of `size` coordinates that begins at an offset."""

    def sketch_sparse(
        self, table: Floats, size: int, rows: int, hashing: Hashing, indices: Indices, values: Floats, /
    ) -> None:
        """Add a vector of values at indices; ValueError unless these ascend, are distinct and in range."""

    def estimate(self, table: Floats, size: int, rows: int, hashing: Hashing, indices: Indices | None, /) -> Floats:
        """Return the estimates at the indices (ValueError if one is out of range), or all."""

    def heavy(self, table: Floats, size: int, rows: int, hashing: Hashing, count: int, /) -> Indices:
        """Return the indices of the `count` estimates of largest magnitude, as `top_k` would of all estimates."""

    def recover(
        self,
        table: Integers,
        size: int,
        rows: int,
        shifts: Indices,
        multiples: Integers,
        owners: Indices,
        passes: int,
        /,
    ) -> tuple[Indices, int]:
        """Return what `InvertibleSketch.recover` reads, and how many sums are left.

        `multiples` are those of the blocks' codes, of equal ones the last one counts, and `owners` their blocks.
        """

    # --- random numbers

    def uniform(self, count: int, stream: Words, /) -> Floats:
        """Return numbers in [0, 1) of 24 random bits."""

    def distinct(self, count: int, size: int, stream: Words, /) -> Indices:
        """Return ascending distinct numbers below `size`, as `hvd_compress.ops.random.distinct`."""

    # --- bytes and bits

    def pack(self, numbers: Array, bits: int, /) -> Bytes:
        """Pack the low 0 to 30 bits of each number."""

    def unpack(self, payload: Bytes, bits: int, count: int, /) -> Integers:
        """Undo `pack`; ValueError if the payload is of the wrong length."""

    def bitmap(self, indices: Indices, size: int, /) -> Bytes:
        """Return `size` bits, those at the indices set; ValueError unless these ascend, are distinct and in range."""

    def set_bits(self, payload: Bytes, size: int, /) -> Indices:
        """Return the positions of the bits set among the first `size`, ascending."""

    def encode_indices(self, indices: Indices, size: int, /) -> Bytes:
        """Return the bytes of `hvd_compress.compressors.indices.encode_indices`; ValueError as in `bitmap`."""

    def decode_indices(self, payload: Bytes, size: int, count: int, /) -> Indices:
        """Undo `encode_indices`; ValueError unless the bytes hold `count` ascending distinct indices below `size`."""
