"""Networks that several benchmarks time."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

LARGE_MLP = (1024, 2048, 2048, 1024, 10)  # 8.4 million parameters


def dense(*sizes: int) -> nn.Sequential:
    """Return dense layers of some sizes, with ReLU between them."""
    layers = [layer for i, o in pairwise(sizes) for layer in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*layers[:-1])
