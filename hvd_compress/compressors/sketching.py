"""Sketched methods: workers sum sketches, from which all read the same large coordinates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from hvd_compress.compressors.base import AllReduce, Compressor, Contribution, Exchanging, Reduced, setting
from hvd_compress.compressors.feedback import MomentumOfMean
from hvd_compress.compressors.schedule import Schedule
from hvd_compress.compressors.sketches.count_sketch import MOST_ROWS, CountSketch
from hvd_compress.compressors.sketches.invertible import InvertibleSketch
from hvd_compress.compressors.state import State
from hvd_compress.ops import Array, Ops
from hvd_compress.ops.layout import Layout
from hvd_compress.ops.random import make_key

BUDGET = 1 / 40  # share of the uncompressed gradient's bytes
SUMS_TO_INVERT = 1.3  # sums per named coordinate; decoding needs at least 1.23
TARGET_FILL = 0.97  # share of the sketch's decodable capacity that the workers aim to fill
MAX_UNREAD = 0.05  # share of sums that stay undecoded, from which on workers name fewer coordinates


class Split(NamedTuple):
    """How many numbers a step sends: a sketch of rows times columns, then exact values of candidates, if any."""

    k: int  # coordinates that are applied
    rows: int
    columns: int
    candidates: int  # coordinates whose exact values are asked for, 0 without a second round

    @property
    def numbers(self) -> int:
        """Numbers that a worker sends."""
        return self.rows * self.columns + self.candidates


@dataclass(frozen=True)
class Sketched(Compressor):
    """The sketched methods' common settings: a budget, divided as `_shares` says unless settings are given."""

    remedy: ClassVar[str] = (
        "Raise the budget (or k and columns), leave p1 and rows at their defaults, set momentum=0, or lower the "
        "learning rate."
    )

    budget: float = setting(BUDGET, above=0, high=1)
    ratio: float | None = setting(None, above=0, high=1)
    k: int | None = setting(None, low=1)
    rows: int | None = setting(None, low=1, high=MOST_ROWS)
    columns: int | None = setting(None, above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.rows, int) and self.rows % 2 == 0:
            raise ValueError(f"{self.name}: rows must be odd, for an estimate is their median; got {self.rows}")

    @property
    def whole_gradient(self) -> bool:
        return True

    def split(self, size: int) -> Split:
        """Return what a step sends for a vector of `size` coordinates.

        Raises:
            ValueError: if k or columns exceed the size.
        """
        rows, sums, second = self._shares()
        for name, value in (("k", self.k), ("columns", self.columns)):
            if value is not None and value > size:
                raise ValueError(f"{self.name}: {name} must be at most the vector's size, {size}; got {value}")
        if self.k is not None:
            k = self.k
        elif self.ratio is not None:
            k = round(self.ratio * size)
        else:
            k = math.floor(self.budget * size / (sums + second))
        k = min(size, max(1, k))
        rows = self.rows or rows
        candidates = min(size, math.ceil(second * k))
        if self.columns is not None:
            columns = self.columns
        elif self.k is None and self.ratio is None:
            columns = math.floor((self.budget * size - candidates) / rows)
        else:
            columns = math.floor(sums * k / rows)
        return Split(k, rows, min(size, max(1, columns)), candidates)

    def _shares(self) -> tuple[int, float, float]:
        """Return the rows, and for each of k coordinates the number of sums and of candidates."""
        raise NotImplementedError

    def payload_bits(self, layout: Layout, kept: int | None = None) -> int:
        """32 for each sum of the sketch and each candidate."""
        return 32 * self.split(layout.size).numbers


