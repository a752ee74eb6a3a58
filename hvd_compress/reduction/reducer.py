"""What reduces a model's gradients, step after step: plan, launch, finish together, roll back together."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from hvd_compress.compressors import Compressor
from hvd_compress.ops import Array, Ops
from hvd_compress.ops.layout import Layout
from hvd_compress.reduction.agreement import WorkersDisagree, agree, describe
from hvd_compress.reduction.buckets import Bucket, Gradient, make_plan, wanted
from hvd_compress.reduction.carry import Carried, add_carried, cut, left_over, norm
from hvd_compress.reduction.checkpoint import Saved, SavedExchange, warn_of_another_rank
from hvd_compress.reduction.exchange import VectorSteps, settle
from hvd_compress.reduction.rows import Rows, SparseRows, sparse_rows
from hvd_compress.reduction.settings import Settings
from hvd_compress.reduction.stats import Stats, stats_of
from hvd_compress.transports import Peers

E = TypeVar("E", bound=VectorSteps)

_counts: defaultdict[Any, Iterator[int]] = defaultdict(itertools.count)
_counts_of_transports: WeakKeyDictionary[Any, Iterator[int]] = WeakKeyDictionary()


def numbered_prefix(where: Any, transport: Any = None) -> str:
    """Return what begins the names of a reducer's collectives: each worker must make as many there, in the same order.

    Args:
        where: the number of a process set, or what else names a group of workers.
        transport: the one that the reducer is given, if it is given one; others do not count.
    """
    count = _counts[where] if transport is None else _counts_of_transports.setdefault(transport, itertools.count())
    return f"hvd_compress.{where}.{next(count)}"


class Reducer(Generic[E]):
    """Averages gradients over workers: all that the frameworks' reducers share.

    A framework's reducer makes exchanges (`new_exchange`), collects gradients in vectors and launches them, and gives
    the means back. In the first step, and in the first after `change`, the workers `agree`, and the gradients are
    divided into buckets by a `plan`. `finish` ends a step.

    Args:
        settings: what the user said.
        transport: who carries the collectives.
        prefix: begins the names of all collectives; the same on all workers, and of no other reducer.

    Attributes:
        agreed: whether the workers have compared their settings, and so may follow the plan.
        exchanges: one a bucket, once they are `planned`.
        rows: those of sparse gradients, by the parameter's key.
        steps: that were taken.
        carried: what former compressors have not sent, until a step with it is committed.
        ops: the array operations of `carried`, and of what is saved.
    """

    ops: Ops

    def __init__(self, settings: Settings, transport: Any, prefix: str) -> None:
        self.settings, self.transport, self.prefix = settings, transport, prefix
        self.exchanges: list[E] = []
        self.rows: dict[str, E] = {}
        self.planned = self.agreed = False
        self.steps = 0
        self.carried: Carried = {}
        self._left_plan: list[tuple[str, str]] = []  # the first collectives of a plan that was given up
        self._waiting: Saved | None = None  # a state that was loaded before the plan
        self._seconds_before = 0.0  # in compressors that were replaced

    @property
    def peers(self) -> Peers:
        """The workers of the job."""
        peers: Peers = self.transport
        return peers

    @property
    def compressor(self) -> Compressor:
        """What all gradients are exchanged with that no rule matches."""
        compressor: Compressor = self.settings.compression
        return compressor

    @property
    def all(self) -> list[E]:
        """All exchanges."""
        return [*self.exchanges, *self.rows.values()]

    # --- what a framework adds

    def carried_here(self) -> list[E]:
        """Return the exchanges whose collectives the transport carries, under their names."""
        return self.all

    def new_exchange(
        self, compressor: Compressor, layout: Layout, *, name: str, dtype: str, device: str, rows: bool
    ) -> E:
        """Return the exchange of a bucket, or of the rows of a parameter's sparse gradients.

        Args:
            compressor: what to exchange it with.
            layout: the parameters in it.
            name: of its collectives.
            dtype: of the vector and the mean.
            device: where they lie.
            rows: whether it exchanges `Rows`.
        """
        raise NotImplementedError

    def exported(self, array: Array, exchange: E) -> Array:
        """Return an array of an exchange as `Saved` and `carried` have it."""
        return array

    def imported(self, array: Array, exchange: E) -> Array:
        """Return an array of `Saved` or `carried` as an exchange has it: on its device."""
        return array

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The parameters' shapes, by key."""
        raise NotImplementedError

    @property
    def coordinates(self) -> int:
        """The number of coordinates of all gradients of a step."""
        return sum(map(math.prod, self.shapes.values()))

    @property
    def communication_seconds(self) -> float:
        """The time spent in waiting for collectives since construction."""
        raise NotImplementedError

    # --- before the first exchange

    def agree(
        self, gradients: Sequence[Gradient], described: Mapping[str, Any], sparse: Mapping[str, int] | None = None
    ) -> dict[str, int]:
        """Compare what the workers say of themselves.

        Args:
            gradients: of all parameters, in the model's order.
            described: what else must be the same on all workers, as JSON can hold it.
            sparse: the sparse axes of those that have turned out to be sparse here, by key.

        Returns:
            the sparse axes of those that have turned out to be sparse on any worker.

        Raises:
            WorkersDisagree: if the workers differ in version, settings or model, or not all gave up the last plan.
        """
        if self._left_plan and not self.peers.all_have_left(self._left_plan):
            raise WorkersDisagree("the workers disagree on a change of compression: not all called set_compression()")
        self._left_plan = []
        layout = Layout.of((gradient.key, gradient.shape) for gradient in gradients)
        description = {**describe(layout), **self.settings.described(), **described}
        found: dict[str, int] = {}
        for theirs in agree(self.peers, description, f"{self.prefix}.agreement", dict(sparse or {})):
            found |= theirs
        self.agreed = True
        return found

    def plan(self, gradients: Sequence[Gradient], apart: Collection[str] = ()) -> None:
        """Make the exchanges of all gradients; those whose keys are `apart` exchange rows."""
        together = [gradient for gradient in gradients if gradient.key not in apart]
        self.exchanges = [self._bucket_exchange(bucket) for bucket in self.divide(together)]
        self.rows = {g.key: self._rows_exchange(g) for g in gradients if g.key in apart}
        self.planned = True
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            self._load_exchanges(waiting)

    def divide(self, gradients: Sequence[Gradient]) -> list[Bucket]:
        """Return the buckets of dense gradients."""
        return make_plan(
            gradients,
            self.compressor,
            self.settings.rules,
            bucket_bytes=self.settings.bucket_bytes,
            dense_below=self.settings.dense_below,
        )

    def _bucket_exchange(self, bucket: Bucket) -> E:
        name = f"{self.prefix}.{bucket.name}"
        where = {"dtype": bucket.dtype, "device": bucket.device}
        return self.new_exchange(bucket.compressor, bucket.layout, name=name, rows=False, **where)

    def _rows_exchange(self, gradient: Gradient) -> E:
        asked = wanted(gradient, self.compressor, self.settings.dense_below, self.settings.rules)
        compressor: SparseRows = sparse_rows(gradient.name, asked)
        layout = Layout.of([(gradient.key, gradient.shape)])
        where = {"dtype": gradient.dtype, "device": gradient.device}
        return self.new_exchange(compressor, layout, name=f"{self.prefix}.rows.{gradient.key}", rows=True, **where)

    # --- a step

    def with_carried(self, exchange: E, vector: Array | Rows) -> Array | Rows:
        """Return a vector, which may be overwritten, with what former compressors have not sent of it."""
        names = [p.name for p in exchange.layout.parameters if p.name in self.carried]
        if not names:
            return vector
        carried = {name: self._moved(self.carried[name], exchange, self.imported) for name in names}
        return add_carried(exchange.ops, vector, exchange.layout, carried)

    def finish(self, exchanges: Sequence[E] | None = None) -> list[Any]:
        """End a step of some exchanges (None: of all), which are finished, and return their means in their order."""
        ended = self.all if exchanges is None else exchanges
        finite, means = settle(ended)
        if finite and self.carried:
            for exchange in ended:
                for place in exchange.layout.parameters:
                    self.carried.pop(place.name, None)
        self.steps += 1
        return means

    def _moved(self, part: Array | Rows, exchange: E, move: Callable[[Array, E], Array]) -> Array | Rows:
        if isinstance(part, Rows):
            return Rows(move(part.indices, exchange), move(part.values, exchange), part.height)
        return move(part, exchange)

    # --- another compressor

    def change(self, settings: Settings) -> None:
        """Give up the plan; the next `plan` is made with other settings, and what was not sent is carried over."""
        # A parameter never has both: what is carried is gone once the new compressors have committed a residual.
        if self._waiting is not None:
            self.carried.update(self._residuals_in(self._waiting))
        self.carried.update(self._residuals())
        self._seconds_before += sum(exchange.compression_seconds for exchange in self.all)
        if self.agreed:  # else nobody has followed this plan
            self._left_plan = [(e.next_name, e.compressor.collectives[0]) for e in self.carried_here() if e.layout.size]
        self.settings = settings
        self.exchanges, self.rows = [], {}
        self.planned = self.agreed = False
        self._waiting = None

    def _residuals(self) -> Carried:
        """Return what the exchanges have not sent, by parameter."""
        return {
            name: self._moved(part, exchange, self.exported)
            for exchange in self.all
            for name, part in left_over(exchange)
        }

    def _residuals_in(self, saved: Saved) -> Carried:
        """Return what this worker had not sent when it saved a state, by parameter."""
        found: Carried = {}
        for parameters, state, _ in saved.exchanges:
            if state["rank"] == self.peers.rank and "residual" in state["local"]:
                found.update(cut(Layout.of((name, self.shapes[name]) for name in parameters), state["local"]))
        return found

    # --- checkpoints and statistics

    def saved(self) -> Saved:
        """Return the state, with copies of all arrays but the carried ones."""
        saved = Saved.empty(self.settings, self.peers.rank)
        saved.steps, saved.carried = self.steps, dict(self.carried)
        saved.exchanges = [
            SavedExchange([p.name for p in exchange.layout.parameters], self._state(exchange), rows)
            for rows, exchanges in ((False, self.exchanges), (True, self.rows.values()))
            for exchange in exchanges
        ]
        if self._waiting is not None:
            saved.exchanges = self._waiting.exchanges
        return saved

    def _state(self, exchange: E) -> dict[str, Any]:
        return _each_array(exchange.state.state_dict(), lambda array: self.exported(array, exchange))

    def load(self, saved: Saved, stacklevel: int = 4) -> None:
        """Take over a state; of another rank's, what belongs to that rank alone is left out, with a warning.

        Raises:
            ValueError: if it belongs to other buckets.
        """
        if self.planned:
            self._load_exchanges(saved)
        else:
            self._waiting = saved
        self.steps = saved.steps
        self.carried = dict(saved.carried) if saved.rank == self.peers.rank else {}
        if not saved.is_of(self.peers.rank):
            warn_of_another_rank(stacklevel)

    def _load_exchanges(self, saved: Saved) -> None:
        dense, sparse = saved.states_of([[p.name for p in e.layout.parameters] for e in self.exchanges], self.rows)
        for exchange in self.all:
            exchange.abandon()
            exchange.state.reset()
        found = [*zip(self.exchanges, dense, strict=False), *((self.rows[key], state) for key, state in sparse.items())]
        for exchange, state in found:
            exchange.state.load_state_dict(_each_array(state, partial(self.imported, exchange=exchange)))

    def stats(self) -> Stats:
        """Return what was sent and how long it took, since construction (see `hvd_compress.reduction.stats.Stats`)."""
        return stats_of(
            self.peers.traffic,
            steps=self.steps,
            coordinates=self.coordinates,
            compression=self._seconds_before + sum(exchange.compression_seconds for exchange in self.all),
            communication=self.communication_seconds,
            residual=norm(self.ops, self.carried | self._residuals()),
        )


def _each_array(state: Mapping[str, Any], move: Callable[[Array], Array]) -> dict[str, Any]:
    """Return a saved state with each of its arrays moved."""
    stores = {kind: {name: move(array) for name, array in state[kind].items()} for kind in ("shared", "local")}
    return {**state, **stores}
