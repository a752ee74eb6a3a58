"""What reduces a model's gradients, step after step: plan, launch, finish together, roll back together."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, Generic, TypeVar

from hvd_compress.compressors import Compressor, spec
from hvd_compress.ops import Array, Ops
from hvd_compress.ops.layout import Layout
from hvd_compress.reduction.agreement import WorkersDisagree, agree, describe
from hvd_compress.reduction.buckets import Bucket, Gradient, make_plan, wanted
from hvd_compress.reduction.carry import Carried, add_carried, cut, left_over, norm
from hvd_compress.reduction.checkpoint import Saved, SavedExchange, warn_of_another_rank
from hvd_compress.reduction.exchange import VectorSteps
from hvd_compress.reduction.nonfinite import report
from hvd_compress.reduction.phases import OTHER, Phases
from hvd_compress.reduction.rows import Rows, SparseRows, sparse_rows
from hvd_compress.reduction.settings import Settings
from hvd_compress.reduction.shared import most_steps, packed, same, source_of, summary, unpacked
from hvd_compress.reduction.stalls import Address, Progress, watch
from hvd_compress.reduction.stats import Stats, bucket_stats, stats_of
from hvd_compress.transports import Peers

E = TypeVar("E", bound=VectorSteps)

NOT_ALL_CHANGED = (
    "the workers disagree on a change: not all called set_compression() or load_state_dict(), or loaded a checkpoint, "
    "or have a gradient that none has had before"
)
_next_number: defaultdict[str, int] = defaultdict(int)
"""For each channel the lowest number that no reducer of this process has there."""


class Reducer(Generic[E]):
    """Averages gradients over workers: all that the frameworks' reducers share.

    A framework's reducer makes exchanges (`new_exchange`), collects gradients in vectors and launches them, and gives
    the means back. In the first step, and in the first after `change`, the workers `agree`, and the gradients are
    divided into buckets by a `plan`. `finish` ends a step.

    Args:
        settings: what the user said.
        transport: who carries the collectives.
        channel: names the group of workers who meet to agree. When they do, the reducer gets a number that none of
            them has given away: channel and number begin the names of its collectives, whatever else a worker made.

    Attributes:
        prefix: begins the names of all collectives.
        agreed: whether the workers have compared their settings, and so may follow the plan.
        exchanges: one a bucket, once they are `planned`.
        rows: those of sparse gradients, by the parameter's key.
        steps: that were taken.
        nonfinite_steps: in how many of them the means were not finite.
        workers_lost: how many workers have gone, with what they had not sent.
        carried: what former compressors have not sent, until a step with it is committed.
        names_stay: whether the names of collectives are written down somewhere, and cannot change any more.
        ops: the array operations of `carried`, and of what is saved.
        ends_alone: whether a step ends with the next one's beginning, or where one worker alone asks for its state:
            then the others cannot be asked.
        goes_on: tells whether the step under way may still be so, as of `Progress`.
        phases: where the time goes.
    """

    ops: Ops
    ends_alone = False
    goes_on: Callable[[], bool] = staticmethod(lambda: True)
    new_phases: Callable[[], Phases] = Phases

    def __init__(self, settings: Settings, transport: Any, channel: str) -> None:
        self.settings, self.transport, self.channel = settings, transport, channel
        self.prefix = channel
        self._number: int | None = None
        self.exchanges: list[E] = []
        self.rows: dict[str, E] = {}
        self.planned = self.agreed = False
        self.steps = self.nonfinite_steps = self.workers_lost = 0
        self.carried: Carried = {}
        self.names_stay = False
        self._left_plan: list[tuple[str, str]] = []  # the first collectives of a plan that was given up
        self._left_again: bool | None = None  # whether a plan was left once more since all have left it for a choice
        self._waiting: Saved | None = None  # a state that was loaded before the plan
        self._whole = True  # whether the state has all that is this worker's own
        self.progress = Progress(transport.rank, self.goes_on)
        self._told: list[Any] = []  # the summaries of the workers' states, until they have been compared
        self.phases = self.new_phases()

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

    def label(self, key: str) -> str:
        """Return what users call a parameter."""
        return key

    def not_finite(self, exchange: E) -> bool:
        """Tell whether this worker's own gradients, of which the mean is not finite, are not."""
        return exchange.poisoned

    def _ranks_not_finite(self, exchanges: Sequence[E]) -> list[int]:
        """Return the ranks whose own gradients are not finite, as far as this worker knows."""
        own = any(map(self.not_finite, exchanges))
        if self.ends_alone:
            return [self.peers.rank] if own else []
        answers = self.peers.gather_object(own, f"{self.prefix}.not_finite", self.progress.check)
        return [rank for rank, answer in enumerate(answers) if answer]

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The parameters' shapes, by key."""
        raise NotImplementedError

    @property
    def coordinates(self) -> int:
        """The number of coordinates of all gradients of a step."""
        return sum(map(math.prod, self.shapes.values()))

    # --- before the first exchange

    def agree(
        self,
        gradients: Sequence[Gradient],
        described: Mapping[str, Any],
        told: Mapping[str, Any] | None = None,
        error: BaseException | None = None,
    ) -> list[Mapping[str, Any]]:
        """Compare what the workers say of themselves.

        Args:
            gradients: of all parameters, in the model's order.
            described: what else must be the same on all workers, as JSON can hold it.
            told: what else the others are to know of this worker.
            error: why this worker cannot go on, if it cannot: then all raise WorkerFailed.

        Returns:
            what each worker has told, in the order of ranks.

        Raises:
            WorkersDisagree: if the workers differ in version, settings or model, or not all gave up the last plan.
            WorkerFailed: if a worker cannot go on.
        """
        address = watch(self.progress)
        self.progress.wait(self.steps)
        try:
            with self.phases.of(OTHER):
                error = error or self.phases.open_trace(self.peers.world_rank)
                return self._agree_at(address, gradients, described, told, error)
        finally:
            self.progress.pause()

    def _agree_at(
        self,
        address: Address,
        gradients: Sequence[Gradient],
        described: Mapping[str, Any],
        told: Mapping[str, Any] | None,
        error: BaseException | None,
    ) -> list[Mapping[str, Any]]:
        if self._left_plan:
            disagree = WorkersDisagree(NOT_ALL_CHANGED)
            if not self.peers.tells:
                self.progress.refuse(disagree, left=True)
            elif not self.peers.all_have_left(self._left_plan):
                raise disagree
        self._left_plan = []
        layout = Layout.of((gradient.key, gradient.shape) for gradient in gradients)
        description = {**describe(layout), **self.settings.described(), **described}
        own = {
            **(told or {}),
            "address": address,
            "number": self._number,
            "next": _next_number[self.channel],
            "agreements": self.progress.agreements,
            "stays": self.names_stay,
            "state": summary(self.steps, self._states(), self._whole, self.ops.to_numpy),
            "method": [spec(self.compressor), self.settings.chosen],
            "left again": self._left_again,
        }
        self._left_again = None
        answers = agree(self.peers, description, f"{self.channel}.agreement", own, error, self.progress.check)
        self._take_number(answers)
        self.phases.describe({gradient.name: gradient.shape for gradient in gradients})
        addresses = [answer["address"] for answer in answers]
        known = {tuple(address) for address in self.progress.addresses}
        self.workers_lost += len(known - {tuple(address) for address in addresses})
        self.progress.agree(self.prefix, addresses, 1 + max(answer["agreements"] for answer in answers))
        self.agreed = True
        self._told = [answer["state"] for answer in answers]
        if self.settings.automatic:
            self._take_method(answers)
        if self.planned:
            self._compare_states()
        return answers

    def _take_method(self, answers: Sequence[Mapping[str, Any]]) -> None:
        """Use the method of the worker whose state the others would take: of whoever is new, or has lost a choice."""
        if {answer["left again"] for answer in answers} == {False, True}:
            raise WorkersDisagree(NOT_ALL_CHANGED)
        method = answers[most_steps(self._told)]["method"]
        for state, answer in zip(self._told, answers, strict=True):
            if answer["method"][0] != method[0]:
                state.update(common=None, whole=False)  # of another method: nothing of it fits
        self.choose(*method)
        self.agreed, self._left_again = True, None

    def choose(self, method: str, chosen: bool = True) -> None:
        """Use a method of automatic settings from now on, as all workers do; they agree before the next step."""
        settings = self.settings.choosing(method, chosen)
        if settings.compression != self.compressor:
            self._carry_over()
            self._give_up_plan()
        self.settings = settings
        self.compare_again()
        self._left_again = False

    def _take_number(self, answers: Sequence[Mapping[str, Any]]) -> None:
        """Name the collectives by a number that the workers have not given away, unless they have one already."""
        number = answers[0]["number"]
        if number is None or any(answer["number"] != number for answer in answers):
            if stay := [str(rank) for rank, answer in enumerate(answers) if answer["stays"]]:
                raise WorkersDisagree(
                    f"rank {', '.join(stay)}: a graph goes on that was traced with other workers than these, who begin "
                    "anew; make the optimizer, and the function with the tape, anew on all ranks"
                )
            number = max(answer["next"] for answer in answers)
        _next_number[self.channel] = max(_next_number[self.channel], number + 1)
        former, self.prefix, self._number = self.prefix, f"{self.channel}.{number}", number
        self.phases.line = f"{self.prefix}: step"
        for exchange in self.all:
            if exchange.name.startswith(f"{former}."):
                exchange.name = self.prefix + exchange.name.removeprefix(former)

    def _states(self) -> list[dict[str, Any]]:
        """Return what the exchanges keep, or will keep once they are planned; not to be modified."""
        if self._waiting is not None:
            return [entry.state for entry in self._waiting.exchanges]
        return [
            {
                "step": exchange.state.step,
                "shared": {name: self.exported(a, exchange) for name, a in exchange.state.shared.kept.items()},
            }
            for exchange in self.all
        ]

    def once(self, what: str) -> str:
        """Return the name of a collective that there is once between two agreements.

        What a worker that failed has submitted under it, to let the others fail, is in nobody's way after the next one.
        """
        return f"{self.prefix}.{what}{self.progress.agreements}"

    def _compare_states(self) -> None:
        """Take over what all workers must have in common, from one who has it, if it differs."""
        told, self._told = self._told, []
        source, here = source_of(told), self.peers.rank
        if source is not None:
            shared = packed(self._states(), self.ops.to_numpy) if here == source else None
            theirs = self.peers.gather_object(shared, self.once("state"), self.progress.check)[source]
            if not same(told[here], told[source]):
                warnings.warn(
                    f"rank {here} had the compressors' state of step {told[here]['steps']}, and rank {source} that of "
                    f"step {told[source]['steps']}: what all ranks have in common is taken from there, and this "
                    "rank's residual begins at zero. For an exact resumption every rank saves and loads its own state.",
                    stacklevel=5,
                )
                self._take_over(theirs, told[source]["steps"])
        if source is not None or not all(answer["whole"] for answer in told):
            for exchange in self.all:
                for name in exchange.compressor.coupled:
                    exchange.state.shared.forget(name)
                    exchange.state.local.forget(name)
        self._whole = True

    def _take_over(self, told: Sequence[Any], steps: int) -> None:
        def array_of(array: Any, number: int) -> Array:
            return self.imported(self.ops.from_numpy(array), self.all[number])

        for exchange in self.all:
            exchange.state.reset()
        for exchange, (step, shared) in zip(self.all, unpacked(told, array_of), strict=False):
            exchange.state.load_state_dict({"step": step, "rank": self.peers.rank, "shared": shared, "local": {}})
        self.steps, self.carried = steps, {}

    def plan(self, gradients: Sequence[Gradient], apart: Collection[str] = ()) -> None:
        """Make the exchanges of all gradients; those whose keys are `apart` exchange rows."""
        self.exchanges, self.rows = [], {}
        self.extend(gradients, apart)
        self._follow_plan()

    def extend(self, gradients: Sequence[Gradient], apart: Collection[str] = (), part: str = "") -> None:
        """Add the exchanges of further gradients; `part` is what their names have beside those that are there."""
        together = [gradient for gradient in gradients if gradient.key not in apart]
        self.exchanges += [self._bucket_exchange(bucket, part) for bucket in self.divide(together)]
        self.rows |= {g.key: self._rows_exchange(g) for g in gradients if g.key in apart}

    def divide_anew(self, buckets: Sequence[Bucket]) -> None:
        """Divide dense gradients again, on all workers alike. An exchange of the same gradients stays as it is.

        Those of others must be such that any buckets will do: they begin without a state.
        """
        before = {exchange.layout: exchange for exchange in self.exchanges}
        self.exchanges = [before.pop(b.layout, None) or self._bucket_exchange(b, "") for b in buckets]

    def _follow_plan(self) -> None:
        self.planned = True
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            self.carried |= self._load_exchanges(waiting)
        if self._told:
            self._compare_states()

    def divide(self, gradients: Sequence[Gradient]) -> list[Bucket]:
        """Return the buckets of dense gradients."""
        return make_plan(
            gradients,
            self.compressor,
            self.settings.rules,
            bucket_bytes=self.settings.bucket_bytes,
            dense_below=self.settings.dense_below,
        )

    def _bucket_exchange(self, bucket: Bucket, part: str) -> E:
        name = f"{self.prefix}.{part}{bucket.name}"
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

    def finish(
        self, exchanges: Sequence[E] | None = None, nobodys: Collection[str] = (), finite: bool | None = None
    ) -> list[Any]:
        """End a step of some exchanges (None: of all), which are finished, and return their means in their order.

        The means of `nobodys`, the keys of gradients that no worker had, are not applied: what they took from the
        residuals is given back. `finite` tells whether the means are, if that is known.

        Raises:
            NonFiniteGradients: if they are not, and the user has asked for an error.
        """
        ended = self.all if exchanges is None else exchanges
        if finite is None:
            finite = all(exchange.finite for exchange in ended)
        bad = [] if finite else [exchange for exchange in ended if not exchange.finite]
        if finite and nobodys:
            for exchange in ended:
                exchange.withhold(nobodys)
        # The means are equal on all workers, hence so is the decision to keep the states, and it needs no message.
        means = [exchange.commit() if finite else exchange.rollback() for exchange in ended]
        if finite and self.carried:
            for exchange in ended:
                for place in exchange.layout.parameters:
                    if exchange.compressor.gives_back or place.name not in nobodys:
                        self.carried.pop(place.name, None)
        if not finite and nobodys:  # what is not finite may lie at their places alone
            means = [
                replace(mean, values=mean.values * math.nan) if isinstance(mean, Rows) else mean * math.nan
                for mean in means
            ]
        if finite and nobodys:
            for exchange, mean in zip(ended, means, strict=True):
                name = exchange.layout.parameters[0].name if exchange.layout.parameters else ""
                if isinstance(mean, Rows) and name in nobodys and mean.indices.shape[0]:
                    self.carried[name] = self._moved(mean, exchange, self.exported)
        self.steps += 1
        self.progress.end(self.steps)
        self.phases.end_step(self.steps)
        if not finite:
            self._report(bad)
        return means

    def _report(self, bad: Sequence[E]) -> None:
        self.nonfinite_steps += 1
        if self.nonfinite_steps == 1 or self.settings.nonfinite == "error":
            parameters = [self.label(place.name) for exchange in bad for place in exchange.layout.parameters]
            report(self.steps, parameters, self._ranks_not_finite(bad), self.settings.nonfinite)

    def _moved(self, part: Array | Rows, exchange: E, move: Callable[[Array, E], Array]) -> Array | Rows:
        if isinstance(part, Rows):
            return Rows(move(part.indices, exchange), move(part.values, exchange), part.height)
        return move(part, exchange)

    # --- another compressor

    def change(self, settings: Settings) -> None:
        """Give up the plan; the next `plan` is made with other settings, and what was not sent is carried over."""
        self._carry_over()
        self._leave_plan(self.first_collectives())
        self._give_up_plan()
        self.settings = settings

    def _carry_over(self) -> None:
        """Keep what is not sent yet, for the next plan."""
        # A parameter never has both: what is carried is gone once the new compressors have committed a residual.
        if self._waiting is not None:
            self.carried.update(self._residuals_in(self._waiting))
            self._waiting = None
        self.carried.update(self._residuals())

    def _give_up_plan(self) -> None:
        self.exchanges, self.rows = [], {}
        self.planned = self.agreed = False

    def renew(self) -> bool:
        """Begin anew if the workers may be others than before, with the state as it is; tell whether that is so.

        All agree in the next step: who is new takes what all have in common from the others, and what those who are
        gone had not sent is lost.
        """
        before = self.peers.rank
        if not self.peers.renew():
            return False
        saved, rank = self.saved(), self.peers.rank
        own = [
            entry._replace(state={**entry.state, "rank": rank}) if entry.state["rank"] == before else entry
            for entry in saved.exchanges
        ]
        for exchange in self.all:
            exchange.abandon()
        self._give_up_plan()
        self._waiting = replace(saved, exchanges=own) if own else None
        self._whole = saved.is_whole(rank, self.peers.workers)
        self._left_plan, self._told, self._number = [], [], None
        self.progress.rank = rank
        return True

    def compare_again(self) -> None:
        """Let all workers, who call it alike, agree anew before the next step, by the same plan."""
        self.agreed = False

    def _leave_plan(self, first: list[tuple[str, str]]) -> None:
        """Let the workers agree anew before the next step, which would have begun with some collectives.

        Those who begin with them are found out.
        """
        if self.agreed:  # else nobody has followed this plan
            self._left_plan = first
        if self._left_again is not None:
            self._left_again = True
        self.agreed = False

    def first_collectives(self) -> list[tuple[str, str]]:
        """Return names and kinds of the collectives that a worker who follows the plan starts before all others."""
        exchanges = [exchange for exchange in self.carried_here() if exchange.layout.size]
        return [(e.next_name, e.compressor.first_collective(e.state.step)) for e in exchanges]

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
        for entry in saved.exchanges:
            local = entry.state["local"]
            if entry.state["rank"] == self.peers.rank and "residual" in local:
                found.update(cut(Layout.of((name, self.shapes[name]) for name in entry.parameters), local))
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

        Where other parameters were trained when it was saved, residuals are carried over, and all else begins anew. In
        the next step the workers compare their states: what they must have in common is taken from one who has it.

        Raises:
            ValueError: if it belongs to other buckets, or is damaged.
        """
        saved.check(self.shapes, self.ops)
        settings = self.settings.of_saved(saved.compression)
        carried = dict(saved.carried) if saved.rank == self.peers.rank else {}
        first = self.first_collectives()  # of workers who do not load
        fits = settings.compression == self.compressor
        if self.planned and fits:
            carried |= self._load_exchanges(saved)
        else:
            self._waiting = saved
        self._leave_plan(first)
        if not fits:
            for exchange in self.all:
                exchange.abandon()
            self._give_up_plan()
        self.settings = settings
        self._whole = saved.is_whole(self.peers.rank, self.peers.workers)
        self.steps = saved.steps
        self.carried = carried
        if not saved.is_of(self.peers.rank):
            warn_of_another_rank(stacklevel)

    def _load_exchanges(self, saved: Saved) -> Carried:
        """Give the exchanges their states; return what is left of those of other exchanges."""
        kept = [exchange for exchange in self.exchanges if not exchange.compressor.any_bucket]
        any_bucket = {p.name for e in self.exchanges if e not in kept for p in e.layout.parameters}
        saved = replace(saved, exchanges=[e for e in saved.exchanges if not any_bucket.issuperset(e.parameters)])
        buckets = [[p.name for p in exchange.layout.parameters] for exchange in kept]
        trained = {name for entry in saved.exchanges for name in entry.parameters}
        if {*chain(*buckets), *self.rows} != trained <= self.shapes.keys():  # a layer was frozen or thawed since
            left, saved = self._residuals_in(saved), replace(saved, exchanges=[])
        else:
            left = {}
        dense, sparse = saved.states_of(buckets, self.rows)
        for exchange in self.all:
            exchange.abandon()
            exchange.state.reset()
        found = [*zip(kept, dense, strict=False), *((self.rows[key], state) for key, state in sparse.items())]
        for exchange, state in found:
            exchange.state.load_state_dict(_each_array(state, partial(self.imported, exchange=exchange)))
        return left

    def stats(self, phases: bool = False, per_bucket: bool = False) -> Stats:
        """Return what was sent and how long it took, since construction (see `hvd_compress.reduction.stats.Stats`).

        Args:
            phases: whether to tell also where the time goes.
            per_bucket: whether to tell also of each bucket by itself.
        """
        return stats_of(
            self.peers.traffic,
            steps=self.steps,
            coordinates=self.coordinates,
            seconds=self.phases,
            phases=phases,
            residual=norm(self.ops, self.carried | self._residuals()),
            nonfinite_steps=self.nonfinite_steps,
            workers_lost=self.workers_lost,
            buckets=[bucket_stats(exchange, self.label) for exchange in self.all] if per_bucket else None,
        )


def _each_array(state: Mapping[str, Any], move: Callable[[Array], Array]) -> dict[str, Any]:
    """Return a saved state with each of its arrays moved."""
    stores = {kind: {name: move(array) for name, array in state[kind].items()} for kind in ("shared", "local")}
    return {**state, **stores}
