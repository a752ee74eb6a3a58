"""What former compressors have not sent, carried over to the compressors that replace them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from hvd_compress.ops import Array, Ops
from hvd_compress.ops.layout import Layout, Parameter
from hvd_compress.reduction.exchange import VectorSteps
from hvd_compress.reduction.rows import LEAST, Rows

Carried = dict[str, Array | Rows]
"""Of each parameter by its name in layouts: float32 of shape (size,), or `Rows` of what was sparse."""


def left_over(exchange: VectorSteps) -> Iterator[tuple[str, Array | Rows]]:
    """Give the residual of each parameter in an exchange, if there is one."""
    kept = exchange.state.local.kept
    if "residual" in kept:
        yield from cut(exchange.layout, kept)


def cut(layout: Layout, kept: Mapping[str, Array]) -> Iterator[tuple[str, Array | Rows]]:
    """Cut a residual, flat as states keep it, by the parameters in its layout."""
    if "rows" in kept:
        [place] = layout.parameters
        indices = kept["rows"]
        width = kept["residual"].shape[0] // indices.shape[0] if indices.shape[0] else 1
        yield place.name, Rows(indices, kept["residual"].reshape(indices.shape[0], width), place.size // width)
        return
    for place in layout.parameters:
        yield place.name, kept["residual"][place.slice]


def add_carried(ops: Ops, vector: Array | Rows, layout: Layout, carried: Carried) -> Array | Rows:
    """Return the vector with what is carried for its parameters; it may be overwritten."""
    if isinstance(vector, Rows):
        [place] = layout.parameters
        if place.name in carried:
            vector = vector.with_rows(ops, _as_rows(ops, carried[place.name], vector.height, place))
        return vector
    for place in layout.parameters:
        if place.name in carried:
            vector = ops.add_at(vector, place.slice, as_dense(ops, carried[place.name], place), 1.0)
    return vector


def as_dense(ops: Ops, left: Array | Rows, place: Parameter) -> Array:
    """Return what is carried for a parameter as a flat vector."""
    if not isinstance(left, Rows):
        return left
    width = place.size // left.height
    indices = ops.column(left.indices) * width + ops.arange(width)
    return ops.scatter_add(ops.zeros(place.size), ops.flatten(indices), ops.flatten(left.values))


def _as_rows(ops: Ops, left: Array | Rows, height: int, place: Parameter) -> Rows:
    """Return what is carried for a parameter as rows: of a dense residual, those that are not zero."""
    if isinstance(left, Rows):
        return left
    matrix = left.reshape(height, place.size // height)
    indices = ops.above(ops.row_norm(matrix), LEAST)
    return Rows(indices, ops.take(matrix, indices), height)


def norm(ops: Ops, carried: Carried) -> float:
    """Return the Euclidean norm of all that is carried."""
    parts = (ops.flatten(left.values) if isinstance(left, Rows) else left for left in carried.values())
    return math.sqrt(sum(ops.norm(part) ** 2 for part in parts))
