"""Sparse tensors as the rows that are exchanged, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hvd_compress.reduction.rows import Rows


def as_rows(gradient: Tensor | None, parameter: Tensor, sparse_dim: int) -> Rows:
    """Return a parameter's gradient as rows, its sparse axes in one; one that is missing has none, a dense one all."""
    height, width = math.prod(parameter.shape[:sparse_dim]), math.prod(parameter.shape[sparse_dim:])
    if gradient is None:
        return Rows(torch.zeros(0, dtype=torch.int64, device=parameter.device), parameter.new_zeros(0, width), height)
    gradient = (gradient if gradient.is_sparse else gradient.to_sparse(sparse_dim)).coalesce()
    strides = torch.tensor(_strides(parameter.shape[:sparse_dim]), device=gradient.device)
    indices = (gradient.indices() * strides[:, None]).sum(dim=0)
    return Rows(indices, gradient.values().reshape(len(indices), width), height)


def as_tensor(indices: Tensor, values: Tensor, shape: Sequence[int], sparse_dim: int) -> Tensor:
    """Return rows of ascending indices as a coalesced sparse tensor of some shape.

    Args:
        indices: of shape (count,), of all sparse axes in one.
        values: of count times as many elements as lie under an index.
        shape: of the result.
        sparse_dim: the number of sparse axes.
    """
    axes = zip(_strides(shape[:sparse_dim]), shape, strict=False)
    places = torch.stack([indices // stride % size for stride, size in axes])
    values = values.reshape(len(indices), *shape[sparse_dim:])
    return torch.sparse_coo_tensor(places, values, tuple(shape), check_invariants=False, is_coalesced=True)


def _strides(shape: Sequence[int]) -> list[int]:
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
