"""The operations on TensorFlow tensors, eagerly, on any device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hvd_compress.ops import Ops

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

    def __invert__(self) -> Array:
        return Array(~self.tensor)

    def __add__(self, other: Any) -> Array:
        return _apply(tf.add, self, other)

    def __sub__(self, other: Any) -> Array:
        return _apply(tf.subtract, self, other)

    def __mul__(self, other: Any) -> Array:
        return _apply(tf.multiply, self, other)

    def __matmul__(self, other: Array) -> Array:
        return Array(self.tensor @ other.tensor)

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


class TensorFlowOps(Ops):
    """The operations of `Ops` on `Array` objects; what they make lies on `device`.

    This is for devices that NumPy's arrays do not reach. On the CPU tensors are NumPy's arrays as well, in the same
    memory, and its operations and their kernels are the faster ones.
    """

    name = "tensorflow"
    kernels = None

    def __init__(self, device: str = "CPU:0") -> None:
        self.device = device

    def fit_kernels(self, arguments: Sequence[Any], arrays: Sequence[tuple[int, Sequence[str]]]) -> bool:
        return False

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

    def blocks(self, vector: Array, block: int) -> Array:
        missing = -vector.shape[0] % block
        padded = Array(tf.pad(vector.tensor, [[0, missing]])) if missing else vector
        return padded.reshape(-1, block)

    def row_max_abs(self, rows: Array) -> Array:
        magnitude = abs(rows).tensor
        bad = tf.reduce_any(tf.math.is_nan(magnitude), 1)
        return Array(tf.where(bad, tf.constant(math.nan), tf.reduce_max(magnitude, 1)))

    def row_norm(self, rows: Array) -> Array:
        return Array(tf.cast(tf.norm(tf.cast(rows.tensor, tf.float64), axis=1), tf.float32))

    def row_sum(self, rows: Array) -> Array:
        return Array(tf.reduce_sum(tf.cast(rows.tensor, tf.float64 if rows.tensor.dtype.is_floating else tf.int64), 1))

    def top_k(self, vector: Array, count: int) -> Array:
        if count >= vector.shape[0]:
            return self.arange(vector.shape[0])
        magnitude = self.bits_of(vector) & 0x7FFFFFFF
        least = tf.reduce_min(tf.math.top_k(magnitude.tensor, count, sorted=False).values)
        above, equal = magnitude.tensor > least, magnitude.tensor == least
        # Of those equal to the least, the first ones fill up to `count`.
        missing = count - tf.math.count_nonzero(above, dtype=tf.int32)
        equal &= tf.cumsum(tf.cast(equal, tf.int32)) <= missing
        return self.nonzero(Array(above | equal))

    def above(self, vector: Array, threshold: float) -> Array:
        # As integers, the bits without the sign are in the order of the magnitudes, with NaN above all; TensorFlow's
        # comparison of floats takes denormals for zeros.
        bits = int(np.float32(max(threshold, 0.0)).view(np.int32))
        return self.nonzero((self.bits_of(vector) & 0x7FFFFFFF) >= bits)

    def nonzero(self, condition: Array) -> Array:
        return Array(tf.reshape(tf.where(condition.tensor), [-1]))

    def take(self, vector: Array, indices: Array) -> Array:
        return Array(tf.gather(vector.tensor, indices.tensor))

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

    def to_bytes(self, array: Array) -> Array:
        return array if array.dtype == "uint8" else Array(tf.reshape(tf.bitcast(array.tensor, tf.uint8), [-1]))

    def from_bytes(self, payload: Array, dtype: str) -> Array:
        size = tf.as_dtype(dtype).size
        return payload if size == 1 else Array(tf.bitcast(tf.reshape(payload.tensor, [-1, size]), dtype))

    def add_at(self, total: Array, place: slice, values: Array, factor: float) -> Array:
        parts = [total[: place.start], self.add(total[place], values, factor), total[place.stop :]]
        total.tensor = self.concat(parts).tensor
        return total

    def orthogonalize(self, matrix: Array) -> Array:
        return Array(tf.linalg.qr(matrix.tensor).q)
