"""The compiled kernels. Each gives the bits of its counterpart in `hvd_compress.ops.numpy`, which it is tested against.

Arrays are one-dimensional, contiguous and aligned, of exactly the dtype that is named; TypeError or ValueError
otherwise. Results do not depend on the number of threads or the level of SIMD. A `stream` is the two words of
`hvd_compress.ops.random.Stream.words()`. Nothing changes its arguments but what is named `total`, `to`, `out` or
`table`, and the `vector` of what leaves a rest.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

# --- settings of the process

def simd_levels() -> list[str]:
    """Return the levels of SIMD that this processor has, of "portable", "avx2", "avx512"; the best one is last."""

def simd() -> str:
    """Return the level in use: at first HVD_COMPRESS_SIMD, or else the best one."""

def set_simd(level: str) -> None:
    """Use another level; ValueError if the processor does not have it."""

def threads() -> int:
    """Return the most threads that a kernel uses: at first OMP_NUM_THREADS, or else one a core, up to 16."""

def set_threads(count: int) -> None:
    """Use at most `count` threads, from whichever thread the kernels are called."""

def float_environment(to: bytes | None) -> bytes:
    """Set how the calling thread's floats behave, None for the default; return how they did before.

    ValueError if `to` is nothing that was returned before.
    """

# --- making and copying

def empty(size: int) -> NDArray[np.float32]:
    """Return an array of any content. A large array's memory, freed, is kept for the next of its size."""

def zeros(size: int) -> NDArray[np.float32]:
    """Return zeros, in memory as of `empty`."""

def copy(to: NDArray[np.float32], source: NDArray[np.float32]) -> None:
    """Copy an array to one of the same length."""

def add_(total: NDArray[np.float32], vector: NDArray[np.float32]) -> None:
    """Add a vector to a total of the same length, in place."""

