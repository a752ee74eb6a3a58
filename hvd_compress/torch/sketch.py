"""The count sketch of tensors."""

from __future__ import annotations

import torch

from hvd_compress.compressors.sketches import count_sketch
from hvd_compress.ops.torch import TorchOps


class CountSketch(count_sketch.CountSketch):
    """`hvd_compress.CountSketch` of tensors on one device; with the same numbers and seed it has the same table.

    Args:
        size: coordinates of the vector.
        rows: odd, 1 to 15.
        columns: sums in a row, 1 to `size`.
        seed: of the shifts and signs.
        device: where the vectors, and the table, lie.

    Raises:
        TypeError: if a number is not an integer.
        ValueError: if it is outside its allowed range.
    """

    def __init__(
        self, size: int, rows: int, columns: int, seed: int = 0, *, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(size, rows, columns, seed, ops=TorchOps(device))