@dataclass(frozen=True)
class SketchedSGD(Sketched):
    """Apply exact values of coordinates that all workers read from the sum of their sketches (Ivkin et al. 2019).

    The first AllReduce sums sketches, from which all workers read the same candidates; the second averages the exact
    values of these, of which the k largest are applied. What is not applied stays with error feedback, or with momentum
    correction if there is a momentum. The bytes of a step are a function of the size alone, whatever the number of
    workers. Each step has a new sketch.

    How the candidates are found:

    - By default each worker names the largest coordinates of its own vector, in an invertible sketch
      (`sketches.invertible`), from whose sum all names are read exactly: at 1.3 sums for each they are all large
      for some worker, where the medians of a count sketch of as many bytes mostly give others. Workers name as many as
      together fill it: they begin with 1 / W of them each, and as their names coincide, name more. With k below some
      hundred a table is at times too full to be read; what is missing of k coordinates is drawn uniformly.
    - With `p1`, as in the published system: each worker puts the p1 k largest of its vector, or all of it (p1 = 0), in
      a count sketch; the candidates are the p2 k coordinates of largest estimate. There, momentum is 0.9 and p2 = 4.
    - With `heavymix`, the paper's analysed algorithm (algorithm 2): the coordinates whose estimated square is at least
      the k-th part of the squared norm, others drawn uniformly up to k, exact values of all of them.

    The defaults, and how a budget is divided, come from measurements (docs/results/sketched-sgd.md).

    Attributes:
        budget: share of the uncompressed gradient's bytes that both rounds together send, unless `k` or
            `ratio` is given.
        ratio: k as a share of the coordinates; derived from the budget if None.
        k: coordinates that are applied; derived from `ratio` if None.
        rows: of the sketch, odd; 3 if it is invertible, else 5.
        columns: of the sketch, at most the vector's size.
        p1: largest coordinates of its own vector that a worker puts in a count sketch, per k; 0 stands for all, None
            for an invertible sketch instead (for all, with `heavymix` or without a second round).
        p2: candidates per k, at most all coordinates; 0 for no second round: the estimates are applied.
        momentum: of the momentum correction; 0 stands for plain error feedback, beside an optimizer with momentum.
        masking: whether momentum correction masks the momentum (see `MomentumCorrection`).
        heavymix: the analysed algorithm, without candidates: p2 is 1.
    """

    name: ClassVar[str] = "sketched_sgd"
    formula: ClassVar[str] = "v at k coordinates that are large for some worker; a sum of sketches names them"
    paper: ClassVar[str] = "Ivkin et al. 2019"
    wire: ClassVar[str] = "invertible sketch (int32), then candidates' values (fp32)"
    selects: ClassVar[bool] = True

    p1: float | None = setting(None, low=0)
    p2: float = setting(1.0, low=0)
    momentum: float = setting(0.0, low=0, high=0.9999)
    masking: bool = setting(True)
    heavymix: bool = setting(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.p2 < 1:
            raise ValueError(
                f"{self.name}: p2 must be 0 or at least 1, for k of the candidates are applied; got {self.p2}"
            )

    @property
    def collectives(self) -> tuple[str, ...]:  # type: ignore[override]
        """Two AllReduces, or one without a second round."""
        return ("allreduce",) if self.estimates else ("allreduce", "allreduce")

    @property
    def estimates(self) -> bool:  # type: ignore[override]
        """True without a second round."""
        return not self.p2 and not self.heavymix

    @property
    def invertible(self) -> bool:
        """Whether coordinates are named in an invertible sketch."""
        return self.p1 is None and not self.heavymix and not self.estimates

    @property
    def portable(self) -> bool:  # type: ignore[override]
        """False with `heavymix`, for norms are added up in different orders."""
        return not self.heavymix

    @property
    def default_feedback(self) -> str:
        """Momentum correction, or error feedback for a momentum of 0."""
        return f"momentum(momentum={self.momentum}, masking={self.masking})" if self.momentum else "ef"

    def _shares(self) -> tuple[int, float, float]:
        candidates = 1.0 if self.heavymix else self.p2
        return (3, SUMS_TO_INVERT * candidates, candidates) if self.invertible else (5, 2.0, candidates)

    def reduce(self, ops: Ops, vector: Array, state: State) -> Exchanging:
        """Find the candidates, average their values, apply the k largest."""
        split = self.split(state.layout.size)
        sketch = self.sketch(ops, vector, state)
        sketch.table = yield AllReduce(sketch.table, "sum" if self.invertible else "mean")
        chosen = self.candidates(ops, sketch, state)
        own = ops.take(vector, chosen)
        if split.candidates:
            values = yield AllReduce(own)
            if split.k < split.candidates:
                best = ops.top_k(values, split.k)
                chosen, own, values = (ops.take(array, best) for array in (chosen, own, values))
        else:
            assert isinstance(sketch, CountSketch)
            values = sketch.estimate(chosen)
        mean = ops.scatter(state.layout.size, [(chosen, values)], 1.0)
        return Reduced(mean, Contribution(ops, lambda: own, chosen))

    def empty(self, ops: Ops, state: State) -> CountSketch | InvertibleSketch:
        """Return this step's sketch with nothing in it."""
        size, split = state.layout.size, self.split(state.layout.size)
        kind = InvertibleSketch if self.invertible else CountSketch
        return kind(size, split.rows, split.columns, make_key(*state.common_stream()), ops=ops)

    def sketch(self, ops: Ops, vector: Array, state: State) -> CountSketch | InvertibleSketch:
        """Return a worker's sketch: of its largest coordinates' names if invertible, else of its (largest) values."""
        size, split, sketch = state.layout.size, self.split(state.layout.size), self.empty(ops, state)
        if isinstance(sketch, InvertibleSketch):
            sketch.add(ops.top_k(vector, max(1, round(self._part(ops, state) * split.candidates))))
            return sketch
        kept = math.ceil(self.p1 * split.k) if self.p1 else size
        if kept < size:
            largest = ops.top_k(vector, kept)
            values = ops.take(vector, largest)
            sketch.add_sparse(largest, values)
            sketch.table = sketch.table + 0 * values[:1]  # NaN in all sums, if the vector is of NaN
        else:
            sketch.add(vector)
        return sketch

    def candidates(self, ops: Ops, sketch: CountSketch | InvertibleSketch, state: State) -> Array:
        """Return the candidates, int64 ascending, in the sum of the workers' invertible sketches or the mean of others.

        The share of the candidates that a worker names in the next step is written to the state.
        """
        split = self.split(state.layout.size)
        if isinstance(sketch, InvertibleSketch):
            count, part = split.candidates, self._part(ops, state)
            found, unread = sketch.recover(state.workers)
            part *= min(2.0, TARGET_FILL * count / max(1, found.shape[0])) if unread < MAX_UNREAD else 0.7
            state.shared["part"] = ops.number(min(1.0, max(part, 0.1 / state.workers)))
            return _exactly(ops, count, found, state)
        chosen = sketch.heavy_hitters(split.candidates or split.k)
        if self.heavymix:
            heavy = ops.above(sketch.estimate(chosen), sketch.l2_norm() / math.sqrt(split.k))
            return _exactly(ops, split.k, ops.take(chosen, heavy), state)
        return chosen

    def _part(self, ops: Ops, state: State) -> float:
        """Return the share of the candidates that a worker names."""
        part = state.shared.get("part")
        return 1 / state.workers if part is None else float(ops.to_numpy(part)[0])


def _exactly(ops: Ops, count: int, found: Array, state: State) -> Array:
    """Return `count` coordinates: those found, without some of them, or with others that are drawn uniformly."""
    there, stream = found.shape[0], state.common_stream()
    if there >= count:
        return ops.take(found, ops.distinct(count, there, stream)) if there > count else found
    # Number i of those that were not found comes after as many found ones as are below i + their own rank.
    others = ops.distinct(count - there, state.layout.size - there, stream)
    others = others + ops.searchsorted(found - ops.arange(there), others)
    return ops.sort(ops.concat([found, others]))


@dataclass(frozen=True)
class FetchSGD(Sketched):
    """Keep momentum and error in the sketch (Rothchild et al. 2020, algorithm 1).

    S_u <- m S_u + S; S_e <- S_e + S_u; apply the k largest estimates of S_e, and set the sums that their sketch touches
    to zero in S_e. That is what the authors' code does; to subtract that sketch, as the algorithm says, leaves noise in
    those sums, which gathers until training diverges. The state is the same on all workers, who themselves keep
    nothing: a worker may come and go. All steps have one sketch. The optimizer must have no momentum.

    Attributes:
        budget: share of the uncompressed gradient's bytes that the sketch takes, unless `k` or `ratio` is given.
        ratio: k as a share of the coordinates; derived from the budget if None.
        k: coordinates that are applied; derived from `ratio` if None.
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

    momentum: float = setting(0.9, low=0, high=0.9999)
    masking: bool = setting(True)

    def __post_init__(self) -> None:
        super().__post_init__()
        wanted = [self.budget, self.rows, self.columns, *([self.ratio, self.k] if self.columns is None else [])]
        if any(isinstance(value, Schedule) for value in wanted):
            raise ValueError(
                f"{self.name}: the sketch cannot change during training, for momentum and error are in it; schedule k "
                "or ratio, with rows and columns given"
            )

    @property
    def plain(self) -> Compressor:
        return MomentumOfMean(self.momentum)

    def check_feedback(self) -> None:
        raise ValueError(f"{self.name} allows no feedback: its error is in the sketch already")

    def _shares(self) -> tuple[int, float, float]:
        return 5, 16.0, 0.0

    def reduce(self, ops: Ops, vector: Array, state: State) -> Exchanging:
        """Average the sketches, and apply the largest estimates of the accumulated error."""
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
