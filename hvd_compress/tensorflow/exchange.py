"""One vector's steps as nodes of a graph: calls of the compressor, and between them the collectives."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from hvd_compress.compressors import Compressor
from hvd_compress.compressors.base import AllReduce
from hvd_compress.compressors.state import State
from hvd_compress.native import default_floats
from hvd_compress.ops.layout import Layout
from hvd_compress.ops.numpy import NumpyOps
from hvd_compress.ops.tensorflow import Array, TensorFlowOps
from hvd_compress.reduction.exchange import VectorSteps
from hvd_compress.reduction.phases import OTHER, Phases
from hvd_compress.reduction.rows import Rows
from hvd_compress.reduction.step import Step, echo
from hvd_compress.tensorflow.patches import leave_xla
from hvd_compress.transports import LENGTH_BYTES, WorkerFailed, incoming, outgoing
from hvd_compress.transports.horovod_tensorflow import GraphTransport, Round

Tensor = Any
LATE = 1 << 40  # a step after the last that any method begins with
FAILED = bytes.fromhex("f2b81c5e0d974a36a94e6f13c7d2805b")  # begins a payload that tells of an error; drawn at random


class GraphExchange(VectorSteps):
    """The steps of a vector that comes from a TensorFlow graph, and whose mean goes back to it.

    The graph calls Python once before the first collective and once after each: on the CPU with NumPy's arrays in the
    tensors' own memory, elsewhere with tensors. Nobody waits in these calls.

    A graph cannot be left in the middle, for other workers would wait for what is still to come. So after an error,
    here or on another worker, the exchange goes through its collectives with NaN. Then the last call raises the
    `error`, or, unless it `raises`, leaves it to whoever ends the step.

    Args:
        compressor: what to exchange the vector with.
        layout: the parameters in it.
        transport: who carries the collectives.
        dtype: the vector's and the mean's.
        device: where they lie.
        name: of the collectives.
        seed: of the compressor's random numbers.
        phases: where the time goes.
        prepare: what is done to each vector, which it may overwrite if it is told so, before it is compressed.
        raises: whether the last call raises an error of the step.

    Attributes:
        rounds: the collectives of a step; one that needs fewer carries nothing in the others.
        retired: whether another compressor has taken over.
        generation: how often the plan had grown before.
        error: what went wrong in this step.
    """

    def __init__(
        self,
        compressor: Compressor,
        layout: Layout,
        transport: GraphTransport,
        *,
        dtype: str,
        device: str,
        name: str,
        seed: int,
        phases: Phases,
        prepare: Callable[[GraphExchange, Any, bool], tuple[Any, bool]] = lambda exchange, vector, own: (vector, own),
        raises: bool = False,
    ) -> None:
        self.on_cpu = "GPU" not in device.upper()
        ops = NumpyOps() if self.on_cpu else TensorFlowOps(device)
        super().__init__(compressor, layout, ops, transport, name=name, seed=seed, phases=phases)
        self.transport, self.dtype, self.raises = transport, dtype, raises
        self._prepare = prepare
        # PowerSGD's first steps need fewer than the others.
        self._first = max(self._rehearse(self.state.step), self._rehearse(LATE), key=len)
        self.rounds = [step.round for step in self._first]
        self.retired, self.generation = False, 0
        self.error: Exception | None = None
        self._sent: Any = None

    def begin(self, vector: Tensor, own: bool, end_last: Callable[[], None] | None = None) -> list[Tensor]:
        """Return the node whose call starts the step, and which gives what the first collective is to carry.

        Args:
            vector: of shape (layout.size,).
            own: whether nobody else has the vector, so that it may be overwritten.
            end_last: called first if the last step has neither been committed nor rolled back.
        """
        return self._begin([vector], own, end_last)

    def _begin(self, tensors: Sequence[Tensor], own: bool, end_last: Callable[[], None] | None = None) -> list[Tensor]:
        leave_xla()

        def launch(*arrays: Any) -> list[Any]:
            if self.finished and end_last is not None:
                end_last()
            if self.launched:  # the last step was left by an error elsewhere in the graph
                self.abandon()
            if self.retired:
                raise RuntimeError(
                    "this graph was traced before set_compression(), or before workers of an elastic job came or went: "
                    "model.make_train_function(force=True) or model.compile() lets Keras trace it anew, and a new "
                    "tf.function does so for a tape"
                )
            vector, overwrite = self._prepare(self, self._joined(*arrays), own)
            self.launch(vector, overwrite=overwrite)
            return [self._outgoing()]

        return self._call(launch, tensors, 0)

    def proceed(self, array: Tensor, number: int) -> list[Tensor]:
        """Return the nodes of a collective, counted from 0, and of the call after it: see `resume`."""
        return self.resume(self.transport.carry(array, self.rounds[number], f"{self.name}.{number}"), number)

    def resume(self, result: Tensor, number: int) -> list[Tensor]:
        """Return the node of the call after a collective: what the next one is to carry, or the mean."""

        def resume(array: Any) -> list[Any]:
            if self.mean is None:
                collective = self.pending
                assert collective is not None
                self._look_for_failures(array)
                self.transport.traffic.count(collective.kind, self._sent.nbytes, array.nbytes)
                self.feed(incoming(collective, array, self.transport.workers))
            if self.mean is None:
                return [self._outgoing()]
            return self._parts(self.mean) if number + 1 == len(self.rounds) else [self._nothing(number + 1)]

        return self._call(resume, [result], number + 1)

    def _outgoing(self) -> Any:
        assert self.pending is not None
        self._sent = outgoing(self.ops, self.pending)
        return self._sent

    def _nothing(self, number: int) -> Any:
        """Return what a collective carries after the step's last."""
        return self.ops.from_numpy(np.zeros(0, self.rounds[number].dtype))

    def _call(self, function: Callable[..., list[Any]], tensors: Sequence[Tensor], number: int) -> list[Tensor]:
        """Return what a call gives: what collective `number` is to carry, or the mean after the last."""
        last = number == len(self.rounds)
        given = self._signature if last else [tf.TensorSpec([None], self.rounds[number].dtype)]

        def guarded(*arrays: Any) -> list[Any]:
            if number > 0:
                self.phases.arrived(self.line)
            with self.phases.of(OTHER):
                if number == 0:
                    self.phases.vector_came()
                outgoing = attempted(*arrays)
            if not last:
                kind = "allgather" if self.rounds[number].op == "gather" else "allreduce"
                self.phases.started(self.line, number, kind)
            return outgoing

        def attempted(*arrays: Any) -> list[Any]:
            if number == 0:
                self.error = None
            try:
                if self.error is None:
                    with default_floats():
                        return function(*arrays)
            except Exception as error:
                self.error = error
            if last and self.raises:
                assert self.error is not None
                raise self.error
            return self._no_mean() if last else [self._in_place_of(number)]

        dtypes = [part.dtype for part in given]
        if self.on_cpu:
            nodes = tf.numpy_function(guarded, tensors, dtypes)
        else:
            nodes = tf.py_function(lambda *inputs: [a.tensor for a in guarded(*map(Array, inputs))], tensors, dtypes)
        for node, part in zip(nodes, given, strict=True):
            node.set_shape(part.shape)
        return list(nodes)

    # --- between the graph and the compressor

    @property
    def _signature(self) -> list[Any]:
        """The parts of a mean."""
        return [tf.TensorSpec([self.layout.size], self.dtype)]

    def _joined(self, *arrays: Any) -> Any:
        """Return what the compressor takes, of the arrays that come from the graph."""
        return arrays[0]

    def _parts(self, mean: Any) -> list[Any]:
        """Return the arrays that go to the graph."""
        return [mean]

    def _zeros(self) -> Any:
        """Return a vector of zeros, as NumPy's."""
        return np.zeros(self.layout.size, self.dtype)

    # --- errors, and what is known beforehand

    def _no_mean(self) -> list[Any]:
        return [self.ops.from_numpy(np.full(self.layout.size, np.nan, self.dtype))]

    def _in_place_of(self, number: int) -> Any:
        """Return what is carried in place of an array that there is not, because of an error."""
        step = self._first[number]
        if step.round.op == "gather":
            text = f"rank {self.transport.rank} failed with {type(self.error).__name__}: {self.error}".encode()
            data = FAILED + len(text).to_bytes(LENGTH_BYTES, "little") + text
            data += b" " * (len(data) == step.shape[0])  # the length tells that it is no payload
            return self.ops.from_numpy(np.frombuffer(data, np.uint8).copy())
        with suppress(Exception):  # it may fail as the step has
            now = self._rehearse(self.state.step)  # whose lengths a schedule may have changed
            if number >= len(now):
                return self._nothing(number)
            step = now[number]
        filled = np.nan if "float" in step.round.dtype else 0
        return self.ops.from_numpy(np.full(step.shape, filled, step.round.dtype))

    def _look_for_failures(self, array: Any) -> None:
        """Raise WorkerFailed if the gathered bytes tell of an error.

        Payloads of equal length are looked at only if the sum of the lengths is wrong.
        """
        collective = self.pending
        whole = self._sent.nbytes * self.transport.workers
        if isinstance(collective, AllReduce) or (not collective.varying and array.nbytes == whole):  # type: ignore[union-attr]
            return
        texts = []
        for part in self.ops.to_numpy(array).tobytes().split(FAILED)[1:]:
            length = int.from_bytes(part[:LENGTH_BYTES], "little")
            texts.append(part[LENGTH_BYTES : LENGTH_BYTES + length].decode(errors="replace"))
        if texts:
            raise WorkerFailed("; ".join(texts))

    def _rehearse(self, number: int) -> list[_Rehearsed]:
        """Return the collectives of a step, by doing it with a vector of zeros and a state that is left alone."""
        workers = self.transport.workers
        state = State(self.layout, workers=workers)
        state.step = number
        step = Step(self.compressor.at(number), NumpyOps(), self._zeros(), state)
        rehearsed: list[_Rehearsed] = []
        while (collective := step.pending) is not None:
            if isinstance(collective, AllReduce):
                rehearsed.append(_Rehearsed(Round(collective.op, str(collective.array.dtype)), collective.array.shape))
            else:
                rehearsed.append(_Rehearsed(Round("gather", "uint8"), collective.payload.shape))
            step.feed(echo(collective, workers))
        return rehearsed

    def abandon(self) -> None:
        """Drop the step under way, and its error."""
        self.error = None
        super().abandon()


