"""The operations on PyTorch tensors, on any device."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from hvd_compress import native
from hvd_compress.native.kernels import Hashing, Kernels
from hvd_compress.ops import Ops
from hvd_compress.ops.by_kernel import by_kernel
from hvd_compress.ops.numpy import NumpyOps

LARGE = 1 << 20  # bytes from which the memory of freed tensors is worth keeping


def _kernels_for(device: torch.device) -> Kernels | None:
    if device.type == "cpu":
        module = native.load()
        return cast(Kernels, OnTensors(module)) if module else None
    return native.load_for(device) if device.type == "cuda" else None


def _add(ops: Ops, kernels: Kernels, total: Tensor, vector: Tensor, factor: float = 1.0) -> Tensor:
    if factor in (1, -1):  # no product, which PyTorch may contract with the sum
        return total.add_(vector, alpha=factor)
    return kernels.affine(total, 1.0, vector, factor, total)


class TorchOps(Ops):
    """The operations of `Ops`; what they make lies on `device`.

    By kernels where these fit: with `kernels` the CPU's, or a CUDA device's, or those that are given.
    """

    name = "torch"

    def __init__(self, device: torch.device | str = "cpu", kernels: bool | Kernels = True) -> None:
        self.device = torch.device(device)
        chosen = _kernels_for(self.device) if isinstance(kernels, bool) else kernels
        self.kernels: Kernels | None = chosen if kernels else None
        self._shares_memory = isinstance(self.kernels, OnTensors)  # with NumPy and the CPU's kernels
        self._by_device = self.kernels is not None and not self._shares_memory  # which is not to be waited for

    def fit_kernels(self, arguments: Sequence[Any], arrays: Sequence[tuple[int, Sequence[str]]]) -> bool:
        for place, dtypes in arrays:
            array = arguments[place] if place < len(arguments) else None
            if array is None:
                continue
            if array.dim() != 1 or str(array.dtype)[len("torch.") :] not in dtypes or not array.is_contiguous():
                return False
            if array.device.type != self.device.type:
                return False
            if array.data_ptr() % array.itemsize:
                return False
        return True

    def new(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a tensor of any content; a large one on the CPU from memory that was used before."""
        size = math.prod(shape)
        if not self.kernels or not self._shares_memory or size * dtype.itemsize < LARGE:
            return torch.empty(tuple(shape), dtype=dtype, device=self.device)
        memory: Tensor = self.kernels.empty(-(-size * dtype.itemsize // 4))
        return memory.view(dtype)[:size].view(tuple(shape))

    def _has_numpy_for(self, array: Tensor) -> bool:
        """Tell whether NumPy can do with a tensor's memory what PyTorch would do with threads that go on spinning."""
        return self._shares_memory and array.dtype != torch.bfloat16

    def from_numpy(self, array: np.ndarray[Any, Any]) -> Tensor:
        return uploaded(array, self.device)

    def hashing(self, shifts: Any, flips: Any, signs: Any) -> Hashing:
        if not self._by_device:
            return shifts, flips, signs
        shifts, flips, signs = map(
            self.from_numpy, (shifts.astype("int32"), flips.astype("int32"), signs.view("int32"))
        )
        return shifts, flips, signs

    def to_numpy(self, array: Tensor) -> np.ndarray[Any, Any]:
        return array.cpu().numpy()

    def zeros(self, size: int) -> Tensor:
        return torch.zeros(size, device=self.device)

    def doubles(self, values: Sequence[float]) -> Tensor:
        return _doubles(tuple(values), self.device)

    def number(self, value: float) -> Tensor:
        return torch.full((1,), value)  # on the host

    def arange(self, count: int) -> Tensor:
        return torch.arange(count, device=self.device)

    def ones_like(self, array: Tensor) -> Tensor:
        return torch.ones_like(array)

    def zeros_like(self, array: Tensor) -> Tensor:
        return self.new(array.shape, array.dtype).zero_()

    def copy(self, array: Tensor) -> Tensor:
        return self.new(array.shape, array.dtype).copy_(array)

    def cast(self, array: Tensor, dtype: str) -> Tensor:
        kind = getattr(torch, dtype)
        if array.dtype == kind:
            return array
        if self.kernels is not None and self._by_device and array.dim() == 1 and array.is_contiguous():
            if (array.dtype, kind) == (torch.float16, torch.float32):
                return self.kernels.from_half(array)
            if (array.dtype, kind) == (torch.float32, torch.float16):
                return self.kernels.to_half(array)
        return self.new(array.shape, kind).copy_(array)

    def concat(self, arrays: Sequence[Tensor]) -> Tensor:
        if not arrays:
            return self.zeros(0)
        joined = self.new((sum(array.shape[0] for array in arrays),), arrays[0].dtype)
        if self._has_numpy_for(joined):
            np.concatenate(_to_arrays(list(arrays)), out=joined.numpy())
            return joined
        return torch.cat(list(arrays), out=joined)

    def stack(self, matrices: Sequence[Tensor]) -> Tensor:
        shape = (len(matrices), *matrices[0].shape)
        return torch.stack(list(matrices), out=self.new(shape, matrices[0].dtype))

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

    @by_kernel(_add, total="float32", vector="float32")
    def add(self, total: Tensor, vector: Tensor, factor: float = 1.0) -> Tensor:
        return total.add_(self.cast(vector, "float32") if vector.dtype == torch.float16 else vector, alpha=factor)

    def affine(self, x: Tensor, a: float, y: Tensor, b: float, out: Tensor | None = None) -> Tensor:
        return torch.add(x * a, y * b, out=out)

    def divided(self, array: Tensor, by: float) -> Tensor:
        # By a plain number a GPU divides as by a product with its reciprocal, which is rounded twice.
        return array / torch.full_like(array, by) if array.is_cuda else array / by

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
        # The sum may overflow where no element does.
        return bool(vector.sum().isfinite()) or bool(vector.isfinite().all())

    def blocks(self, vector: Tensor, block: int) -> Tensor:
        missing = -vector.shape[0] % block
        padded = torch.nn.functional.pad(vector, (0, missing)) if missing else vector
        return padded.reshape(-1, block)

    def row_max_abs(self, rows: Tensor) -> Tensor:
        return rows.abs().amax(dim=1)

    def row_norm(self, rows: Tensor) -> Tensor:
        return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).float()

    def row_sum(self, rows: Tensor) -> Tensor:
        return rows.sum(dim=1, dtype=torch.float64 if rows.is_floating_point() else torch.int64)

    def top_k(self, vector: Tensor, count: int) -> Tensor:
        if count >= vector.shape[0]:
            return self.arange(vector.shape[0])
        magnitude = vector.view(torch.int32) & 0x7FFFFFFF
        least = magnitude.topk(count, sorted=False).values.min()
        above = magnitude > least
        # Of those equal to the least, the first ones fill up to `count`.
        equal = magnitude == least
        equal &= equal.cumsum(0) <= count - above.sum()
        return self.nonzero(above | equal)

    def above(self, vector: Tensor, threshold: float) -> Tensor:
        return self.nonzero(~(vector.abs() < threshold))

    def nonzero(self, condition: Tensor) -> Tensor:
        return condition.nonzero().reshape(-1)

    def take(self, vector: Tensor, indices: Tensor) -> Tensor:
        if self._has_numpy_for(vector):
            return torch.from_numpy(vector.detach().numpy()[indices.numpy()])
        return vector[indices]

    def scatter_add(self, total: Tensor, indices: Tensor, values: Tensor) -> Tensor:
        return total.index_add_(0, indices, values)

    def add_repeated(self, total: Tensor, indices: Tensor, values: Tensor) -> Tensor:
        return total.index_add_(0, indices, values)

    def sum_rows(self, indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self._has_numpy_for(values):
            distinct, sums = NumpyOps().sum_rows(indices.numpy(), values.detach().numpy())
            return torch.from_numpy(distinct), torch.from_numpy(sums)
        distinct, places = indices.unique(return_inverse=True)
        return distinct, values.new_zeros(distinct.shape[0], values.shape[1]).index_add_(0, places, values)

    def scatter_zero(self, total: Tensor, indices: Tensor) -> Tensor:
        return total.index_fill_(0, indices, 0)

    def to_bytes(self, array: Tensor) -> Tensor:
        return array.contiguous().view(torch.uint8) if array.shape[0] else array.new_zeros(0, dtype=torch.uint8)

    def from_bytes(self, payload: Tensor, dtype: str) -> Tensor:
        kind = getattr(torch, dtype)
        unaligned = payload.storage_offset() % kind.itemsize or payload.data_ptr() % kind.itemsize
        if unaligned or not payload.is_contiguous():
            payload = payload.clone()
        return payload.view(kind)

    def add_at(self, total: Tensor, place: slice, values: Tensor, factor: float) -> Tensor:
        total[place].add_(values, alpha=factor)
        return total

    def add_product(self, total: Tensor, places: Sequence[slice], left: Tensor, right: Tensor, factor: float) -> Tensor:
        for place, p, q in zip(places, left, right, strict=True):
            total[place].view(p.shape[0], q.shape[0]).addmm_(p, q.T, alpha=factor)
        return total

    def orthogonalize(self, matrix: Tensor) -> Tensor:
        return torch.linalg.qr(matrix)[0]


@functools.lru_cache(maxsize=256)
def _doubles(values: tuple[float, ...], device: torch.device) -> Tensor:
    return uploaded(np.array(values, np.float64), device)


def uploaded(array: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """Return an array on a device: on the CPU the same memory, on others a copy that the host does not wait for."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class OnTensors:
    """The functions of a module or an object, on CPU tensors in place of NumPy's arrays.

    No data is copied: tensors and arrays share their memory. Tuples and lists may hold tensors; all else stays.
    """

    def __init__(self, target: Any) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self._target, name)

        @functools.wraps(function)
        def wrapped(*arguments: Any) -> Any:
            return _to_tensors(function(*map(_to_arrays, arguments)))

        setattr(self, name, wrapped)
        return wrapped


def _to_arrays(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().numpy()
    return [_to_arrays(item) for item in value] if type(value) in (tuple, list) else value


def _to_tensors(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    return [_to_tensors(item) for item in value] if type(value) in (tuple, list) else value
