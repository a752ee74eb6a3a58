"""Methods that send the factors of a matrix of low rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from hvd_compress.compressors.base import AllReduce, Compressor, Exchanging, Reduced, setting
from hvd_compress.layout import Layout, Parameter
from hvd_compress.ops import Array, Ops
from hvd_compress.state import State


@dataclass(frozen=True)
class PowerSGD(Compressor):
    """Send one step of subspace iteration on each parameter's matrix (Vogels et al. 2019, algorithm 1).

    Parameters for which r(n + m) >= nm travel dense beside the left factors, so that two AllReduces serve them all. The
    first right factors are uniform rather than Gaussian numbers: the iteration asks only that they be random.

    Attributes:
        rank: columns of the factors.
        warm_start: begin from the last step's right factors, as the paper does, rather than from new random ones.
    """

    name: ClassVar[str] = "powersgd"
    wire: ClassVar[str] = "left factors, then right factors (fp32)"
    collectives: ClassVar[tuple[str, ...]] = ("allreduce", "allreduce")

    rank: int = setting(2, low=1)
    warm_start: bool = setting(True)

    def reduce(self, ops: Ops, vector: Array, state: State) -> Exchanging:
        """Average P = M Q, orthogonalize it, average Q = M^T P; the update is P Q^T."""
        low = [p for p in state.layout.parameters if self._pays(p)]
        dense = [p for p in state.layout.parameters if not self._pays(p)]
        matrices = [vector[p.slice].reshape(p.matrix) for p in low]
        qs = self._right_factors(ops, low, state)

        products = [ops.flatten(m @ q) for m, q in zip(matrices, qs, strict=True)]
        first = yield AllReduce(ops.concat([*products, *(vector[p.slice] for p in dense)]))
        lefts, rest = self._split(first, [(p.matrix[0], self.rank) for p in low])
        ps = [ops.orthogonalize(left) for left in lefts]

        own_qs = [ops.transpose(m) @ p for m, p in zip(matrices, ps, strict=True)]
        second = (yield AllReduce(ops.concat([ops.flatten(q) for q in own_qs]))) if low else vector[:0]
        qs, _ = self._split(second, [(p.matrix[1], self.rank) for p in low])
        state.shared["q"] = second

        def product(rights: list[Array], plain: list[Array]) -> Array:
            parts = {p.name: ops.flatten(a @ ops.transpose(b)) for p, a, b in zip(low, ps, rights, strict=True)}
            parts |= {p.name: part for p, part in zip(dense, plain, strict=True)}
            return ops.concat([parts[p.name] for p in state.layout.parameters])

        means, _ = self._split(rest, [(p.size,) for p in dense])
        return Reduced(product(qs, means), sent=lambda: product(own_qs, [vector[p.slice] for p in dense]))

    def payload_bits(self, layout: Layout) -> int:
        """32 r(n + m) for each matrix, 32 a coordinate for what is dense."""
        return 32 * sum(self.rank * sum(p.matrix) if self._pays(p) else p.size for p in layout.parameters)

    def _pays(self, parameter: Parameter) -> bool:
        rows, columns = parameter.matrix
        return self.rank * (rows + columns) < rows * columns

    def _right_factors(self, ops: Ops, low: list[Parameter], state: State) -> list[Array]:
        shapes = [(p.matrix[1], self.rank) for p in low]
        if self.warm_start and "q" in state.shared:
            start = state.shared["q"]
        else:
            start = ops.uniform(sum(n * r for n, r in shapes), state.common_stream()) - 0.5
        return self._split(start, shapes)[0]

    @staticmethod
    def _split(vector: Array, shapes: Sequence[tuple[int, ...]]) -> tuple[list[Array], Array]:
        """Cut arrays of these shapes off a vector; return them and what is left."""
        arrays = []
        for shape in shapes:
            size = shape[0] if len(shape) == 1 else shape[0] * shape[1]
            arrays.append(vector[:size].reshape(shape))
            vector = vector[size:]
        return arrays, vector
