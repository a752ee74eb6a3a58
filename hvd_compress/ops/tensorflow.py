"""The operations on TensorFlow tensors, eagerly, on any device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hvd_compress.ops import random
from hvd_compress.ops.random import Stream

Tensor = Any


class Array:
    """A TensorFlow tensor with the operators that the algorithms are written in.

    What is overwritten elsewhere is exchanged here: TensorFlow's own tensors never change.
    """

    __array_priority__ = 1000  # NumPy leaves its operators to these
    __slots__ = ("tensor",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """As of NumPy's arrays."""
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> str:
        """The dtype's name."""
        return str(self.tensor.dtype.name)

    @property
    def nbytes(self) -> int:
        """As of NumPy's arrays."""
        return math.prod(self.shape) * int(self.tensor.dtype.size)

    def tolist(self) -> list[Any]:
        """As of NumPy's arrays."""
        return np.asarray(self.tensor).tolist()

    def reshape(self, *shape: Any) -> Array:
        """As of NumPy's arrays."""
        return Array(tf.reshape(self.tensor, shape[0] if isinstance(shape[0], tuple) else shape))

    def __getitem__(self, key: Any) -> Array:
        return Array(self.tensor[key])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.asarray(self.tensor, dtype)

    def __deepcopy__(self, memo: Any) -> Array:
        return Array(self.tensor)

    def __int__(self) -> int:
        return int(self.tensor)

    def __float__(self) -> float:
        return float(self.tensor)

    def __neg__(self) -> Array:
        return Array(-self.tensor)

    def __abs__(self) -> Array:
        return Array(abs(self.tensor))

    def __add__(self, other: Any) -> Array:
        return _apply(tf.add, self, other)

    def __sub__(self, other: Any) -> Array:
        return _apply(tf.subtract, self, other)

    def __mul__(self, other: Any) -> Array:
        return _apply(tf.multiply, self, other)

    def __truediv__(self, other: Any) -> Array:
        return _apply(tf.truediv, self, other)

    def __floordiv__(self, other: Any) -> Array:
        return _apply(tf.math.floordiv, self, other)

    def __lshift__(self, other: Any) -> Array:
        return _apply(tf.bitwise.left_shift, self, other)

    def __rshift__(self, other: Any) -> Array:
        return _apply(tf.bitwise.right_shift, self, other)

    def __xor__(self, other: Any) -> Array:
        return _apply(tf.bitwise.bitwise_xor, self, other)

    def __lt__(self, other: Any) -> Array:
        return _apply(tf.less, self, other)

    def __le__(self, other: Any) -> Array:
        return _apply(tf.less_equal, self, other)

    def __gt__(self, other: Any) -> Array:
        return _apply(tf.greater, self, other)

    def __ge__(self, other: Any) -> Array:
        return _apply(tf.greater_equal, self, other)

    def __eq__(self, other: Any) -> Array:  # type: ignore[override]
        return _apply(tf.equal, self, other)

    def __ne__(self, other: Any) -> Array:  # type: ignore[override]
        return _apply(tf.not_equal, self, other)

    def __and__(self, other: Any) -> Array:
        return _apply(tf.logical_and if self.dtype == "bool" else tf.bitwise.bitwise_and, self, other)

    def __or__(self, other: Any) -> Array:
        return _apply(tf.logical_or if self.dtype == "bool" else tf.bitwise.bitwise_or, self, other)

    def __radd__(self, other: Any) -> Array:
        return _apply(tf.add, other, self)

    def __rsub__(self, other: Any) -> Array:
        return _apply(tf.subtract, other, self)

    def __rmul__(self, other: Any) -> Array:
        return _apply(tf.multiply, other, self)

    def __rtruediv__(self, other: Any) -> Array:
        return _apply(tf.truediv, other, self)


def _apply(function: Callable[[Any, Any], Tensor], x: Any, y: Any) -> Array:
    """Apply a function to two arrays, in the wider one's dtype, or to an array and a number, in the array's."""
    if isinstance(x, Array) and isinstance(y, Array):
        dtype = np.promote_types(x.dtype, y.dtype)
        return Array(function(tf.cast(x.tensor, dtype), tf.cast(y.tensor, dtype)))
    if isinstance(x, Array):
        return Array(function(x.tensor, tf.convert_to_tensor(y, x.tensor.dtype)))
    return Array(function(tf.convert_to_tensor(x, y.tensor.dtype), y.tensor))


