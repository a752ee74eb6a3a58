"""All kernels for one GPU, with the names and arguments of `hvd_compress.native.kernels.Kernels`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hvd_compress.native.gpu import codes, elementwise, groups, numbers, packing, selection, sketching, sparse
from hvd_compress.native.kernels import Shape, Words


class GpuKernels:
    """The kernels on tensors of a device, each with the bytes of the CPU's.

    None waits for the device but those whose result is of a length that depends on the values (`above`, `draw`,
    `set_bits`, `recover`), and `decode_indices`, which must know whether the payload is sound. `inclusion_scale`
    returns a tensor of no axes, and `above` and `draw` take such numbers. Indices that this worker selected itself are
    not checked.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    affine = staticmethod(elementwise.affine)
    add_ = staticmethod(elementwise.add_)
    accumulate = staticmethod(elementwise.accumulate)
    half_rest = staticmethod(elementwise.half_rest)
    poison = staticmethod(elementwise.poison)
    group_max_abs = staticmethod(groups.group_max_abs)
    group_max_square = staticmethod(groups.group_max_square)
    group_sides = staticmethod(groups.group_sides)
    quantize = staticmethod(codes.quantize)
    signs = staticmethod(codes.signs)
    dequantize = staticmethod(codes.dequantize)
    top_k = staticmethod(selection.top_k)
    above = staticmethod(selection.above)
    above_each = staticmethod(selection.above_each)
    draw = staticmethod(selection.draw)
    inclusion_scale = staticmethod(selection.inclusion_scale)
    set_bits = staticmethod(selection.set_bits)
    take = staticmethod(sparse.take)
    take_out = staticmethod(sparse.take_out)
    scatter = staticmethod(sparse.scatter)
    scatter_add = staticmethod(sparse.scatter_add)
    scatter_zero = staticmethod(sparse.scatter_zero)
    bitmap = staticmethod(sparse.bitmap)
    encode_indices = staticmethod(sparse.encode_indices)
    decode_indices = staticmethod(sparse.decode_indices)
    pack = staticmethod(packing.pack)
    unpack = staticmethod(packing.unpack)
    sketch = staticmethod(sketching.sketch)
    sketch_sparse = staticmethod(sketching.sketch_sparse)
    estimate = staticmethod(sketching.estimate)
    heavy = staticmethod(sketching.heavy)
    recover = staticmethod(sketching.recover)

    def empty(self, size: int) -> Tensor:
        """Return an array of any content, float32."""
        return torch.empty(size, device=self.device)

    def zeros(self, size: int) -> Tensor:
        """Return zeros, float32."""
        return torch.zeros(size, device=self.device)

    def copy(self, to: Tensor, source: Tensor) -> None:
        """Copy an array to one of the same length."""
        to.copy_(source)

    def uniform(self, count: int, stream: Words) -> Tensor:
        """Return numbers in [0, 1) of 24 random bits."""
        return numbers.uniform(count, stream, self.device)

    def distinct(self, count: int, size: int, stream: Words) -> Tensor:
        """Return ascending distinct numbers below `size`."""
        return numbers.distinct(count, size, stream, self.device)

    def all_finite(self, vector: Tensor) -> bool:
        """Tell whether no element is NaN or infinite; the host waits for it."""
        return not elementwise.nonfinite(vector).item()

    # Products of low rank are cuBLAS's: a matrix is read once, at the memory's speed.

    def times(self, vector: Tensor, offsets: Sequence[int], shape: Shape, right: Tensor, rank: int) -> Tensor:
        """Return M Q for each matrix, all rows one behind the other; `right` has the factors Q in the same way."""
        factors = right.reshape(-1, shape[1], rank)
        return torch.cat([(m @ q).reshape(-1) for m, q in zip(_matrices(vector, offsets, shape), factors, strict=True)])

    def times_transposed(self, vector: Tensor, offsets: Sequence[int], shape: Shape, left: Tensor, rank: int) -> Tensor:
        """Return M^T P for each matrix."""
        factors = left.reshape(-1, shape[0], rank)
        products = zip(_matrices(vector, offsets, shape), factors, strict=True)
        # P^T M, for cuBLAS is six times slower with M transposed.
        return torch.cat([(p.T.contiguous() @ m).T.reshape(-1) for m, p in products])

    def add_product(
        self,
        total: Tensor,
        offsets: Sequence[int],
        shape: Shape,
        left: Tensor,
        right: Tensor,
        rank: int,
        factor: float,
        fresh: bool = False,
    ) -> None:
        """Add factor * P Q^T to each matrix in `total`; or write it, where the memory is `fresh`, of any content."""
        rows, columns = shape
        factors = zip(left.reshape(-1, rows, rank), right.reshape(-1, columns, rank), strict=True)
        for matrix, (p, q) in zip(_matrices(total, offsets, shape), factors, strict=True):
            torch.addmm(matrix, p, q.T, beta=0.0 if fresh else 1.0, alpha=factor, out=matrix)


def _matrices(vector: Tensor, offsets: Sequence[int], shape: Shape) -> list[Tensor]:
    size = shape[0] * shape[1]
    return [vector[offset : offset + size].view(shape) for offset in offsets]
