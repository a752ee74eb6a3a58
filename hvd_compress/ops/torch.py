"""The operations on PyTorch tensors, on any device."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvd_compress import native
from hvd_compress.ops import random
from hvd_compress.ops.numpy import NumpyOps
from hvd_compress.ops.random import Stream

LARGE = 1 << 20  # bytes from which the memory of freed tensors is worth keeping


class TorchOps:
    """See `hvd_compress.ops.Ops`; what it makes lies on `device`.

    On the CPU, with `kernels` and where there are any, NumPy's operations and their kernels do the work, on the
    tensors' memory. Everywhere else PyTorch's do.
    """

    name = "torch"

    def __init__(self, device: torch.device | str = "cpu", kernels: bool = True) -> None:
        self.device = torch.device(device)
        module = native.load() if kernels and self.device.type == "cpu" else None
        self.kernels: Any = OnTensors(module) if module else None
        self._numpy: Any = OnTensors(NumpyOps()) if module else None

    def _new(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a tensor of any content; a large one on the CPU from memory that was used before."""
        size = math.prod(shape)
        if not self.kernels or size * dtype.itemsize < LARGE:
            return torch.empty(tuple(shape), dtype=dtype, device=self.device)
        memory: Tensor = self.kernels.empty(-(-size * dtype.itemsize // 4))
        return memory.view(dtype)[:size].view(tuple(shape))

    def from_numpy(self, array: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def to_numpy(self, array: Tensor) -> np.ndarray[Any, Any]:
        return array.cpu().numpy()

    def zeros(self, size: int) -> Tensor:
        return self._numpy.zeros(size) if self._numpy else torch.zeros(size, device=self.device)

    def arange(self, count: int) -> Tensor:
        return torch.arange(count, device=self.device)

    def ones_like(self, array: Tensor) -> Tensor:
        return torch.ones_like(array)

    def zeros_like(self, array: Tensor) -> Tensor:
        return self._new(array.shape, array.dtype).zero_()

    def copy(self, array: Tensor) -> Tensor:
        return self._new(array.shape, array.dtype).copy_(array)

    def cast(self, array: Tensor, dtype: str) -> Tensor:
        kind = getattr(torch, dtype)
        return array if array.dtype == kind else self._new(array.shape, kind).copy_(array)

    def concat(self, arrays: Sequence[Tensor]) -> Tensor:
        if not arrays:
            return self.zeros(0)
        size = sum(array.shape[0] for array in arrays)
        joined = self._new((size,), arrays[0].dtype)
        if self._numpy and joined.dtype != torch.bfloat16:  # NumPy starts no threads that go on spinning
            np.concatenate(_to_arrays(list(arrays)), out=joined.numpy())
            return joined
        return torch.cat(list(arrays), out=joined)

    def stack(self, matrices: Sequence[Tensor]) -> Tensor:
        shape = (len(matrices), *matrices[0].shape)
        return torch.stack(list(matrices), out=self._new(shape, matrices[0].dtype))

    def flatten(self, array: Tensor) -> Tensor:
        return array.reshape(-1)

    def transpose(self, matrix: Tensor) -> Tensor:
        return matrix.mT

    def bits_of(self, array: Tensor) -> Tensor:
        return array.view(torch.int32)

    def float_of(self, array: Tensor) -> Tensor:
        return array.view(torch.float32)

    def where(self, condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
        return torch.where(condition, yes, no)

    def clip(self, array: Tensor, low: float, high: float) -> Tensor:
        return array.clamp(low, high)

    def add(self, total: Tensor, vector: Tensor, factor: float = 1.0) -> Tensor:
        return total.add_(self.cast(vector, "float32") if vector.dtype == torch.float16 else vector, alpha=factor)

    def affine(self, x: Tensor, a: float, y: Tensor, b: float, out: Tensor | None = None) -> Tensor:
        return self._numpy.affine(x, a, y, b, out) if self._numpy else torch.add(x * a, y * b, out=out)

    def half_rest(self, vector: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        if self._numpy:
            half, _ = self._numpy.half_rest(vector, residual)
            return half, vector
        if residual is not None:
            vector += residual
        half = vector.half()
        vector -= half
        return half, vector

    def median(self, vectors: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(vectors)).median(dim=0).values

    def sort(self, vector: Tensor) -> Tensor:
        return vector.sort().values

    def searchsorted(self, vector: Tensor, values: Tensor) -> Tensor:
        return torch.searchsorted(vector, values, right=True)

    def sign(self, array: Tensor) -> Tensor:
        return torch.where(array.isnan(), array, array.sign())

    def floor(self, array: Tensor) -> Tensor:
        return array.floor()

    def largest(self, array: Tensor) -> float:
        return array.max().item()

    def norm(self, vector: Tensor) -> float:
        return float(torch.linalg.vector_norm(vector, dtype=torch.float64))

    def all_finite(self, vector: Tensor) -> bool:
        if self._numpy and vector.dtype == torch.float32:
            return self._numpy.all_finite(vector)
        # The sum may overflow where no element does.
        return bool(vector.sum().isfinite()) or bool(vector.isfinite().all())

    def poison(self, vector: Tensor) -> Tensor:
        return vector if self.all_finite(vector) else torch.full_like(vector, torch.nan)

    def blocks(self, vector: Tensor, block: int) -> Tensor:
        missing = -vector.shape[0] % block
        padded = torch.nn.functional.pad(vector, (0, missing)) if missing else vector
        return padded.reshape(-1, block)

    def column(self, vector: Tensor) -> Tensor:
        return vector[:, None]

    def row_max_abs(self, rows: Tensor, plus: Tensor | None = None) -> Tensor:
        return self._numpy.row_max_abs(rows, plus) if self._numpy else _sum(rows, plus).abs().amax(dim=1)

    def row_norm(self, rows: Tensor) -> Tensor:
        return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).float()

    def row_max_norm(self, rows: Tensor, plus: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self._numpy:
            largest, norm = self._numpy.row_max_norm(rows, plus)
            return largest, norm
        return self.row_max_abs(rows, plus), self.row_norm(_sum(rows, plus))

    def row_sides(self, rows: Tensor, plus: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        if self._numpy:
            up, down, count = self._numpy.row_sides(rows, plus)
            return up, down, count
        rows = _sum(rows, plus)
        positive, wide = rows >= 0, rows.double()
        up, down = torch.where(positive, wide, 0.0).sum(dim=1), torch.where(positive, 0.0, wide).sum(dim=1)
        return up, down, positive.sum(dim=1).double()

    def top_k(self, vector: Tensor, count: int) -> Tensor:
        if self._numpy:
            return self._numpy.top_k(vector, count)
        if count >= vector.shape[0]:
            return self.arange(vector.shape[0])
        magnitude = vector.view(torch.int32) & 0x7FFFFFFF
        least = magnitude.topk(count, sorted=False).values.min()
        above = magnitude > least
        # Of those equal to the least, the first ones fill up to `count`.
        equal = magnitude == least
        equal &= equal.cumsum(0) <= count - above.sum()
        return (above | equal).nonzero().reshape(-1)

    def above(self, vector: Tensor, threshold: float) -> Tensor:
        if self._numpy:
            return self._numpy.above(vector, threshold)
        return (~(vector.abs() < threshold)).nonzero().reshape(-1)

    def sum_abs_below(self, vector: Tensor, bound: float) -> tuple[float, int]:
        if self._numpy:
            total, others = self._numpy.sum_abs_below(vector, bound)
            return total, others
        magnitude = vector.abs()
        below = magnitude < bound
        return float(magnitude[below].sum(dtype=torch.float64)), vector.shape[0] - int(below.sum())

    def take(self, vector: Tensor, indices: Tensor) -> Tensor:
        if self._numpy and vector.dtype != torch.bfloat16:
            return self._numpy.take(vector, indices)
        return vector[indices]

    def scatter(self, size: int, parts: Sequence[tuple[Tensor, Tensor]], factor: float) -> Tensor:
        if self._numpy:
            return self._numpy.scatter(size, list(parts), factor)
        total = self.zeros(size)
        for indices, values in parts:
            total.index_add_(0, indices, values * factor)
        return total

    def scatter_add(self, total: Tensor, indices: Tensor, values: Tensor) -> Tensor:
        if self._numpy:
            self._numpy.scatter_add(total, indices, values)
            return total
        return total.index_add_(0, indices, values)

    def add_repeated(self, total: Tensor, indices: Tensor, values: Tensor) -> Tensor:
        return total.index_add_(0, indices, values)

    def sum_rows(self, indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self._numpy and values.dtype != torch.bfloat16:
            distinct, sums = self._numpy.sum_rows(indices, values)
            return distinct, sums
        distinct, places = indices.unique(return_inverse=True)
        return distinct, values.new_zeros(distinct.shape[0], values.shape[1]).index_add_(0, places, values)

    def scatter_zero(self, total: Tensor, indices: Tensor) -> Tensor:
        return total.index_fill_(0, indices, 0)

    def ascending_below(self, indices: Tensor, size: int) -> bool:
        if not indices.shape[0]:
            return True
        return bool((indices[1:] > indices[:-1]).all() & (indices[0] >= 0) & (indices[-1] < size))

    def uniform(self, count: int, stream: Stream) -> Tensor:
        if self._numpy:
            return self._numpy.uniform(count, stream)
        return (self._words(count, stream) >> 8).bitwise_and_(0xFFFFFF).float().mul_(2**-24)

    def _words(self, count: int, stream: Stream) -> Tensor:
        first, second = (_signed(word) for word in stream.words())
        x = torch.arange(count, dtype=torch.int32, device=self.device).add_(first)
        return _mix_(_mix_(x).bitwise_xor_(second))

    def noise(self, count: int, stream: Stream) -> Tensor:
        if self._numpy:
            return self._numpy.noise(count, stream)
        words = self._words(-(-count // 32) * 16, stream).reshape(-1, 1, 16)
        return torch.cat([words & 0xFFFF, words >> 16 & 0xFFFF], dim=1).reshape(-1)[:count]

    def draw(self, vector: Tensor, scale: float, stream: Stream) -> Tensor:
        if self._numpy:
            return self._numpy.draw(vector, scale, stream)
        return (~(self.uniform(vector.shape[0], stream) >= vector.abs() * scale)).nonzero().reshape(-1)

    def distinct(self, count: int, size: int, stream: Stream) -> Tensor:
        if self._numpy:
            return self._numpy.distinct(count, size, stream)
        return self.from_numpy(random.distinct(count, size, stream))

    def to_bytes(self, array: Tensor) -> Tensor:
        return array.contiguous().view(torch.uint8) if array.shape[0] else array.new_zeros(0, dtype=torch.uint8)

    def from_bytes(self, payload: Tensor, dtype: str) -> Tensor:
        kind = getattr(torch, dtype)
        unaligned = payload.storage_offset() % kind.itemsize or payload.data_ptr() % kind.itemsize
        if unaligned or not payload.is_contiguous():
            payload = payload.clone()
        return payload.view(kind)

    def pack(self, numbers: Tensor, bits: int) -> Tensor:
        if self._numpy:
            return self._numpy.pack(numbers, bits)
        planes = [(numbers >> 8 * i & 0xFF).to(torch.uint8) for i in range(bits // 8)]
        rest = bits % 8
        if rest:
            top = numbers >> 8 * (bits // 8) & ((1 << rest) - 1)
            shifts = torch.arange(0, 8 * rest, rest, device=self.device)
            words = (self.blocks(top.long(), 8) << shifts).sum(dim=1)
            planes.append(words.view(torch.uint8).reshape(-1, 8)[:, :rest].reshape(-1))
        return torch.cat(planes) if planes else torch.zeros(0, dtype=torch.uint8, device=self.device)

    def unpack(self, payload: Tensor, bits: int, count: int) -> Tensor:
        if self._numpy:
            return self._numpy.unpack(payload, bits, count)
        numbers = torch.zeros(count, dtype=torch.int32, device=self.device)
        for i in range(bits // 8):
            numbers |= payload[i * count : (i + 1) * count].int() << 8 * i
        rest = bits % 8
        if rest:
            words = torch.zeros(-(-count // 8), 8, dtype=torch.uint8, device=self.device)
            words[:, :rest] = payload[bits // 8 * count :].reshape(-1, rest)
            shifts = torch.arange(0, 8 * rest, rest, device=self.device)
            top = (words.view(torch.int64) >> shifts & ((1 << rest) - 1)).int().reshape(-1)[:count]
            numbers |= top << 8 * (bits // 8)
        return numbers

    def bitmap(self, indices: Tensor, size: int) -> Tensor:
        if self._numpy:
            return self._numpy.bitmap(indices, size)
        bits = torch.zeros(size, dtype=torch.uint8, device=self.device)
        bits[indices] = 1
        return self.pack(bits, 1)

    def set_bits(self, payload: Tensor, size: int) -> Tensor:
        if self._numpy:
            return self._numpy.set_bits(payload, size)
        shifts = torch.arange(8, dtype=torch.uint8, device=self.device)
        return (payload[:, None] >> shifts & 1).reshape(-1)[:size].nonzero().reshape(-1)

    def times(self, vector: Tensor, places: Sequence[slice], shape: tuple[int, int], right: Tensor) -> Tensor:
        if self._numpy:
            return self._numpy.times(vector, places, shape, right)
        return torch.stack([vector[p].view(shape) for p in places]) @ right

    def times_transposed(self, vector: Tensor, places: Sequence[slice], shape: tuple[int, int], left: Tensor) -> Tensor:
        if self._numpy:
            return self._numpy.times_transposed(vector, places, shape, left)
        return torch.stack([vector[p].view(shape) for p in places]).mT @ left

    def add_product(self, total: Tensor, places: Sequence[slice], left: Tensor, right: Tensor, factor: float) -> Tensor:
        if self._numpy:
            self._numpy.add_product(total, places, left, right, factor)
            return total
        for place, p, q in zip(places, left, right, strict=True):
            total[place].view(p.shape[0], q.shape[0]).addmm_(p, q.T, alpha=factor)
        return total

    def add_at(self, total: Tensor, place: slice, values: Tensor, factor: float) -> Tensor:
        total[place].add_(values, alpha=factor)
        return total

    def orthogonalize(self, matrix: Tensor) -> Tensor:
        return torch.linalg.qr(matrix)[0]


class OnTensors:
    """The functions of a module or an object, on CPU tensors in place of NumPy's arrays.

    No data is copied: tensors and arrays share their memory. Tuples and lists may hold tensors; all else stays.
    """

    def __init__(self, target: Any) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self._target, name)

        @functools.wraps(function)
        def on_tensors(*arguments: Any) -> Any:
            return _to_tensors(function(*map(_to_arrays, arguments)))

        setattr(self, name, on_tensors)
        return on_tensors


def _to_arrays(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().numpy()
    return [_to_arrays(item) for item in value] if type(value) in (tuple, list) else value


def _to_tensors(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    return [_to_tensors(item) for item in value] if type(value) in (tuple, list) else value


def _sum(rows: Tensor, plus: Tensor | None) -> Tensor:
    return rows if plus is None else rows + plus


def _signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word


def _mix_(x: Tensor) -> Tensor:
    """Mix int32 words in place, as `hvd_compress.ops.random.mix` does; the shifts are logical, hence the masks."""
    for shift, multiplier in zip(random.SHIFTS, (*random.MULTIPLIERS, None), strict=True):
        x ^= x >> shift & (1 << 32 - shift) - 1
        if multiplier is not None:
            x *= _signed(multiplier)
    return x
