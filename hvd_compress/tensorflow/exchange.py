"""One vector's step as nodes of a graph: calls of the compressor, and between them the collectives."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from hvd_compress.compressors import Compressor
from hvd_compress.compressors.base import AllReduce, Collective
from hvd_compress.compressors.state import State
from hvd_compress.native import default_floats
from hvd_compress.ops.layout import Layout
from hvd_compress.ops.numpy import NumpyOps
from hvd_compress.ops.tensorflow import Array, TensorFlowOps
from hvd_compress.reduction.exchange import Exchange
from hvd_compress.reduction.rows import Rows
from hvd_compress.tensorflow.xla import leave_xla
from hvd_compress.transports import LENGTH_BYTES, WorkerFailed
from hvd_compress.transports.carrier import Carrier
from hvd_compress.transports.horovod_tensorflow import HorovodTransport, Round

Tensor = Any
FAILED = bytes.fromhex("f2b81c5e0d974a36a94e6f13c7d2805b")  # begins a payload that tells of an error; drawn at random


class GraphExchange(Exchange):
    """An exchange whose vector comes from a TensorFlow graph, and whose mean goes back to it.

    The graph calls Python once before the first collective and once after each: on the CPU with NumPy's arrays in the
    tensors' own memory, elsewhere with tensors. Nobody waits in these calls.

    A graph cannot be left in the middle, for other workers would wait for what is still to come. So after an error,
    here or on another worker, the exchange goes through its collectives with NaN. Then the last call raises the
    `error`, or, unless it `raises`, leaves it to whoever ends the step.

    Attributes:
        dtype: the vector's and the mean's.
        rounds: the collectives of a step.
        carried: arrays, by name, of what another compressor has not sent: added to the next vector until a step with it
            is committed.
        retired: whether another compressor has taken over.
        error: what went wrong in this step.
    """

    def __init__(
        self,
        compressor: Compressor,
        layout: Layout,
        transport: HorovodTransport,
        *,
        dtype: str,
        device: str,
        name: str,
        seed: int,
        raises: bool = False,
    ) -> None:
        self.on_cpu = "GPU" not in device.upper()
        ops = NumpyOps() if self.on_cpu else TensorFlowOps(device)
        self.carrier = Carrier(ops, transport.rank, transport.workers, transport.traffic)
        super().__init__(compressor, layout, ops, self.carrier, name=name, seed=seed)
        self.horovod, self.dtype, self.raises = transport, dtype, raises
        self._first = self._rehearse()
        self.rounds = [step.round for step in self._first]
        self.carried: dict[str, Any] = {}
        self.retired = False
        self.error: Exception | None = None

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
                    "this graph was traced before set_compression(): model.make_train_function(force=True) or "
                    "model.compile() lets Keras trace it anew"
                )
            vector = self._joined(*arrays)
            if self.carried:
                vector = self._with_carried(vector)
            self.launch(vector, overwrite=own or bool(self.carried))
            return [self.carrier.array]

        return self._call(launch, tensors, 0)

    def proceed(self, array: Tensor, number: int) -> list[Tensor]:
        """Return the nodes of a collective, counted from 0, and of the call after it: see `resume`."""
        return self.resume(self.horovod.carry(array, self.rounds[number], f"{self.name}.{number}"), number)

    def resume(self, result: Tensor, number: int) -> list[Tensor]:
        """Return the node of the call after a collective: what the next one is to carry, or the mean."""

        def resume(array: Any) -> list[Any]:
            self._look_for_failures(array)
            self.carrier.result = array
            self.advance()
            return [self.carrier.array] if self.mean is None else self._parts(self.mean)

        return self._call(resume, [result], number + 1)

    def _call(self, function: Callable[..., list[Any]], tensors: Sequence[Tensor], number: int) -> list[Tensor]:
        """Return what a call gives: what collective `number` is to carry, or the mean after the last."""
        last = number == len(self.rounds)
        given = self._signature if last else [tf.TensorSpec([None], self.rounds[number].dtype)]

        def guarded(*arrays: Any) -> list[Any]:
            self.horovod.enters(brings=int(number > 0))
            try:
                return attempted(*arrays)
            finally:
                self.horovod.leaves(takes=int(not last))

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

    def _with_carried(self, vector: Any) -> Any:
        """Return the vector, in memory of its own, with what is carried."""
        return self.ops.add(self.ops.copy(vector), self.carried["residual"])

    @property
    def left_over(self) -> dict[str, Any]:
        """What was not sent, arrays by name: that of the compressor, or what is still carried."""
        kept = self.state.local.kept
        return {name: kept[name] for name in ("residual", "rows") if name in kept} or self.carried

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
            text = f"rank {self.horovod.rank} failed with {type(self.error).__name__}: {self.error}".encode()
            data = FAILED + len(text).to_bytes(LENGTH_BYTES, "little") + text
            data += b" " * (len(data) == step.shape[0])  # the length tells that it is no payload
            return self.ops.from_numpy(np.frombuffer(data, np.uint8).copy())
        with suppress(Exception):  # it may fail as the step has
            step = self._rehearse()[number]  # whose length a schedule may have changed
        filled = np.nan if "float" in step.round.dtype else 0
        return self.ops.from_numpy(np.full(step.shape, filled, step.round.dtype))

    def _look_for_failures(self, array: Any) -> None:
        """Raise WorkerFailed if the gathered bytes tell of an error.

        Payloads of equal length are looked at only if the sum of the lengths is wrong.
        """
        collective: Collective = self._handle
        whole = self.carrier.array.nbytes * self.horovod.workers
        if isinstance(collective, AllReduce) or (not collective.varying and array.nbytes == whole):
            return
        texts = []
        for part in self.ops.to_numpy(array).tobytes().split(FAILED)[1:]:
            length = int.from_bytes(part[:LENGTH_BYTES], "little")
            texts.append(part[LENGTH_BYTES : LENGTH_BYTES + length].decode(errors="replace"))
        if texts:
            raise WorkerFailed("; ".join(texts))

    def _rehearse(self) -> list[_Rehearsed]:
        """Return the collectives of this step, by doing it with a vector of zeros and a state that is left alone."""
        vector, state = self._zeros(), State(self.layout, workers=self.horovod.workers)
        compressor, ops = self.compressor.at(self.state.step), NumpyOps()
        generator, answer = compressor.reduce(ops, vector, state), None
        steps: list[_Rehearsed] = []
        while True:
            try:
                collective = generator.send(answer)
            except StopIteration:
                return steps
            if isinstance(collective, AllReduce):
                answer = collective.array.copy()
                steps.append(_Rehearsed(Round(collective.op, str(answer.dtype)), answer.shape))
            else:
                answer = [collective.payload] * self.horovod.workers
                steps.append(_Rehearsed(Round("gather", "uint8"), collective.payload.shape))

    def commit(self) -> Any:
        """As of any exchange; what was carried has been sent, or is left over anew."""
        self.carried = {}
        return super().commit()

    def abandon(self) -> None:
        """Drop the step under way, and its error."""
        self.error = None
        super().abandon()


class RowsExchange(GraphExchange):
    """That of a sparse gradient's rows: see `hvd_compress.reduction.rows.SparseRows`."""

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

    def _with_carried(self, vector: Rows) -> Rows:
        width = vector.values.shape[1]
        values = self.ops.concat([self.ops.flatten(vector.values), self.ops.cast(self.carried["residual"], self.dtype)])
        indices = self.ops.concat([vector.indices, self.carried["rows"]])
        return Rows(indices, values.reshape(indices.shape[0], width), vector.height)

    def _zeros(self) -> Rows:
        return Rows(np.zeros(0, np.int64), np.zeros((0, self._shape[1]), self.dtype), self._shape[0])

    def _no_mean(self) -> list[Any]:
        return [self.ops.from_numpy(part) for part in self._parts(self._zeros())]


class _Rehearsed(NamedTuple):
    """A collective, and the shape of what is handed to it."""

    round: Round
    shape: tuple[int, ...]
