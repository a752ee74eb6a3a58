"""Methods that send the factors of a matrix of low rank."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from hvd_compress.compressors.base import AllReduce, Compressor, Contribution, Exchanging, Keep, Reduced, setting
from hvd_compress.compressors.state import State
from hvd_compress.native.kernels import Kernels, Shape
from hvd_compress.ops import Array, Ops
from hvd_compress.ops.by_kernel import by_kernel
from hvd_compress.ops.layout import Layout, Parameter


@dataclass(frozen=True)
class PowerSGD(Compressor):
    """Send one step of subspace iteration on each parameter's matrix (Vogels et al. 2019, algorithm 1).

    Parameters for which r(n + m) >= nm travel dense beside the left factors, so that two AllReduces serve them all.
    Matrices of one shape are multiplied and orthogonalized together. The first right factors are uniform rather than
    Gaussian numbers: the iteration asks only that they be random.

    Attributes:
        rank: columns of the factors.
        warm_start: begin from the last step's right factors, as the paper does, rather than from new random ones.
        start: number of first steps in which everything is sent dense, in one AllReduce.
    """

    name: ClassVar[str] = "powersgd"
    formula: ClassVar[str] = "P Q^T; P = orthogonal basis of M Q, Q <- M^T P"
    paper: ClassVar[str] = "Vogels et al. 2019"
    wire: ClassVar[str] = "left factors, then right factors (fp32)"
    collectives: ClassVar[tuple[str, ...]] = ("allreduce", "allreduce")
    portable: ClassVar[bool] = False  # libraries orthogonalize and multiply, each in its own order
    spreads: ClassVar[bool] = True

    rank: int = setting(2, low=1)
    warm_start: bool = setting(True)
    start: int = setting(0, low=0)

    def reduce(self, ops: Ops, vector: Array, state: State) -> Exchanging:
        if state.step < self.start:
            mean = yield AllReduce(vector)
            return Reduced(mean, Contribution(ops, lambda: vector))
        return (yield from self._iterate(ops, vector, None, state))

    def reduce_rest(self, ops: Ops, vector: Array, residual: Array | None, state: State, keep: Keep) -> Exchanging:
        if state.step < self.start:
            return (yield from super().reduce_rest(ops, vector, residual, state, keep))
        return (yield from self._iterate(ops, vector, residual, state, keep))

    def _iterate(
        self, ops: Ops, vector: Array, residual: Array | None, state: State, keep: Keep | None = None
    ) -> Exchanging:
        """Average P = M Q, orthogonalize it, average Q = M^T P; the update is P Q^T.

        The residual is added in the pass for M Q, and what a worker keeps is left by the pass for its own M^T P.
        """
        groups, dense = self._groups(state.layout)
        shapes = [group[0].matrix for group in groups]
        places = [[p.slice for p in group] for group in groups]
        rights = [(len(group), m, self.rank) for group, (n, m) in zip(groups, shapes, strict=True)]
        lefts = [(len(group), n, self.rank) for group, (n, m) in zip(groups, shapes, strict=True)]

        qs = split(self._start(ops, rights, state), rights)
        products, vector = times(ops, vector, places, shapes, qs, residual)
        if residual is not None:
            for p in dense:
                vector = ops.add_at(vector, p.slice, residual[p.slice], 1.0)
        first = yield AllReduce(ops.concat([*map(ops.flatten, products), *(vector[p.slice] for p in dense)]))
        *means, rest = split(first, [*lefts, (sum(p.size for p in dense),)])
        ps = [ops.orthogonalize(mean) for mean in means]

        own_qs, vector = times_transposed(ops, vector, places, shapes, ps, keep is not None)
        second = (yield AllReduce(ops.concat(list(map(ops.flatten, own_qs))))) if groups else vector[:0]
        state.shared["q"] = second

        def add(qs: Sequence[Array], plain: Sequence[Array], total: Array, factor: float = 1.0) -> Array:
            for at, p, q in zip(places, ps, qs, strict=True):
                total = ops.add_product(total, at, p, q, factor)
            for parameter, values in zip(dense, plain, strict=True):
                total = ops.add_at(total, parameter.slice, values, factor)
            return total

        if dense:
            mean = add(split(second, rights), split(rest, [(p.size,) for p in dense]), ops.zeros(state.layout.size))
        else:
            mean = ops.filled_with_products(vector, places, ps, split(second, rights))
        # P's columns are of length 1, so that no sum in P Q^T is above the rank times the largest of Q.
        finite = ops.all_finite(ops.concat([second * (self.rank + 1.0), rest]))
        if keep:
            for p in dense:
                vector = ops.add_at(vector, p.slice, vector[p.slice], -1.0)
            keep(vector, None)
            return Reduced(mean, None, finite)
        own = functools.partial(add, own_qs, [vector[p.slice] for p in dense])
        return Reduced(mean, _Approximation(ops, own, state.layout.size), finite)

    def payload_bits(self, layout: Layout, kept: int | None = None) -> int:
        """32 r(n + m) for each matrix, 32 a coordinate for what is dense (and in the first `start` steps for all)."""
        return 32 * sum(self.rank * sum(p.matrix) if self._pays(p) else p.size for p in layout.parameters)

    def _pays(self, parameter: Parameter) -> bool:
        rows, columns = parameter.matrix
        return self.rank * (rows + columns) < rows * columns

    def _groups(self, layout: Layout) -> tuple[list[list[Parameter]], list[Parameter]]:
        """Return the matrices by their shapes, and what is sent dense."""
        groups: dict[tuple[int, int], list[Parameter]] = {}
        for p in layout.parameters:
            if self._pays(p):
                groups.setdefault(p.matrix, []).append(p)
        return list(groups.values()), [p for p in layout.parameters if not self._pays(p)]

    def _start(self, ops: Ops, shapes: Sequence[tuple[int, ...]], state: State) -> Array:
        size = sum(b * m * r for b, m, r in shapes)
        last = state.shared.get("q")
        if self.warm_start and last is not None and last.shape[0] == size:
            return last
        return ops.uniform(size, state.common_stream()) - 0.5


class _Approximation(Contribution):
    """P Q^T and what is sent dense, added one parameter at a time: ``add(total, factor)``."""

    def __init__(self, ops: Ops, add: Callable[..., Array], size: int) -> None:
        super().__init__(ops, lambda: add(ops.zeros(size)))
        self._add = add

    def add_to(self, total: Array, factor: float = 1.0) -> Array:
        return self._add(total, factor)


def _stacked(ops: Ops, vector: Array, places: Sequence[slice], shape: Shape) -> Array:
    return ops.stack([vector[place].reshape(shape) for place in places])


Places = Sequence[Sequence[slice]]  # of matrices in a vector, those of one shape together
Shapes = Sequence[Shape]


def _times(
    ops: Ops, kernels: Kernels, vector: Array, places: Places, shapes: Shapes, rights: Sequence[Array], plus: Any
) -> tuple[list[Array], Array]:
    products = []
    for at, (n, m), right in zip(places, shapes, rights, strict=True):
        rank = right.shape[2]
        product = kernels.times(vector, [place.start for place in at], (n, m), ops.flatten(right), rank, plus)
        products.append(product.reshape(len(at), n, rank))
    return products, vector


@by_kernel(_times, vector="float32", plus="float32")
def times(
    ops: Ops, vector: Array, places: Places, shapes: Shapes, rights: Sequence[Array], plus: Array | None
) -> tuple[list[Array], Array]:
    """Return M Q for each matrix M of shape (n, m) of the vector, and the vector.

    If `plus` is given, M is that of vector + plus, for which the vector is overwritten where there are matrices. Of
    `count` matrices of a shape, `rights` has the Q as (count, m, r), and the result is of shape (count, n, r).
    """
    products = []
    for at, shape, right in zip(places, shapes, rights, strict=True):
        if plus is not None:
            for place in at:
                vector = ops.add_at(vector, place, plus[place], 1.0)
        products.append(_stacked(ops, vector, at, shape) @ right)
    return products, vector


def _times_transposed(
    ops: Ops, kernels: Kernels, vector: Array, places: Places, shapes: Shapes, lefts: Sequence[Array], rest: bool
) -> tuple[list[Array], Array]:
    products = []
    for at, (n, m), left in zip(places, shapes, lefts, strict=True):
        rank = left.shape[2]
        product = kernels.times_transposed(vector, [p.start for p in at], (n, m), ops.flatten(left), rank, rest)
        products.append(product.reshape(len(at), m, rank))
    return products, vector


@by_kernel(_times_transposed, vector="float32")
def times_transposed(
    ops: Ops, vector: Array, places: Places, shapes: Shapes, lefts: Sequence[Array], rest: bool
) -> tuple[list[Array], Array]:
    """Return Q = M^T P for each matrix M likewise, and the vector; for the `rest`, M is overwritten by M - P Q^T.

    Of `count` matrices of a shape, `lefts` has the P as (count, n, r), and the result is of shape (count, m, r).
    """
    products = []
    for at, shape, left in zip(places, shapes, lefts, strict=True):
        products.append(ops.transpose(_stacked(ops, vector, at, shape)) @ left)
        if rest:
            vector = ops.add_product(vector, at, left, products[-1], -1.0)
    return products, vector


def split(vector: Array, shapes: Sequence[tuple[int, ...]]) -> list[Array]:
    """Cut a vector into arrays of these shapes."""
    arrays, start = [], 0
    for shape in shapes:
        size = math.prod(shape)
        arrays.append(vector[start : start + size].reshape(shape))
        start += size
    return arrays
