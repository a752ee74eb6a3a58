"""TensorFlow's side of a reducer: tensors in, nodes of a graph out."""

from __future__ import annotations

import math
import sys
import traceback
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf
from tensorflow.python.client import session
from tensorflow.python.eager import execute

from hvd_compress.compressors import Compressor
from hvd_compress.ops.layout import Layout
from hvd_compress.ops.numpy import NumpyOps
from hvd_compress.reduction.agreement import WorkersDisagree
from hvd_compress.reduction.buckets import Bucket, Gradient, Rule
from hvd_compress.reduction.checkpoint import Saved, SavedExchange
from hvd_compress.reduction.groups import number_groups
from hvd_compress.reduction.phases import OTHER
from hvd_compress.reduction.reducer import Reducer
from hvd_compress.reduction.settings import BUCKET_BYTES, DENSE_BELOW, Settings
from hvd_compress.tensorflow.exchange import GraphExchange, RowsExchange
from hvd_compress.tensorflow.saved import read, written
from hvd_compress.tensorflow.variables import Variable, named
from hvd_compress.transports import WorkerFailed
from hvd_compress.transports.horovod import op_name
from hvd_compress.transports.horovod_tensorflow import GraphTransport, HorovodTransport

Tensor = Any
_RUNS_GRAPHS = (execute.__file__, session.__file__)


def _in_a_graph() -> bool:
    """Tell whether a thread runs a function of TensorFlow's: of one that ends with an error reducers do not learn."""
    frames = list(sys._current_frames().values())
    return any(outer.f_code.co_filename in _RUNS_GRAPHS for frame in frames for outer, _ in traceback.walk_stack(frame))


class GraphReducer(Reducer[GraphExchange], tf.train.experimental.PythonState):
    """What is common to TensorFlow's reducers. Its state is part of a ``tf.train.Checkpoint`` that it is in.

    Variables go by their positions, not by names, in layouts and saved states: Keras numbers the names of a process's
    models.

    Args:
        variables: those whose gradients are reduced, in the order of the gradients.
        settings: what the user said.
        transport: who carries the collectives.
        channel: names the group of workers.
    """

    ops = NumpyOps()
    goes_on = staticmethod(_in_a_graph)
    raises = False  # whether an error of a step is raised by the exchange that it is in

    def __init__(
        self, variables: Sequence[Variable], settings: Settings, transport: GraphTransport, channel: str
    ) -> None:
        super().__init__(settings, transport, channel)
        self.variables = variables
        self.positions = [str(number) for number in range(len(variables))]

    def new_exchange(
        self, compressor: Compressor, layout: Layout, *, name: str, dtype: str, device: str, rows: bool
    ) -> GraphExchange:
        return (RowsExchange if rows else GraphExchange)(
            compressor,
            layout,
            self.transport,
            dtype=dtype,
            device=device,
            name=name,
            seed=self.settings.seed,
            phases=self.phases,
            prepare=self._prepared,
            raises=self.raises,
        )

    def _prepared(self, exchange: GraphExchange, vector: Any, own: bool) -> tuple[Any, bool]:
        """Return a vector with what is carried, and whether it may be overwritten."""
        if not any(place.name in self.carried for place in exchange.layout.parameters):
            return vector, own
        if not own and not isinstance(exchange, RowsExchange):
            vector = exchange.ops.copy(vector)
        return self.with_carried(exchange, vector), True

    def label(self, key: str) -> str:
        return self.variables[int(key)].name

    def exported(self, array: Any, exchange: GraphExchange) -> Any:
        return exchange.ops.to_numpy(array)

    def imported(self, array: Any, exchange: GraphExchange) -> Any:
        return exchange.ops.from_numpy(array)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {position: v.shape for position, v in zip(self.positions, self.variables, strict=True)}

    @property
    def gradients(self) -> list[Gradient]:
        """What the plan must know of the variables."""
        groups = self.settings.groups
        pairs = zip(self.positions, self.variables, strict=True)
        return [replace(v.gradient, key=p, group=groups.get(p)) for p, v in pairs]

    @property
    def dtypes(self) -> list[str]:
        """The variables' own dtypes, for the agreement."""
        return [f"{position} {v.dtype}" for position, v in zip(self.positions, self.variables, strict=True)]

    # --- agreement, and what begins a step

    def compare(
        self, goes_on: bool, told: Mapping[str, Any] | None = None, error: BaseException | None = None
    ) -> list[Mapping[str, Any]]:
        """Agree with the other workers; `goes_on` says that this one is in a step of a graph that is traced already."""
        described = {"dtypes": self.dtypes, "whether to go on with a graph that was traced before": goes_on}
        return self.agree(self.gradients, described, told, error)

    def fail(self, error: BaseException) -> None:
        """Tell the other workers, whatever they wait for, that this one cannot go on."""
        if self.transport.workers > 1:
            self._leave_plan(self.first_collectives())
            with suppress(WorkersDisagree, WorkerFailed):
                self.compare(goes_on=False, error=error)

    def begin_step(self, exchanges: Sequence[GraphExchange]) -> Tensor:
        """Return the node that comes before some exchanges, once in a step: there the workers agree, if need be.

        The nodes of several reducers in a graph come one after the other, in the same order on all workers.
        """

        def begins() -> np.bool_:
            with self.phases.of(OTHER):
                self.phases.due = len(exchanges)
                return self._begins(exchanges)

        graph = tf.compat.v1.get_default_graph()
        former = getattr(graph, "hvd_compress_begins", None)
        with tf.control_dependencies([] if former is None else [former]):
            node = tf.numpy_function(begins, [], tf.bool)
        if not tf.executing_eagerly():
            graph.hvd_compress_begins = node
        self.names_stay = True
        return node

    def _begins(self, exchanges: Sequence[GraphExchange]) -> np.bool_:
        self.renew()
        if not self.agreed and not any(exchange.retired for exchange in exchanges):  # who say so themselves
            self.agree_in_step()
        return np.bool_(True)

    def agree_in_step(self) -> None:
        """Agree anew, in a step of a graph that was traced before."""
        self.compare(goes_on=True)

    def _give_up_plan(self) -> None:
        """As of any reducer; a graph that was traced with the exchanges so far is refused from now on."""
        former = self.all
        super()._give_up_plan()
        self.names_stay = False
        for exchange in former:
            exchange.retired = True
            exchange.state.reset()  # graphs keep the exchange, and need its memory no more

    def serialize(self) -> bytes:
        """Return the compressors' state, as NumPy's file of arrays."""
        return written(self.saved())

    def deserialize(self, string_value: bytes) -> None:
        """Take over what `serialize` returned; another worker's residuals are left out, with a warning.

        Raises:
            ValueError: if it belongs to another compression or model.
        """
        self.load(read(string_value, self.settings, self.shapes))


