"""Sketched methods: workers sum count sketches, in which they all find the same large coordinates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from hvd_compress.compressors.base import AllReduce, Compressor, Exchanging, Reduced, setting
from hvd_compress.compressors.feedback import MomentumOfMean
from hvd_compress.compressors.schedule import Schedule
from hvd_compress.layout import Layout
from hvd_compress.ops import Array, Ops
from hvd_compress.random import make_key
from hvd_compress.sketch import MOST_ROWS, CountSketch
from hvd_compress.state import State

BUDGET = 1 / 40


class Split(NamedTuple):
    """What a step sends, in numbers: a sketch of rows times columns, and exact values of candidates, if any."""

    k: int  # coordinates that are applied
    rows: int
    columns: int
    candidates: int  # coordinates whose exact values are asked for, 0 without a second round
    kept: int  # largest coordinates that a worker sketches, at most all

    @property
    def numbers(self) -> int:
        """Numbers that a worker sends."""
        return self.rows * self.columns + self.candidates


@dataclass(frozen=True)
class Sketched(Compressor):
    """What the sketched methods have in common: a budget, and how it is divided unless a setting says otherwise.

    The division is made of proportions: a sketch of `ROWS` rows, and `SUMS` sums for each of k coordinates.
    """

    remedy: ClassVar[str] = (
        "Raise the budget (or k and columns), sketch with 3 or 5 rows and p1=1 or 2, set momentum=0, or lower the "
        "learning rate."
    )
    SUMS: ClassVar[int]
    ROWS: ClassVar[int] = 5

    budget: float = setting(BUDGET, above=0, high=1)
    ratio: float | None = setting(None, above=0, high=1)
    k: int | None = setting(None, low=1)
    rows: int | None = setting(None, low=1, high=MOST_ROWS)
    columns: int | None = setting(None, above=0)

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if isinstance(self.rows, int) and self.rows % 2 == 0:
            raise ValueError(f"{self.name}: rows must be odd, for an estimate is their median; got {self.rows}")

    @property
    def whole_gradient(self) -> bool:
        """True: there is one sketch."""
        return True

    def split(self, size: int) -> Split:
        """Return what a step sends for a vector of `size` coordinates.

        Raises:
            ValueError: if k or columns exceed the size.
        """
        second, local = self._rounds()
        for name, value in (("k", self.k), ("columns", self.columns)):
            if value is not None and value > size:
                raise ValueError(f"{self.name}: {name} must be at most the vector's size, {size}; got {value}")
        if self.k is not None:
            k = self.k
        elif self.ratio is not None:
            k = round(self.ratio * size)
        else:
            k = math.floor(self.budget * size / (self.SUMS + second))
        k = min(size, max(1, k))
        rows = self.rows or self.ROWS
        candidates = min(size, math.ceil(second * k))
        if self.columns is not None:
            columns = self.columns
        elif self.k is None and self.ratio is None:
            columns = math.floor((self.budget * size - candidates) / rows)
        else:
            columns = self.SUMS * k // rows
        columns = min(size, max(1, columns))
        return Split(k, rows, columns, candidates, min(size, math.ceil(local * k)) if local else size)

    def _rounds(self) -> tuple[float, float]:
        """Return for each of k coordinates the number of candidates, and of those that a worker sketches (0: all)."""
        raise NotImplementedError

    def payload_bits(self, layout: Layout, kept: int | None = None) -> int:
        """32 for each sum of the sketch and each candidate."""
        return 32 * self.split(layout.size).numbers


@dataclass(frozen=True)
class SketchedSGD(Sketched):
    """Find the k largest coordinates of the mean in the sum of the workers' sketches (Ivkin et al. 2019, algorithm 1).

    Every worker sketches its vector (with `p1`, only the p1 k largest of it), the sketches are averaged, and all
    workers read the same p2 k candidates from the mean. A second AllReduce has the exact values of these, of which the
    k largest are applied. Without one (p2 = 0) the estimates are. What is not applied stays with error feedback, or
    with momentum correction if there is a momentum. The defaults, and how a budget is divided, come from measurements
    (docs/results/sketched-sgd.md); the published system has a momentum of 0.9 and p2 = 4.

    With `heavymix` it is the paper's analysed algorithm (HEAVYMIX, algorithm 2): the coordinates whose estimated square
    is at least the k-th part of the squared norm, others drawn uniformly up to k, exact values of all of them.

    The bytes of a step are a function of the size alone, whatever the number of workers. Each step has a new sketch.

    Attributes:
        budget: the part of the bytes of the uncompressed gradient that both rounds together send, unless `k` or
            `ratio` is given.
        ratio: k as a part of the coordinates; by the budget if it is None.
        k: coordinates that are applied; by `ratio` if it is None.
        rows: of the sketch, odd.
        columns: of the sketch, at most the vector's size.
        p1: largest coordinates of its own vector that a worker sketches, per k; 0 stands for all.
        p2: candidates per k, at most all coordinates; 0 for no second round.
        momentum: of the momentum correction; 0 stands for plain error feedback, beside an optimizer with momentum.
        masking: whether momentum correction masks the momentum (see `MomentumCorrection`).
        heavymix: the analysed algorithm, without candidates: p2 is 1.
    """

    name: ClassVar[str] = "sketched_sgd"
    formula: ClassVar[str] = "v where abs(mean v) is among the k largest, as a sketch tells"
    paper: ClassVar[str] = "Ivkin et al. 2019"
    wire: ClassVar[str] = "count sketch, then candidates' values (fp32)"
    selects: ClassVar[bool] = True
    SUMS: ClassVar[int] = 2

    p1: float = setting(0.0625, low=0)
    p2: float = setting(1.0, low=0)
    momentum: float = setting(0.0, low=0, high=0.9999)
    masking: bool = setting(True)
    heavymix: bool = setting(False)

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if 0 < self.p2 < 1:
            raise ValueError(
                f"{self.name}: p2 must be 0 or at least 1, for k of the candidates are applied; got {self.p2}"
            )

    @property
    def collectives(self) -> tuple[str, ...]:  # type: ignore[override]
        """Two AllReduces, or one without a second round."""
        return ("allreduce", "allreduce") if self._rounds()[0] else ("allreduce",)

    @property
    def estimates(self) -> bool:  # type: ignore[override]
        """True without a second round."""
        return not self._rounds()[0]

    @property
    def default_feedback(self) -> str:
        """Momentum correction, or error feedback for a momentum of 0."""
        return f"momentum(momentum={self.momentum}, masking={self.masking})" if self.momentum else "ef"

    def _rounds(self) -> tuple[float, float]:
        return (1.0 if self.heavymix else self.p2), self.p1

    def reduce(self, ops: Ops, vector: Array, state: State) -> Exchanging:
        """Average the sketches, find the candidates, average their values, apply the k largest."""
        size = state.layout.size
        split = self.split(size)
        sketch = CountSketch(size, split.rows, split.columns, make_key(*state.common_stream()), ops=ops)
        if split.kept < size:
            largest = ops.top_k(vector, split.kept)
            values = ops.take(vector, largest)
            sketch.add_sparse(largest, values)
            sketch.table = sketch.table + 0 * values[:1]  # NaN in all sums, if the vector is of NaN
        else:
            sketch.add(vector)
        sketch = sketch.with_table((yield AllReduce(sketch.table)))
        if self.heavymix:
            chosen = self._heavymix(ops, sketch, split.k, state)
        else:
            chosen = sketch.heavy_hitters(split.candidates or split.k)
        if split.candidates:
            own = ops.take(vector, chosen)
            values = yield AllReduce(own)
            if split.k < split.candidates:
                best = ops.top_k(values, split.k)
                chosen, own, values = (ops.take(array, best) for array in (chosen, own, values))
        else:
            own, values = ops.take(vector, chosen), sketch.estimate(chosen)
        return Reduced(
            mean=ops.scatter(size, [(chosen, values)], 1.0),
            add_sent=lambda total, factor: ops.scatter_add(total, chosen, own * factor),
            support=lambda: chosen,
        )

    def _heavymix(self, ops: Ops, sketch: CountSketch, k: int, state: State) -> Array:
        """Return the heavy coordinates and, up to k, others that are drawn uniformly."""
        largest = sketch.heavy_hitters(k)
        heavy = ops.take(largest, ops.above(sketch.estimate(largest), sketch.l2_norm() / math.sqrt(k)))
        count = heavy.shape[0]
        # Number i of those that are not heavy comes after as many heavy ones as are below i + their own rank.
        others = ops.distinct(k - count, sketch.size - count, state.common_stream())
        others = others + ops.searchsorted(heavy - ops.arange(count), others)
        return ops.sort(ops.concat([heavy, others]))


@dataclass(frozen=True)
class FetchSGD(Sketched):
    """Keep momentum and error in the sketch (Rothchild et al. 2020, algorithm 1).

    S_u <- m S_u + S; S_e <- S_e + S_u; apply the k largest estimates of S_e, and set the sums that their sketch touches
    to zero in S_e. That is what the authors' code does; to subtract that sketch, as the algorithm says, leaves noise in
    those sums, which gathers until training diverges. The state is the same on all workers, who themselves keep
    nothing: a worker may come and go. All steps have one sketch. The optimizer must have no momentum.

    Attributes:
        budget: the part of the uncompressed gradient's bytes that the sketch takes, unless `k` or `ratio` is given.
        ratio: k as a part of the coordinates; by the budget if it is None.
        k: coordinates that are applied; by `ratio` if it is None.
        rows: of the sketch, odd.
        columns: of the sketch, at most the vector's size.
        momentum: m, in [0, 1).
        masking: whether these sums are set to zero in S_u as well.
    """

    name: ClassVar[str] = "fetchsgd"
    formula: ClassVar[str] = "the k largest estimates of S_e; S_u <- m S_u + S(v), S_e <- S_e + S_u, 0 where applied"
    paper: ClassVar[str] = "Rothchild et al. 2020"
    wire: ClassVar[str] = "count sketch (fp32)"
    collectives: ClassVar[tuple[str, ...]] = ("allreduce",)
    contraction: ClassVar[bool] = False
    has_momentum: ClassVar[bool] = True
    SUMS: ClassVar[int] = 16

    momentum: float = setting(0.9, low=0, high=0.9999)
    masking: bool = setting(True)

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        wanted = [self.budget, self.rows, self.columns, *([self.ratio, self.k] if self.columns is None else [])]
        if any(isinstance(value, Schedule) for value in wanted):
            raise ValueError(
                f"{self.name}: the sketch cannot change during training, for momentum and error are in it; schedule k "
                "or ratio, with rows and columns given"
            )

    @property
    def plain(self) -> Compressor:
        """The momentum of the mean."""
        return MomentumOfMean(self.momentum)

    def check_feedback(self) -> None:
        """Refuse all feedback."""
        raise ValueError(f"{self.name} allows no feedback: its error is in the sketch already")

    def _rounds(self) -> tuple[float, float]:
        return 0.0, 0.0

    def reduce(self, ops: Ops, vector: Array, state: State) -> Exchanging:
        """Average the sketches, and apply the largest estimates of what has gathered."""
        size = state.layout.size
        split = self.split(size)
        sketch = CountSketch(size, split.rows, split.columns, state.common_stream().key, ops=ops)
        sketch.add(vector)
        u = yield AllReduce(sketch.table)
        if "momentum" in state.shared:
            u = ops.affine(state.shared["momentum"], self.momentum, u, 1.0)
        e = ops.affine(state.shared["error"], 1.0, u, 1.0) if "error" in state.shared else ops.copy(u)
        chosen = sketch.with_table(e).heavy_hitters(split.k)
        values = sketch.with_table(e).estimate(chosen)
        mine = sketch.with_table(ops.zeros_like(e))
        mine.add_sparse(chosen, values)
        gone = mine.table != 0
        state.shared["error"] = ops.where(gone, ops.zeros_like(e), e)
        state.shared["momentum"] = ops.where(gone, ops.zeros_like(u), u) if self.masking else u
        return Reduced(ops.scatter(size, [(chosen, values)], 1.0), None)