def affine(
    x: NDArray[np.float32], a: float, y: NDArray[np.float32], b: float, out: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """Return a * x + b * y, in `out` if it is given; that may be x or y."""

def half_rest(vector: NDArray[np.float32], residual: NDArray[np.float32] | None) -> NDArray[np.uint16]:
    """Return the bits of vector + residual as float16, to the nearest; the vector becomes what they do not carry."""

def to_half(vector: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the bits of a vector as float16, to the nearest."""

def from_half(halves: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the numbers of which the bits are given, of float16."""

def all_finite(vector: NDArray[np.float32]) -> bool:
    """Tell whether no element is NaN or infinite."""

# --- groups: consecutive runs of the vector (or of vector + plus), whose int64 lengths add up to the vector's

def group_max_abs(
    vector: NDArray[np.float32], lengths: NDArray[np.int64], plus: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """Return each group's largest magnitude: 0 if it is empty, NaN if it has one."""

def group_max_square(
    vector: NDArray[np.float32], lengths: NDArray[np.int64], plus: NDArray[np.float32] | None
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return each group's largest magnitude, as `group_max_abs` does, and its sum of squares, in this order.

    A group is cut into pieces of 4096 elements. In a piece, element i is added to lane i % 16 of 16; the lanes are
    added 8 and 8, 4 and 4, 2 and 2, 1 and 1; the pieces one after the other.
    """

def group_sides(
    vector: NDArray[np.float32], lengths: NDArray[np.int64], plus: NDArray[np.float32] | None
) -> NDArray[np.float64]:
    """Return three numbers a group: the sum of what is at least zero, of all else, and the number of the former."""

# --- quantizers (see `hvd_compress.compressors.quantize`)

Code = tuple[str, int, float, int, int, int]
"""Kind, bits, and for "levels" numerator and least and largest level; then the number of scales of a group.

Kinds are "levels" (1 to 12 bits), "natural" (9), "dynamic" (8), "bfloat" (16) and "sign" (1).
"""

def quantize(
    vector: NDArray[np.float32],
    residual: NDArray[np.float32] | None,
    rest: bool,
    code: Code,
    groups: int | list[int],
    scales: Literal["max", "l2"] | NDArray[np.float32] | None,
    stream: tuple[int, int],
) -> NDArray[np.uint8]:
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

def signs(
    vector: NDArray[np.float32], lengths: list[int], header: int
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Return `header` bytes of any content and the packed signs, and of each group what `group_sides` does."""

def dequantize(
    payloads: list[NDArray[np.uint8]],
    code: Code,
    groups: int | list[int],
    size: int,
    factor: float,
    vote: bool,
    total: NDArray[np.float32] | None,
) -> NDArray[np.float32]:
    """Return the sum of `factor` times the vectors in payloads; with `vote` its sign; added to `total` if given."""

# --- selection

def top_k(vector: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Return the indices of the `count` largest magnitudes, ascending; of equal ones the first, NaN above all."""

def above(vector: NDArray[np.float32], threshold: float) -> NDArray[np.int64]:
    """Return the indices of the magnitudes that are not below `threshold`, ascending; NaN never is."""

def draw(vector: NDArray[np.float32], scale: float, stream: tuple[int, int]) -> NDArray[np.int64]:
    """Return each index with probability min(1, scale * magnitude), ascending; NaN for certain."""

def sum_abs_below(vector: NDArray[np.float32], bound: float) -> tuple[float, int]:
    """Return the sum of the magnitudes below a bound, in float64 and pieces of 4096, and the number of the others."""

def take(vector: NDArray[np.float32], indices: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the elements at the indices; ValueError if one is out of range."""

def scatter(
    size: int, parts: list[tuple[NDArray[np.int64], NDArray[np.float32]]], factor: float
) -> NDArray[np.float32]:
    """Return zeros plus `factor` times the values at the indices, for pairs of ascending indices and values.

    ValueError if indices do not ascend, or are out of range.
    """

def scatter_add(total: NDArray[np.float32], indices: NDArray[np.int64], values: NDArray[np.float32]) -> None:
    """Add values at ascending distinct indices; ValueError, and nothing added, if they are not."""

# --- products of low rank: matrices of one shape at offsets of a vector, and factors of `rank` columns for each

def times(
    vector: NDArray[np.float32],
    offsets: list[int],
    shape: tuple[int, int],
    right: NDArray[np.float32],
    rank: int,
) -> NDArray[np.float32]:
    """Return M Q for each matrix, all rows one behind the other; `right` has the factors Q in the same way."""

def times_transposed(
    vector: NDArray[np.float32],
    offsets: list[int],
    shape: tuple[int, int],
    left: NDArray[np.float32],
    rank: int,
) -> NDArray[np.float32]:
    """Return M^T P for each matrix."""

def add_product(
    total: NDArray[np.float32],
    offsets: list[int],
    shape: tuple[int, int],
    left: NDArray[np.float32],
    right: NDArray[np.float32],
    rank: int,
    factor: float,
) -> None:
    """Add factor * P Q^T to each matrix in `total`."""

_Hashing = tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.uint32]]

# --- count sketches (see `hvd_compress.compressors.sketches.count_sketch`). A table has `rows` times as many sums as
# columns; a hashing is shifts, below the columns, and flips, 0 or 1, of each row and in it each block, and a bit of
# sign for each column

def sketch(
    table: NDArray[np.float32], size: int, rows: int, hashing: _Hashing, vector: NDArray[np.float32], offset: int
) -> None:
    """Add to the table a part of a vector of `size` coordinates that begins at an offset."""

def sketch_sparse(
    table: NDArray[np.float32],
    size: int,
    rows: int,
    hashing: _Hashing,
    indices: NDArray[np.int64],
    values: NDArray[np.float32],
) -> None:
    """Add a vector of values at indices; ValueError unless these ascend, are distinct and in range."""

def estimate(
    table: NDArray[np.float32], size: int, rows: int, hashing: _Hashing, indices: NDArray[np.int64] | None
) -> NDArray[np.float32]:
    """Return the estimates at the indices (ValueError if one is out of range), or all."""

def heavy(table: NDArray[np.float32], size: int, rows: int, hashing: _Hashing, count: int) -> NDArray[np.int64]:
    """Return the indices of the `count` estimates of largest magnitude, as `top_k` would of all estimates."""

def recover(
    table: NDArray[np.int32],
    size: int,
    rows: int,
    shifts: NDArray[np.int64],
    multiples: NDArray[np.int32],
    owners: NDArray[np.int64],
    passes: int,
) -> tuple[NDArray[np.int64], int]:
    """Return what `InvertibleSketch.recover` reads, and how many sums are left.

    `multiples` are those of the blocks' codes, of equal ones the last one counts, and `owners` their blocks.
    """

# --- random numbers

def uniform(count: int, stream: tuple[int, int]) -> NDArray[np.float32]:
    """Return numbers in [0, 1) of 24 random bits."""

def distinct(count: int, size: int, stream: tuple[int, int]) -> NDArray[np.int64]:
    """Return ascending distinct numbers below `size`, as `hvd_compress.ops.random.distinct`."""

# --- bytes and bits

def pack(numbers: NDArray[np.uint8] | NDArray[np.int32] | NDArray[np.int64], bits: int) -> NDArray[np.uint8]:
    """Pack the low 0 to 30 bits of each number."""

def unpack(payload: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.int32]:
    """Undo `pack`; ValueError if the payload is of the wrong length."""

def bitmap(indices: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
    """Return `size` bits with those at the indices set; ValueError unless these ascend, are distinct and in range."""

def set_bits(payload: NDArray[np.uint8], size: int) -> NDArray[np.int64]:
    """Return the positions of the bits set among the first `size`, ascending."""

def encode_indices(indices: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
    """Return the bytes of `hvd_compress.compressors.indices.encode_indices`; ValueError as in `bitmap`."""

def decode_indices(payload: NDArray[np.uint8], size: int, count: int) -> NDArray[np.int64]:
    """Undo `encode_indices`; ValueError if the bytes do not hold `count` ascending distinct indices below `size`."""