class GradientReducer(GraphReducer):
    """Averages the gradients of some variables.

    In the first step, while its graph is traced, the workers agree, and the gradients are divided into buckets. From
    then on a step is a part of the graph: it calls each bucket's compressor as soon as the bucket's gradients are
    there, collectives are carried while other gradients are computed, and at the end all states are kept or, if a mean
    is not finite, left as they were.

    A gradient that is None on all workers has no part in the plan, and stays None. When it comes up for the first time,
    on any worker, all agree anew, and the plan grows by a generation of exchanges. Graphs that were traced before have
    the former generations alone: from then on the workers tell each other in each step which ones they are in.

    Attributes:
        present: which variables have a gradient, for an optimizer that leaves out the others.
        own: which variables' gradients an optimizer keeps for itself.
        check: raises ValueError if the user must not have some settings; None allows all.
    """

    def __init__(
        self, variables: Sequence[Variable], settings: Settings, transport: GraphTransport, channel: str
    ) -> None:
        super().__init__(variables, settings, transport, channel)
        self.scale_before, self.scale_after = settings.scales(transport.workers)
        self.present: list[bool] = []
        self.own: list[bool] = []
        self.check: Callable[[Settings], None] | None = None
        self._joined: list[dict[str, str]] = []  # each generation's variables: their gradients are "dense" or "sparse"
        self._before: dict[str, str] = {}  # those of a plan that was given up
        self._function = self._new_function()

    @property
    def kinds(self) -> dict[str, str]:
        """Whether gradients are "dense" or "sparse", of all variables that are in the plan."""
        return {key: kind for generation in self._joined for key, kind in generation.items()}

    @property
    def coordinates(self) -> int:
        return sum(math.prod(shape) for key, shape in self.shapes.items() if not self.planned or key in self.kinds)

    def change(self, settings: Settings) -> None:
        """As of any reducer; variables that were in the plan will be in the next one."""
        if self.check is not None:
            self.check(settings)
        super().change(settings)

    def _give_up_plan(self) -> None:
        super()._give_up_plan()
        self._before |= self.kinds
        self._joined = []
        self._function = self._new_function()

    def renew(self) -> bool:
        if not super().renew():
            return False
        self.scale_before, self.scale_after = self.settings.scales(self.transport.workers)
        return True

    def _new_function(self) -> Any:
        return tf.function(self._nodes, autograph=False, reduce_retracing=True)

    def reduce(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Return the means of gradients; one that is None stays it, and sparse ones are those of all workers.

        Raises:
            WorkersDisagree: in the first step, if the workers differ in version, settings or model.
        """
        if self.transport.alone:
            return list(gradients)
        if self.settings.sparse_as_dense:
            gradients = [tf.convert_to_tensor(g) if isinstance(g, tf.IndexedSlices) else g for g in gradients]
        gradients = self.completed(gradients)
        return list(self._function(gradients)) if tf.executing_eagerly() else self._nodes(gradients)

    def completed(self, gradients: Sequence[Tensor], dense: bool = False) -> list[Tensor]:
        """Return the gradients, with zeros in place of those that are None here and in the plan.

        Args:
            gradients: one a variable, or None.
            dense: whether the sparse ones will be dense when they are reduced.

        Raises:
            WorkersDisagree: as `reduce`.
        """
        if self.transport.alone:
            return list(gradients)
        self.renew()
        dense = dense or self.settings.sparse_as_dense
        come = {
            position: "sparse" if isinstance(gradient, tf.IndexedSlices) and not dense and 0 not in shape else "dense"
            for (position, shape), gradient in zip(self.shapes.items(), gradients, strict=True)
            if gradient is not None
        }
        if not self.planned or not come.keys() <= self.kinds.keys():
            self._agree_and_grow({**self._before, **come})
        kinds = self.kinds
        return [
            self._nothing(position, kinds[position]) if gradient is None and position in kinds else gradient
            for position, gradient in zip(self.positions, gradients, strict=True)
        ]

    def _nothing(self, position: str, kind: str) -> Tensor:
        variable = self.variables[int(position)]
        if kind == "dense":
            return tf.zeros(variable.shape, variable.dtype)
        values = tf.zeros([0, *variable.shape[1:]], variable.dtype)
        return tf.IndexedSlices(values, tf.zeros([0], tf.int64), tf.constant(variable.shape, tf.int64))

    # --- the plan

    def _agree_and_grow(self, come: dict[str, str]) -> None:
        joined = _generations(self._waiting) if self._waiting is not None and not self.planned else self._joined
        agreed = self.agreed
        self._leave_plan(self.first_collectives())
        try:
            self._grow(self.compare(goes_on=False, told={"joined": joined, "come": come}))
        except Exception:
            self.agreed = agreed  # if the plan is there, it stays
            self._left_plan = [] if agreed else self._left_plan
            raise

    def _grow(self, answers: Sequence[Mapping[str, Any]]) -> None:
        """Add the generations that other workers have, and one of all variables that none has and some ask for."""
        joined: list[dict[str, str]] = max((list(answer["joined"]) for answer in answers), key=len)
        if any(answer["joined"] != joined[: len(answer["joined"])] for answer in answers):
            raise WorkersDisagree("the workers disagree on which variables had gradients so far")
        known = {key for generation in joined for key in generation}
        new: dict[str, str] = {}
        for answer in answers:
            for key, kind in answer["come"].items():
                if key not in known and new.setdefault(key, kind) != kind:
                    name = self.variables[int(key)].name
                    raise WorkersDisagree(f"the gradient of {name} is sparse on some workers and dense on others")
        if new:
            joined.append(new)
        for number in range(len(self._joined), len(joined)):
            present = [gradient for gradient in self.gradients if gradient.key in joined[number]]
            sparse = [key for key, kind in joined[number].items() if kind == "sparse"]
            former = set(map(id, self.all))
            self.extend(present, sparse, f"{number}." if number else "")
            for exchange in self.all:
                if id(exchange) not in former:
                    exchange.generation = number
        self._joined = joined
        self._function = self._new_function()
        if not self.planned:
            self._follow_plan()

    def follow(self, former: GradientReducer) -> None:
        """Let workers who are still in a former plan, when this one is made, learn that it was given up."""
        if former is not self and former.agreed and not self.planned:
            self._left_plan = former.first_collectives()

    @property
    def _grown(self) -> bool:
        """Whether graphs may differ in their exchanges, or have none."""
        return self.planned and (not self.all or any(exchange.generation for exchange in self.all))

    @property
    def _roll_call(self) -> str:
        return f"{self.prefix}.roll_call"

    def first_collectives(self) -> list[tuple[str, str]]:
        return [(self._roll_call, "allgather")] if self._grown else super().first_collectives()

    def agree_in_step(self) -> None:
        self.compare(goes_on=True, told={"joined": self._joined, "come": {}})

    def _begins(self, exchanges: Sequence[GraphExchange]) -> np.bool_:
        super()._begins(exchanges)
        self.progress.pause()  # of a step that an error elsewhere in the graph has ended
        self.progress.wait(self.steps)
        if self._grown:
            told = self.peers.gather_object(len(exchanges), self._roll_call)
            if len(set(told)) > 1:
                raise WorkersDisagree(
                    "the workers are in graphs of which some were traced before gradients came up that had been None; "
                    "make the function with the tape anew on all ranks, or let all use the same heads in a step"
                )
        return np.bool_(True)

    def divide(self, gradients: Sequence[Gradient]) -> list[Bucket]:
        return [bucket for bucket in super().divide(gradients) if bucket.layout.size]

    def _nodes(self, gradients: list[Tensor]) -> list[Tensor]:
        given = dict(zip(self.positions, gradients, strict=True))
        exchanges = self.all  # this graph's, also when others have replaced them
        with tf.control_dependencies([self.begin_step(exchanges)]):
            arrays = [
                self._begin_rows(e, given) if isinstance(e, RowsExchange) else self._begin(e, given) for e in exchanges
            ]
        for number in range(max((len(exchange.rounds) for exchange in exchanges), default=0)):
            for i, exchange in enumerate(exchanges):
                if number < len(exchange.rounds):
                    arrays[i] = exchange.proceed(arrays[i][0], number)
        with tf.control_dependencies([part for parts in arrays for part in parts]):
            settled = tf.numpy_function(partial(self._settle, exchanges), [], tf.bool)
        with tf.control_dependencies([settled]):
            for exchange, parts in zip(exchanges, arrays, strict=True):
                if isinstance(exchange, RowsExchange):
                    position = exchange.layout.parameters[0].name
                    given[position] = self._slices(parts, self.variables[int(position)], given[position])
                else:
                    given |= self._divided(parts[0], exchange, given)
            return [
                None if gradient is None else tf.nest.map_structure(tf.identity, gradient, expand_composites=True)
                for gradient in given.values()
            ]

    def _begin(self, exchange: GraphExchange, given: dict[str, Tensor]) -> list[Tensor]:
        places = exchange.layout.nonempty
        parts = [tf.reshape(tf.convert_to_tensor(given[place.name]), [-1]) for place in places]
        parts = [tf.cast(part, exchange.dtype) for part in parts]
        vector = tf.concat(parts, 0) if len(parts) > 1 else parts[0]
        if self.scale_before != 1:
            vector *= self.scale_before
        return exchange.begin(vector, own=len(parts) > 1)

    def _divided(self, mean: Tensor, exchange: GraphExchange, given: dict[str, Tensor]) -> dict[str, Tensor]:
        mean = mean * self.scale_after if self.scale_after != 1 else mean
        places, means = exchange.layout.parameters, {}
        for place, part in zip(places, tf.split(mean, [place.size for place in places]), strict=True):
            means[place.name] = tf.cast(tf.reshape(part, place.shape), given[place.name].dtype)
        return means

    def _begin_rows(self, exchange: RowsExchange, given: dict[str, Tensor]) -> list[Tensor]:
        place = exchange.layout.parameters[0]
        gradient, variable = given[place.name], self.variables[int(place.name)]
        if not isinstance(gradient, tf.IndexedSlices):
            raise ValueError(f"the gradient of {variable.name} was sparse in the first step, and is not now")
        values = tf.cast(tf.reshape(gradient.values, [-1, place.size // place.shape[0]]), exchange.dtype)
        if self.scale_before != 1:
            values *= self.scale_before
        return exchange.begin_rows(tf.cast(gradient.indices, tf.int64), values)

    def _slices(self, parts: list[Tensor], variable: Variable, gradient: Any) -> Any:
        indices, values = parts
        values = values * self.scale_after if self.scale_after != 1 else values
        values = tf.cast(tf.reshape(values, [-1, *variable.shape[1:]]), variable.dtype)
        indices = tf.cast(indices, gradient.indices.dtype)
        return tf.IndexedSlices(values, indices, tf.constant(variable.shape, indices.dtype))

    def _settle(self, exchanges: Sequence[GraphExchange]) -> np.bool_:
        errors = [exchange.error for exchange in exchanges if exchange.error is not None]
        if errors:
            for exchange in exchanges:
                exchange.abandon()
            self.progress.pause()
            raise min(errors, key=lambda error: isinstance(error, WorkerFailed))  # one's own first
        with self.phases.of(OTHER):
            self.finish(exchanges)
        return np.bool_(True)

    # --- checkpoints

    def saved(self) -> Saved:
        saved = super().saved()
        if self._waiting is None:
            pairs = zip(saved.exchanges, self.all, strict=True)
            saved.exchanges = [entry._replace(generation=exchange.generation) for entry, exchange in pairs]
        return saved

    def load(self, saved: Saved, stacklevel: int = 5) -> None:
        """As of any reducer; what came up after the state was saved begins anew."""
        if self.planned and saved.exchanges:
            last = max(entry.generation for entry in saved.exchanges)
            anew = {"step": 0, "rank": self.peers.rank, "workers": self.peers.workers, "shared": {}, "local": {}}
            later = [
                SavedExchange([p.name for p in e.layout.parameters], anew, isinstance(e, RowsExchange), e.generation)
                for e in self.all
                if e.generation > last
            ]
            saved = replace(saved, exchanges=[*saved.exchanges, *later])
        super().load(saved, stacklevel)


def _generations(saved: Saved) -> list[dict[str, str]]:
    """Return what the plan that a state was saved with had in each generation; nothing if it does not tell."""
    if any(entry.rows is None for entry in saved.exchanges):
        return []
    generations: list[dict[str, str]] = [
        {} for _ in range(max((e.generation for e in saved.exchanges), default=-1) + 1)
    ]
    for entry in saved.exchanges:
        generations[entry.generation] |= dict.fromkeys(entry.parameters, "sparse" if entry.rows else "dense")
    return generations


# --- the reducers of a process, by what their gradients are of

_reducers: dict[Any, GradientReducer] = {}


def reduction_settings(
    compression: Any,
    op: int = hvd.Average,
    gradient_predivide_factor: float = 1.0,
    sparse_as_dense: bool = False,
    bucket_bytes: int = BUCKET_BYTES,
    dense_below: int = DENSE_BELOW,
    seed: int = 0,
    rules: Iterable[Rule | tuple[str, Any]] | None = None,
    nonfinite: str = "warn",
    backward_passes_per_step: int = 1,
) -> Settings:
    """Return what these arguments of a tape or an optimizer mean, checked as far as it can be without variables."""
    return Settings(
        compression,
        tuple(rules or ()),
        op=op_name(op, "tensorflow"),
        gradient_predivide_factor=gradient_predivide_factor,
        sparse_as_dense=sparse_as_dense,
        bucket_bytes=bucket_bytes,
        dense_below=dense_below,
        seed=seed,
        nonfinite=nonfinite,
        backward_passes_per_step=backward_passes_per_step,
    )


def _grouped(settings: Settings, variables: Sequence[Any], groups: int | list[list[Any]]) -> Settings:
    numbers = number_groups([(str(position), variable) for position, variable in enumerate(variables)], groups)
    return replace(settings, groups=numbers) if numbers else settings


def reducer_of(
    variables: Sequence[Any],
    settings: Settings,
    process_set: Any,
    transport: GraphTransport | None = None,
    groups: int | list[list[Any]] = 0,
) -> GradientReducer:
    """Return the reducer of these variables: the same one for the same variables and settings.

    Args:
        variables: TensorFlow's or Keras's.
        settings: those that the reducer began with; `set_compression` may have changed its compression since.
        process_set: the Horovod processes that take part.
        transport: who carries the collectives instead of Horovod.
        groups: which variables share a bucket, as `as_groups` returns them.
    """
    settings = _grouped(settings, variables, groups)

    def make() -> GradientReducer:
        found = named(variables)
        known = replace(settings, names=tuple(variable.name for variable in found))
        return new_reducer(found, known, process_set, transport)

    key = _key(variables, settings, process_set, transport)
    if key not in _reducers:
        weakref.finalize(variables[0], _reducers.pop, key, None)
    return kept(key, make)


def changed_reducer(
    variables: Sequence[Any],
    former: Settings,
    settings: Settings,
    process_set: Any,
    transport: GraphTransport | None,
    groups: int | list[list[Any]],
) -> GradientReducer:
    """Change the settings of a reducer, which `reducer_of` returns for the new settings from now on."""
    former, settings = _grouped(former, variables, groups), _grouped(settings, variables, groups)
    reducer = reducer_of(variables, former, process_set, transport)
    reducer.change(replace(settings, names=reducer.settings.names))
    _reducers.pop(_key(variables, former, process_set, transport))
    key = _key(variables, settings, process_set, transport)
    weakref.finalize(variables[0], _reducers.pop, key, None)
    _reducers[key] = reducer
    return reducer


def kept(key: Any, make: Callable[[], GradientReducer]) -> GradientReducer:
    """Return the reducer of a key, made when it is first asked for."""
    if key not in _reducers:
        _reducers[key] = make()
    return _reducers[key]


def _key(variables: Sequence[Any], settings: Settings, process_set: Any, transport: GraphTransport | None) -> Any:
    where = process_set.process_set_id if transport is None else id(transport)
    return tuple(map(id, variables)), settings, where


def new_reducer(
    variables: Sequence[Variable], settings: Settings, process_set: Any, transport: GraphTransport | None = None
) -> GradientReducer:
    """Return a reducer, over Horovod unless a transport is given."""
    channel = f"hvd_compress.{process_set.process_set_id if transport is None else 'transport'}"
    return GradientReducer(variables, settings, transport or HorovodTransport(process_set), channel)


def unique(variables: Iterable[Any]) -> list[Any]:
    """Return the variables in their order, each once."""
    return list({id(variable): variable for variable in variables}.values())


def _found(variables: Sequence[Any]) -> GradientReducer:
    reducers = [reducer for key, reducer in _reducers.items() if key[0] == tuple(map(id, unique(variables)))]
    if not reducers:
        raise LookupError(f"no gradients of these {len(variables)} variables have been exchanged")
    return reducers[-1]


def compression_stats(variables: Sequence[Any], phases: bool = False, per_bucket: bool = False) -> dict[str, Any]:
    """Return what this worker sent of the gradients of these variables (see `hvd_compress.reduction.stats.Stats`).

    Args:
        variables: those whose gradients the tape takes, in this order.
        phases: whether to tell also where the time goes.
        per_bucket: whether to tell also of each bucket by itself.

    Raises:
        LookupError: if no step has been taken with them.
    """
    return _found(variables).stats(phases, per_bucket)


def set_compression(
    variables: Sequence[Any], compression: Any, rules: Iterable[Rule | tuple[str, Any]] | None = None
) -> None:
    """Use another compressor for a tape's gradients, with its rules, from the next step on.

    All workers call it alike, between two steps. The tapes that follow are made with the arguments that they had so
    far, and exchange with the new compressor. What residuals hold is added, once, to the next gradients of their
    variables; all else begins anew. A ``tf.function`` that was traced before must be made anew.

    Args:
        variables: those whose gradients the tape takes, in this order.
        compression: as in `DistributedGradientTape`.
        rules: as in `DistributedGradientTape`; the former ones are forgotten.

    Raises:
        LookupError: if no step has been taken with these variables.
        ValueError, TypeError: as in `DistributedGradientTape`.
    """
    reducer = _found(variables)
    reducer.change(reducer.settings.with_compression(compression, rules))