class RowsExchange(GraphExchange):
    """The steps of a sparse gradient's rows: see `hvd_compress.reduction.rows.SparseRows`."""

    def begin_rows(self, indices: Tensor, values: Tensor) -> list[Tensor]:
        """Return the node whose call starts the step, as `begin` does; the mean has as many parts.

        Args:
            indices: int64 of shape (count,), of which some may be the same.
            values: of shape (count, width).
        """
        return self._begin([indices, values], own=False)

    @property
    def _shape(self) -> tuple[int, int]:
        """Height and width."""
        height, *rest = self.layout.parameters[0].shape
        return height, math.prod(rest)

    @property
    def _signature(self) -> list[Any]:
        return [tf.TensorSpec([None], tf.int64), tf.TensorSpec([None, self._shape[1]], self.dtype)]

    def _joined(self, *arrays: Any) -> Rows:
        indices, values = arrays
        return Rows(indices, values, self._shape[0])

    def _parts(self, mean: Rows) -> list[Any]:
        return [mean.indices, mean.values]

    def _zeros(self) -> Rows:
        return Rows(np.zeros(0, np.int64), np.zeros((0, self._shape[1]), self.dtype), self._shape[0])

    def _no_mean(self) -> list[Any]:
        return [self.ops.from_numpy(part) for part in self._parts(self._zeros())]


class _Rehearsed(NamedTuple):
    """A collective, and the shape of what is handed to it."""

    round: Round
    shape: tuple[int, ...]
