"""All kernels for one GPU, with the names and arguments of `hvd_compress.native.kernels.Kernels`."""

from __future__ import annotations

import torch
from torch import Tensor

from hvd_compress.native.gpu import (
    codes,
    elementwise,
    groups,
    inclusion,
    lowrank,
    marks,
    numbers,
    packing,
    selection,
    sketching,
    sparse,
)
from hvd_compress.native.kernels import Words


class GpuKernels:
    """The kernels on tensors of a device, each with the bytes of the CPU's.

    None waits for the device but those whose result is of a length that depends on the values (`above`,
    `about_largest`, `draw`, `set_bits`, `recover`), and `decode_indices`, which must know whether the payload is sound.
    `inclusion_scale` returns a tensor of no axes, which `draw` takes. Indices that this worker selected itself are not
    checked.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    affine = staticmethod(elementwise.affine)
    accumulate = staticmethod(elementwise.accumulate)
    half_rest = staticmethod(elementwise.half_rest)
    to_half = staticmethod(elementwise.to_half)
    from_half = staticmethod(elementwise.from_half)
    nonfinite = staticmethod(elementwise.nonfinite)
    poison = staticmethod(elementwise.poison)
    group_max_abs = staticmethod(groups.group_max_abs)
    group_max_square = staticmethod(groups.group_max_square)
    group_sides = staticmethod(groups.group_sides)
    quantize = staticmethod(codes.quantize)
    signs = staticmethod(codes.signs)
    dequantize = staticmethod(codes.dequantize)
    top_k = staticmethod(selection.top_k)
    top_k_each = staticmethod(selection.top_k_each)
    above = staticmethod(selection.above)
    about_largest = staticmethod(selection.about_largest)
    draw = staticmethod(selection.draw)
    inclusion_scale = staticmethod(inclusion.inclusion_scale)
    set_bits = staticmethod(marks.set_bits)
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
    add_names = staticmethod(sketching.add_names)
    recover = staticmethod(sketching.recover)
    times = staticmethod(lowrank.times)
    times_transposed = staticmethod(lowrank.times_transposed)
    add_product = staticmethod(lowrank.add_product)

    def empty(self, size: int) -> Tensor:
        """Return an array of any content, float32."""
        return torch.empty(size, device=self.device)

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
