"""From the gradients of a model's variables to their compressed means, as nodes of a graph."""

from __future__ import annotations

import itertools
import math
import weakref
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from hvd_compress.compressors import Compressor
from hvd_compress.compressors.named import as_compressor
from hvd_compress.ops.layout import Layout
from hvd_compress.reduction.agreement import WorkersDisagree, check_agreement, describe
from hvd_compress.reduction.buckets import Rule, make_plan, wanted
from hvd_compress.reduction.rows import sparse_rows
from hvd_compress.reduction.settings import as_rules
from hvd_compress.tensorflow.exchange import GraphExchange, RowsExchange
from hvd_compress.tensorflow.saved import SavedState
from hvd_compress.tensorflow.variables import Variable, named
from hvd_compress.transports import WorkerFailed
from hvd_compress.transports.horovod_tensorflow import HorovodTransport, check_op

Tensor = Any
_created: defaultdict[int, Iterator[int]] = defaultdict(itertools.count)


class GradientReducer(SavedState):
    """Averages the gradients of some variables over Horovod's processes.

    In the first step, while its graph is traced, the workers compare what they say of themselves, and the gradients
    are divided into buckets. From then on a step is a part of the graph: it calls each bucket's compressor as soon as
    the bucket's gradients are there, Horovod carries what that gives while others are computed, and at the end all
    states are kept or, if a mean is not finite, left as they were.

    Args:
        variables: those whose gradients are reduced, in the order of the gradients.
        compressor: what to exchange them with.
        rules: exceptions, with compressors.
        process_set: the Horovod processes that take part.
        op, gradient_predivide_factor: see `DistributedGradientTape`.
        sparse_as_dense: exchange sparse gradients as dense ones.
        bucket_bytes, dense_below: see `hvd_compress.reduction.buckets.make_plan`.
        seed: of all random numbers.
    """

    def __init__(
        self,
        variables: Sequence[Variable],
        compressor: Compressor,
        rules: Sequence[Rule],
        process_set: Any,
        *,
        op: int = hvd.Average,
        gradient_predivide_factor: float = 1.0,
        sparse_as_dense: bool = False,
        bucket_bytes: int = 25 * 2**20,
        dense_below: int = 1024,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.variables, self.compressor, self.rules = variables, compressor, rules
        # Keras numbers the names of a process's models; what random numbers and saved states go by does not change.
        self._positions = [str(number) for number in range(len(variables))]
        self.transport = HorovodTransport(process_set)
        self.scale_before = 1.0 / gradient_predivide_factor  # of gradients, and then of means:
        self.scale_after = gradient_predivide_factor if op == hvd.Average else float(self.transport.workers)
        self.sparse_as_dense = sparse_as_dense
        self.bucket_bytes, self.dense_below, self.seed = bucket_bytes, dense_below, seed
        self.prefix = f"hvd_compress.{process_set.process_set_id}.{next(_created[process_set.process_set_id])}"
        self.present: list[bool] = []  # which variables have a gradient, for an optimizer that leaves out the others
        self._before: GradientReducer | None = None  # whose compressor was used before
        self._seconds_before = 0.0
        self._apart: dict[str, str] = {}  # variables in no bucket: what their gradients are, "missing" or "sparse"
        self._function = tf.function(self._nodes, autograph=False, reduce_retracing=True)

    def reduce(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Return the means of gradients; one that is None stays it, and sparse ones are those of all workers.

        Raises:
            WorkersDisagree: in the first step, if the workers differ in version, settings or model.
        """
        if self.transport.workers == 1:
            return list(gradients)
        if self.sparse_as_dense:
            gradients = [tf.convert_to_tensor(g) if isinstance(g, tf.IndexedSlices) else g for g in gradients]
        if not self.planned:
            self._make_plan(gradients)
        if tf.executing_eagerly():
            return list(self._function(list(gradients)))
        return self._nodes(list(gradients))

    def succeed(self, before: GradientReducer) -> None:
        """Go on for another reducer of the same variables, from the next step on, with what it has not sent.

        Raises:
            RuntimeError: if that one has loaded a state and not used it yet.
        """
        if before._waiting is not None:
            raise RuntimeError("set_compression() was called after a state was loaded and before a step was taken")
        self.transport, self.steps = before.transport, before.steps
        self._before = before if before.planned else before._before
        self._seconds_before = before._compression_seconds
        for exchange in before.exchanges:
            exchange.retired = True

    def _nodes(self, gradients: list[Tensor]) -> list[Tensor]:
        given = dict(zip(self._positions, gradients, strict=True))
        arrays = [
            self._begin_rows(exchange, given) if isinstance(exchange, RowsExchange) else self._begin(exchange, given)
            for exchange in self.exchanges
        ]
        for number in range(max((len(exchange.rounds) for exchange in self.exchanges), default=0)):
            for i, exchange in enumerate(self.exchanges):
                if number < len(exchange.rounds):
                    arrays[i] = exchange.proceed(arrays[i][0], number)
        with tf.control_dependencies([part for parts in arrays for part in parts]):
            settled = tf.numpy_function(self._settle, [], tf.bool)
        with tf.control_dependencies([settled]):
            for exchange, parts in zip(self.exchanges, arrays, strict=True):
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
        places = [place for place in exchange.layout.parameters if place.size]
        parts = [self._part(place.size, given[place.name], exchange.dtype) for place in places]
        vector = tf.concat(parts, 0) if len(parts) > 1 else parts[0]
        if self.scale_before != 1:
            vector *= self.scale_before
        return exchange.begin(vector, own=len(parts) > 1)

    def _divided(self, mean: Tensor, exchange: GraphExchange, given: dict[str, Tensor]) -> dict[str, Tensor]:
        mean = mean * self.scale_after if self.scale_after != 1 else mean
        places, means = exchange.layout.parameters, {}
        for place, part in zip(places, tf.split(mean, [place.size for place in places]), strict=True):
            dtype = given[place.name].dtype if given[place.name] is not None else exchange.dtype
            means[place.name] = tf.cast(tf.reshape(part, place.shape), dtype)
        return means

    def _begin_rows(self, exchange: RowsExchange, given: dict[str, Tensor]) -> list[Tensor]:
        place = exchange.layout.parameters[0]
        gradient, variable = given[place.name], self.variables[int(place.name)]
        if gradient is None:
            gradient = tf.IndexedSlices(tf.zeros([0, *place.shape[1:]], variable.dtype), tf.zeros([0], tf.int64))
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
        if gradient is not None:
            indices = tf.cast(indices, gradient.indices.dtype)
        return tf.IndexedSlices(values, indices, tf.constant(variable.shape, indices.dtype))

    def _part(self, size: int, gradient: Tensor, dtype: str) -> Tensor:
        if gradient is None:
            return tf.zeros(size, dtype)
        return tf.cast(tf.reshape(tf.convert_to_tensor(gradient), [-1]), dtype)

    def _settle(self) -> np.bool_:
        errors = [exchange.error for exchange in self.exchanges if exchange.error is not None]
        if errors:
            for exchange in self.exchanges:
                exchange.abandon()
            raise min(errors, key=lambda error: isinstance(error, WorkerFailed))  # one's own first
        # The means are equal on all workers, and so is what they decide here.
        finite = all(exchange.finite for exchange in self.exchanges)
        for exchange in self.exchanges:
            exchange.commit() if finite else exchange.rollback()
        self.steps += 1
        return np.bool_(finite)

    def _make_plan(self, gradients: Sequence[Tensor]) -> None:
        if self._before is not None and not self.transport.all_have_left(
            [(f"{exchange.name}.0", exchange.rounds[0]) for exchange in self._before.exchanges]
        ):
            raise WorkersDisagree("the workers disagree on a change of compression: not all called set_compression()")
        for position, gradient in zip(self._positions, gradients, strict=True):
            if gradient is None:
                self._apart[position] = "missing"
            elif isinstance(gradient, tf.IndexedSlices) and 0 not in self.variables[int(position)].shape:
                self._apart[position] = "sparse"
        layout = Layout.of(zip(self._positions, (v.shape for v in self.variables), strict=True))
        description = {
            **describe(self.compressor, self.seed, layout),
            "rules": [str(rule) for rule in self.rules],
            "dtypes": [f"{position} {v.dtype}" for position, v in zip(self._positions, self.variables, strict=True)],
            "gradients that are missing or sparse": [f"{position}: {kind}" for position, kind in self._apart.items()],
            "scaling of gradients": (self.scale_before, self.scale_after),
            "bucket_bytes": self.bucket_bytes,
            "dense_below": self.dense_below,
        }
        check_agreement(self.transport.gather_object(description, f"{self.prefix}.agreement"))
        positions = {v.name: position for position, v in zip(self._positions, self.variables, strict=True)}
        buckets = make_plan(
            [v.gradient for v in self.variables if positions[v.name] not in self._apart],
            self.compressor,
            self.rules,
            bucket_bytes=self.bucket_bytes,
            dense_below=self.dense_below,
        )
        self.exchanges = [
            GraphExchange(
                bucket.compressor,
                Layout.of((positions[p.name], p.shape) for p in bucket.layout.parameters),
                self.transport,
                dtype=bucket.dtype,
                device=bucket.device,
                name=f"{self.prefix}.{bucket.name}",
                seed=self.seed,
            )
            for bucket in buckets
            if bucket.layout.size
        ]
        sparse = [position for position, kind in self._apart.items() if kind == "sparse"]
        self.exchanges += [self._rows_exchange(position) for position in sparse]
        if self._before is not None:
            self._carry(self._before)
            self._before = None
        self.planned = True
        self.load_what_waits()

    def _carry(self, before: GradientReducer) -> None:
        """Take over what another reducer has not sent, parameter by parameter."""
        left: dict[str, dict[str, Any]] = {}
        for exchange in before.exchanges:
            arrays = {name: exchange.ops.to_numpy(array) for name, array in exchange.left_over.items()}
            for place in exchange.layout.parameters if arrays else ():
                whole = isinstance(exchange, RowsExchange)
                left[place.name] = arrays if whole else {"residual": arrays["residual"][place.slice]}
        for exchange in self.exchanges:
            places = exchange.layout.parameters
            if not any(place.name in left for place in places):
                continue
            if isinstance(exchange, RowsExchange):
                arrays = left[places[0].name]
            else:
                parts = [left[p.name]["residual"] if p.name in left else np.zeros(p.size, np.float32) for p in places]
                arrays = {"residual": np.concatenate(parts)}
            exchange.carried = {name: exchange.ops.from_numpy(array) for name, array in arrays.items()}

    def _rows_exchange(self, position: str) -> RowsExchange:
        v = self.variables[int(position)]
        return RowsExchange(
            sparse_rows(v.name, wanted(v.gradient, self.compressor, self.dense_below, self.rules)),
            Layout.of([(position, v.shape)]),
            self.transport,
            dtype=v.gradient.dtype,
            device=v.device,
            name=f"{self.prefix}.rows.{position}",
            seed=self.seed,
        )

    @property
    def _compression_seconds(self) -> float:
        return self._seconds_before + sum(exchange.compression_seconds for exchange in self.exchanges)

    def stats(self) -> dict[str, Any]:
        """Return what this worker sent since construction, counted at the collectives.

        Keys: ``steps``; ``bytes_sent`` and ``bytes_received`` (the buffers handed to and got from the collectives);
        ``dense_bytes`` (what fp32 gradients would have been); ``ratio`` (dense_bytes / bytes_sent);
        ``compression_seconds`` (in compressors) and ``communication_seconds`` (in which collectives were under way and
        no compressor at work; TensorFlow may have computed gradients meanwhile); ``residual_norm`` (Euclidean, of all
        residuals); ``collectives`` (calls and bytes of each kind: "agreement" is the comparison of settings in the
        first step). All zero with a single worker, who sends nothing.
        """
        present = [v for i, v in zip(self._positions, self.variables, strict=True) if self._apart.get(i) != "missing"]
        dense = 4 * sum(math.prod(v.shape) for v in present) * self.steps
        sent = self.transport.traffic.sent
        exchanges = self._before.exchanges if self._before is not None else self.exchanges
        residuals = [(e.ops, e.left_over["residual"]) for e in exchanges if e.left_over]
        return {
            "steps": self.steps,
            "bytes_sent": sent,
            "bytes_received": self.transport.traffic.received,
            "dense_bytes": dense,
            "ratio": dense / sent if sent else 1.0,
            "compression_seconds": self._compression_seconds,
            "communication_seconds": self.transport.waiting_seconds,
            "residual_norm": sum(ops.norm(residual) ** 2 for ops, residual in residuals) ** 0.5,
            "collectives": {kind: dict(entry) for kind, entry in self.transport.traffic.collectives.items()},
        }


def added(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return the statistics of two reducers of the same gradients, of which each reduces some of the steps."""
    total = {name: value + other[name] for name, value in one.items() if name != "collectives"}
    total["ratio"] = total["dense_bytes"] / total["bytes_sent"] if total["bytes_sent"] else 1.0
    collectives: dict[str, dict[str, int]] = {}
    for stats in (one, other):
        for kind, entry in stats["collectives"].items():
            before = collectives.get(kind, {})
            collectives[kind] = {key: count + before.get(key, 0) for key, count in entry.items()}
    return {**total, "collectives": collectives}


_reducers: dict[Any, GradientReducer] = {}


@dataclass(frozen=True)
class Settings:
    """What a user says about how gradients are to be reduced (see `DistributedGradientTape`), checked."""

    compression: Any
    op: int = hvd.Average
    gradient_predivide_factor: float = 1.0
    process_set: Any = hvd.global_process_set
    sparse_as_dense: bool = False
    bucket_bytes: int = 25 * 2**20
    dense_below: int = 1024
    seed: int = 0
    rules: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        check_op(self.op)
        if self.gradient_predivide_factor != 1.0 and self.op != hvd.Average:
            raise ValueError("gradient_predivide_factor not supported with op != Average")
        if not self.gradient_predivide_factor > 0:
            raise ValueError(f"gradient_predivide_factor must be above 0; got {self.gradient_predivide_factor}")
        if self.bucket_bytes < 1:
            raise ValueError(f"bucket_bytes must be at least 1; got {self.bucket_bytes}")
        if self.dense_below < 0:
            raise ValueError(f"dense_below must be at least 0; got {self.dense_below}")
        object.__setattr__(self, "compression", as_compressor(self.compression))

    @property
    def compressors(self) -> list[Compressor]:
        """All that may be used."""
        return [self.compression, *(rule.compression for rule in as_rules(self.rules, None))]

    def _key(self, variables: Sequence[Any]) -> Any:
        return (
            tuple(map(id, variables)),
            self.compression,
            repr(self.rules),
            self.process_set.process_set_id,
            (self.op, self.gradient_predivide_factor, self.sparse_as_dense),
            (self.bucket_bytes, self.dense_below, self.seed),
        )

    def succeed(self, former: Settings, variables: Sequence[Any]) -> GradientReducer:
        """Return a new reducer of these variables, which goes on for the one of former settings."""
        reducer = self._new_reducer(variables)
        reducer.succeed(former.reducer_of(variables))
        del _reducers[former._key(variables)]
        return self._keep(variables, reducer)

    def reducer_of(self, variables: Sequence[Any]) -> GradientReducer:
        """Return the reducer of these variables, the same one for the same variables and settings."""
        return _reducers.get(self._key(variables)) or self._keep(variables, self._new_reducer(variables))

    def _new_reducer(self, variables: Sequence[Any]) -> GradientReducer:
        found = named(variables)
        return GradientReducer(
            found,
            self.compression,
            as_rules(self.rules, [variable.name for variable in found]),
            self.process_set,
            op=self.op,
            gradient_predivide_factor=self.gradient_predivide_factor,
            sparse_as_dense=self.sparse_as_dense,
            bucket_bytes=self.bucket_bytes,
            dense_below=self.dense_below,
            seed=self.seed,
        )

    def _keep(self, variables: Sequence[Any], reducer: GradientReducer) -> GradientReducer:
        key = self._key(variables)
        _reducers[key] = reducer
        weakref.finalize(variables[0], _reducers.pop, key, None)
        return reducer


def compression_stats(variables: Sequence[Any]) -> dict[str, Any]:
    """Return what this worker sent of the gradients of these variables (see `GradientReducer.stats`).

    Raises:
        LookupError: if no step has been taken with them.
    """
    found = [reducer for key, reducer in _reducers.items() if key[0] == tuple(map(id, variables))]
    if not found:
        raise LookupError(f"no gradients of these {len(variables)} variables have been exchanged")
    return found[-1].stats()
