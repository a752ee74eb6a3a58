"""Groups of a vector, of which quantizers take scales: blocks of one size, or the lengths of all groups."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

from hvd_compress.native.kernels import Groups, Kernels
from hvd_compress.ops import Array, Ops
from hvd_compress.ops.by_kernel import by_kernel


def rows_of(ops: Ops, vector: Array, groups: Groups) -> list[Array]:
    """Return the groups as rows of matrices; the last block is filled up with zeros."""
    if isinstance(groups, int):
        return [ops.blocks(vector, groups)]
    return [vector[end - size : end].reshape(1, size) for end, size in zip(accumulate(groups), groups, strict=True)]


def _each(ops: Ops, reduce: Callable[[Array], Array], vector: Array, groups: Groups, plus: Array | None) -> Array:
    """Return what rows are reduced to, for the groups of vector + plus."""
    whole = vector if plus is None else vector + plus
    return ops.concat([reduce(rows) for rows in rows_of(ops, whole, groups)])


@by_kernel(vector="float32", plus="float32")
def group_max_abs(ops: Ops, vector: Array, groups: Groups, plus: Array | None) -> Array:
    """Return the largest magnitude of each group of vector + plus, float32 of shape (n,); NaN where it has one."""
    return _each(ops, ops.row_max_abs, vector, groups, plus)


def _max_norm(ops: Ops, kernels: Kernels, vector: Array, groups: Groups, plus: Array | None) -> tuple[Array, Array]:
    largest, squares = kernels.group_max_square(vector, groups, plus)
    return largest, ops.cast(squares**0.5, "float32")


@by_kernel(_max_norm, vector="float32", plus="float32")
def group_max_norm(ops: Ops, vector: Array, groups: Groups, plus: Array | None) -> tuple[Array, Array]:
    """Return the largest magnitude and the Euclidean norm of each group of vector + plus, float32 of shape (n,)."""
    return group_max_abs(ops, vector, groups, plus), _each(ops, ops.row_norm, vector, groups, plus)


def _sides(ops: Ops, kernels: Kernels, vector: Array, groups: Groups, plus: Array | None) -> Array:
    return kernels.group_sides(vector, groups, plus).reshape(-1, 3)


@by_kernel(_sides, vector="float32", plus="float32")
def group_sides(ops: Ops, vector: Array, groups: Groups, plus: Array | None) -> Array:
    """Return of each group of vector + plus three numbers, float64 of shape (n, 3).

    They are the sum of what is at least zero, that of all else, and how many are at least zero.
    """

    def sides(rows: Array) -> Array:
        positive, wide = rows >= 0, ops.cast(rows, "float64")
        none = ops.zeros_like(wide)
        sums = ops.where(positive, wide, none), ops.where(positive, none, wide), ops.cast(positive, "float64")
        return ops.flatten(ops.transpose(ops.stack([ops.row_sum(each) for each in sums])))

    return _each(ops, sides, vector, groups, plus).reshape(-1, 3)