class TensorFlowOps:
    """See `hvd_compress.ops.Ops`; arrays are `Array` objects, and what it makes lies on `device`.

    This is for devices that NumPy's arrays do not reach. On the CPU tensors are NumPy's arrays as well, in the same
    memory, and its operations and their kernels are the faster ones.
    """

    name = "tensorflow"
    kernels: Any = None

    def __init__(self, device: str = "CPU:0") -> None:
        self.device = device

    def from_numpy(self, array: np.ndarray[Any, Any]) -> Array:
        with tf.device(self.device):
            return Array(tf.constant(array))

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        return np.asarray(array)

    def zeros(self, size: int) -> Array:
        with tf.device(self.device):
            return Array(tf.zeros(size))

    def arange(self, count: int) -> Array:
        with tf.device(self.device):
            return Array(tf.range(count, dtype=tf.int64))

    def ones_like(self, array: Array) -> Array:
        return Array(tf.ones_like(array.tensor))

    def zeros_like(self, array: Array) -> Array:
        return Array(tf.zeros_like(array.tensor))

    def copy(self, array: Array) -> Array:
        return Array(array.tensor)

    def cast(self, array: Array, dtype: str) -> Array:
        return Array(tf.cast(array.tensor, dtype))

    def concat(self, arrays: Sequence[Array]) -> Array:
        return Array(tf.concat([array.tensor for array in arrays], 0)) if arrays else self.zeros(0)

    def stack(self, matrices: Sequence[Array]) -> Array:
        return Array(tf.stack([matrix.tensor for matrix in matrices]))

    def flatten(self, array: Array) -> Array:
        return array.reshape(-1)

    def transpose(self, matrix: Array) -> Array:
        return Array(tf.linalg.matrix_transpose(matrix.tensor))

    def bits_of(self, array: Array) -> Array:
        return Array(tf.bitcast(array.tensor, tf.int32))

    def float_of(self, array: Array) -> Array:
        return Array(tf.bitcast(array.tensor, tf.float32))

    def where(self, condition: Array, yes: Array, no: Array) -> Array:
        return Array(tf.where(condition.tensor, yes.tensor, no.tensor))

    def clip(self, array: Array, low: float, high: float) -> Array:
        return Array(tf.where(array.tensor == array.tensor, tf.clip_by_value(array.tensor, low, high), array.tensor))

    def add(self, total: Array, vector: Array, factor: float = 1.0) -> Array:
        added = self.cast(vector, total.dtype)
        total.tensor = (total + (added if factor == 1 else added * factor)).tensor
        return total

    def affine(self, x: Array, a: float, y: Array, b: float, out: Array | None = None) -> Array:
        result = Array(x.tensor * a + y.tensor * b)
        if out is None:
            return result
        out.tensor = result.tensor
        return out

    def half_rest(self, vector: Array, residual: Array | None) -> tuple[Array, Array]:
        if residual is not None:
            vector = self.add(vector, residual)
        half = self.cast(vector, "float16")
        return half, self.add(vector, half, -1.0)

    def median(self, vectors: Sequence[Array]) -> Array:
        stacked = self.stack(vectors).tensor
        middle = tf.sort(stacked, axis=0)[len(vectors) // 2]
        return Array(tf.where(tf.reduce_any(tf.math.is_nan(stacked), 0), tf.constant(math.nan), middle))

    def sort(self, vector: Array) -> Array:
        return Array(tf.sort(vector.tensor))

    def searchsorted(self, vector: Array, values: Array) -> Array:
        return Array(tf.searchsorted(vector.tensor, values.tensor, side="right", out_type=tf.int64))

    def sign(self, array: Array) -> Array:
        return Array(tf.where(array.tensor == array.tensor, tf.sign(array.tensor), array.tensor))

    def floor(self, array: Array) -> Array:
        return Array(tf.floor(array.tensor))

    def largest(self, array: Array) -> float:
        return float(tf.reduce_max(array.tensor))

    def norm(self, vector: Array) -> float:
        return float(tf.norm(tf.cast(vector.tensor, tf.float64)))

    def all_finite(self, vector: Array) -> bool:
        return bool(tf.reduce_all(tf.math.is_finite(vector.tensor)))

    def poison(self, vector: Array) -> Array:
        return vector if self.all_finite(vector) else self.zeros_like(vector) + math.nan

    def blocks(self, vector: Array, block: int) -> Array:
        missing = -vector.shape[0] % block
        padded = Array(tf.pad(vector.tensor, [[0, missing]])) if missing else vector
        return padded.reshape(-1, block)

    def column(self, vector: Array) -> Array:
        return vector.reshape(-1, 1)

    def row_max_abs(self, rows: Array, plus: Array | None = None) -> Array:
        magnitude = abs(_sum(rows, plus)).tensor
        bad = tf.reduce_any(tf.math.is_nan(magnitude), 1)
        return Array(tf.where(bad, tf.constant(math.nan), tf.reduce_max(magnitude, 1)))

    def row_norm(self, rows: Array) -> Array:
        return Array(tf.cast(tf.norm(tf.cast(rows.tensor, tf.float64), axis=1), tf.float32))

    def row_max_norm(self, rows: Array, plus: Array | None = None) -> tuple[Array, Array]:
        return self.row_max_abs(rows, plus), self.row_norm(_sum(rows, plus))

    def row_sides(self, rows: Array, plus: Array | None = None) -> tuple[Array, Array, Array]:
        rows = _sum(rows, plus)
        positive, wide = rows.tensor >= 0, tf.cast(rows.tensor, tf.float64)
        none = tf.zeros_like(wide)
        up, down = tf.where(positive, wide, none), tf.where(positive, none, wide)
        up, down, count = (tf.reduce_sum(part, 1) for part in (up, down, tf.cast(positive, tf.float64)))
        return Array(up), Array(down), Array(count)

    def top_k(self, vector: Array, count: int) -> Array:
        if count >= vector.shape[0]:
            return self.arange(vector.shape[0])
        magnitude = self.bits_of(vector) & 0x7FFFFFFF
        least = tf.reduce_min(tf.math.top_k(magnitude.tensor, count, sorted=False).values)
        above, equal = magnitude.tensor > least, magnitude.tensor == least
        # Of those equal to the least, the first ones fill up to `count`.
        missing = count - tf.math.count_nonzero(above, dtype=tf.int32)
        equal &= tf.cumsum(tf.cast(equal, tf.int32)) <= missing
        return _true(above | equal)

    def above(self, vector: Array, threshold: float) -> Array:
        return _true(~(abs(vector.tensor) < threshold))

    def sum_abs_below(self, vector: Array, bound: float) -> tuple[float, int]:
        magnitude = abs(vector.tensor)
        below = magnitude < bound
        total = tf.reduce_sum(tf.cast(tf.boolean_mask(magnitude, below), tf.float64))
        return float(total), vector.shape[0] - int(tf.math.count_nonzero(below))

    def take(self, vector: Array, indices: Array) -> Array:
        return Array(tf.gather(vector.tensor, indices.tensor))

    def scatter(self, size: int, parts: Sequence[tuple[Array, Array]], factor: float) -> Array:
        total = self.zeros(size)
        for indices, values in parts:
            total = self.scatter_add(total, indices, values * factor)
        return total

    def scatter_add(self, total: Array, indices: Array, values: Array) -> Array:
        total.tensor = tf.tensor_scatter_nd_add(total.tensor, indices.tensor[:, None], values.tensor)
        return total

    def add_repeated(self, total: Array, indices: Array, values: Array) -> Array:
        return self.scatter_add(total, indices, values)

    def sum_rows(self, indices: Array, values: Array) -> tuple[Array, Array]:
        distinct = tf.unique(tf.sort(indices.tensor)).y
        places = tf.searchsorted(distinct, indices.tensor)
        return Array(distinct), Array(tf.math.unsorted_segment_sum(values.tensor, places, tf.size(distinct)))

    def scatter_zero(self, total: Array, indices: Array) -> Array:
        zeros = tf.zeros_like(indices.tensor, total.tensor.dtype)
        total.tensor = tf.tensor_scatter_nd_update(total.tensor, indices.tensor[:, None], zeros)
        return total

    def ascending_below(self, indices: Array, size: int) -> bool:
        if not indices.shape[0]:
            return True
        ascending = bool(tf.reduce_all(indices.tensor[1:] > indices.tensor[:-1]))
        return ascending and int(indices[0]) >= 0 and int(indices[-1]) < size

    def uniform(self, count: int, stream: Stream) -> Array:
        return self.cast(self._words(count, stream) >> 8 & 0xFFFFFF, "float32") * 2**-24

    def _words(self, count: int, stream: Stream) -> Array:
        first, second = (_signed(word) for word in stream.words())
        return _mix(_mix(self.cast(self.arange(count), "int32") + first) ^ second)

    def noise(self, count: int, stream: Stream) -> Array:
        words = self._words(-(-count // 32) * 16, stream).reshape(-1, 1, 16)
        halves = tf.concat([(words & 0xFFFF).tensor, (words >> 16 & 0xFFFF).tensor], 1)
        return Array(tf.reshape(halves, [-1])[:count])

    def draw(self, vector: Array, scale: float, stream: Stream) -> Array:
        return _true(~(self.uniform(vector.shape[0], stream) >= abs(vector) * scale).tensor)

    def distinct(self, count: int, size: int, stream: Stream) -> Array:
        return self.from_numpy(random.distinct(count, size, stream))

    def to_bytes(self, array: Array) -> Array:
        return array if array.dtype == "uint8" else Array(tf.reshape(tf.bitcast(array.tensor, tf.uint8), [-1]))

    def from_bytes(self, payload: Array, dtype: str) -> Array:
        size = tf.as_dtype(dtype).size
        return payload if size == 1 else Array(tf.bitcast(tf.reshape(payload.tensor, [-1, size]), dtype))

    def pack(self, numbers: Array, bits: int) -> Array:
        planes = [self.cast(numbers >> 8 * i & 0xFF, "uint8") for i in range(bits // 8)]
        rest = bits % 8
        if rest:
            top = numbers >> 8 * (bits // 8) & ((1 << rest) - 1)
            eights = self.blocks(self.cast(top, "int64"), 8) << self._shifts(rest)
            words = tf.bitcast(tf.reduce_sum(eights.tensor, 1), tf.uint8)
            planes.append(Array(tf.reshape(words[:, :rest], [-1])))
        return self.concat(planes) if planes else self.cast(self.zeros(0), "uint8")

    def unpack(self, payload: Array, bits: int, count: int) -> Array:
        numbers = self.cast(self.zeros(count), "int32")
        for i in range(bits // 8):
            numbers = numbers | self.cast(payload[i * count : (i + 1) * count], "int32") << 8 * i
        rest = bits % 8
        if rest:
            eights = tf.reshape(payload.tensor[bits // 8 * count :], [-1, rest])
            words = tf.bitcast(tf.pad(eights, [[0, 0], [0, 8 - rest]]), tf.int64)
            top = Array(words[:, None]) >> self._shifts(rest) & ((1 << rest) - 1)
            numbers = numbers | self.cast(self.flatten(top)[:count], "int32") << 8 * (bits // 8)
        return numbers

    def _shifts(self, step: int) -> Array:
        return self.arange(8).reshape(1, 8) * step

    def bitmap(self, indices: Array, size: int) -> Array:
        ones = tf.ones_like(indices.tensor, tf.int32)
        return self.pack(self.scatter_add(self.cast(self.zeros(size), "int32"), indices, Array(ones)), 1)

    def set_bits(self, payload: Array, size: int) -> Array:
        bits = self.cast(payload, "int64").reshape(-1, 1) >> self._shifts(1) & 1
        return _true(self.flatten(bits)[:size].tensor > 0)

    def times(self, vector: Array, places: Sequence[slice], shape: tuple[int, int], right: Array) -> Array:
        return Array(_matrices(vector, places, shape) @ right.tensor)

    def times_transposed(self, vector: Array, places: Sequence[slice], shape: tuple[int, int], left: Array) -> Array:
        return Array(tf.linalg.matmul(_matrices(vector, places, shape), left.tensor, transpose_a=True))

    def add_product(self, total: Array, places: Sequence[slice], left: Array, right: Array, factor: float) -> Array:
        products = tf.linalg.matmul(left.tensor, right.tensor, transpose_b=True)
        for place, product in zip(places, tf.unstack(products), strict=True):
            total = self.add_at(total, place, Array(tf.reshape(product, [-1])), factor)
        return total

    def add_at(self, total: Array, place: slice, values: Array, factor: float) -> Array:
        parts = [total[: place.start], total[place] + values * factor, total[place.stop :]]
        total.tensor = self.concat(parts).tensor
        return total

    def orthogonalize(self, matrix: Array) -> Array:
        return Array(tf.linalg.qr(matrix.tensor).q)


def _sum(rows: Array, plus: Array | None) -> Array:
    return rows if plus is None else Array(rows.tensor + plus.tensor)


def _true(condition: Tensor) -> Array:
    return Array(tf.reshape(tf.where(condition), [-1]))


def _matrices(vector: Array, places: Sequence[slice], shape: tuple[int, int]) -> Tensor:
    return tf.stack([tf.reshape(vector.tensor[place], shape) for place in places])


def _signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word


def _mix(x: Array) -> Array:
    """Mix int32 words as `hvd_compress.ops.random.mix` does; the shifts are logical, hence the masks."""
    for shift, multiplier in zip(random.SHIFTS, (*random.MULTIPLIERS, None), strict=True):
        x = x ^ x >> shift & (1 << 32 - shift) - 1
        if multiplier is not None:
            x = x * _signed(multiplier)
    return x
