"""The compressors under Horovod's own tape and optimizers, tensor by tensor."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import tensorflow as tf

from hvd_compress.reduction.buckets import Bucket, Gradient, Rule, one_bucket_each
from hvd_compress.reduction.settings import Settings
from hvd_compress.reduction.stats import Stats
from hvd_compress.tensorflow.exchange import GraphExchange
from hvd_compress.tensorflow.reducer import GraphReducer
from hvd_compress.tensorflow.variables import Variable
from hvd_compress.transports.horovod_tensorflow import HorovodTransport

Tensor = Any
INSTEAD = "hvd_compress.tensorflow.DistributedGradientTape"


class BoundCompression(GraphReducer):
    """A compressor with its state for each of some variables, for Horovod's own tape and optimizers.

    Horovod calls `compress` with a gradient and no name, in the order of the variables: the gradient is that of the
    next one of its shape. If the method is one AllReduce, Horovod carries it. Otherwise its collectives are carried
    here, and Horovod is given an empty tensor. A step's state is committed when the next step begins.
    """

    raises = True
    ends_alone = True

    def __init__(self, variables: Sequence[Variable], settings: Settings) -> None:
        settings.check_each_tensor_alone(INSTEAD)
        super().__init__(variables, settings, HorovodTransport(), "hvd_compress.bound")
        self._factor = self.transport.workers if settings.op == "sum" else 1
        self._next = 0
        self._changes = 0
        self._begins_in: weakref.WeakKeyDictionary[Any, Tensor] = weakref.WeakKeyDictionary()
        self.plan(self.gradients)

    def __hash__(self) -> int:
        # Horovod keeps the graphs of eager programs by their arguments, this among them: a change makes it trace anew.
        return hash((id(self), self._changes))

    def __eq__(self, other: object) -> bool:
        return self is other

    def divide(self, gradients: Sequence[Gradient]) -> list[Bucket]:
        return one_bucket_each(gradients, self.compressor, self.settings.rules, self.settings.dense_below)

    def carried_here(self) -> list[GraphExchange]:
        return [exchange for exchange in self.exchanges if not _summed_by_horovod(exchange)]

    @tf.autograph.experimental.do_not_convert
    def compress(self, tensor: Tensor) -> tuple[Tensor, Any]:
        """Return what Horovod is to sum, and a context for `decompress`.

        Raises:
            ValueError: if no variable has the gradient's shape.
            WorkersDisagree: in the first step, if the workers differ in version, settings or variables.
        """
        if 0 in tensor.shape:
            return tensor, None
        if not self.agreed and not self.names_stay:
            self.compare(goes_on=False)
        exchange = self.exchanges[self._find(tensor)]
        vector = tf.cast(tf.reshape(tensor, [-1]), exchange.dtype)
        with tf.control_dependencies([self._begun()]):
            [array] = exchange.begin(vector, own=False, end_last=self._end_step)
        if _summed_by_horovod(exchange):
            return array, (exchange, tensor, None)
        for number in range(len(exchange.rounds)):
            [array] = exchange.proceed(array, number)
        return tf.zeros(0), (exchange, tensor, array)

    def _begun(self) -> Tensor:
        """Return what comes before all exchanges in a graph."""
        graph = tf.compat.v1.get_default_graph()
        if tf.executing_eagerly() or graph not in self._begins_in:
            self._begins_in[graph] = self.begin_step(self.exchanges)
        return self._begins_in[graph]

    @tf.autograph.experimental.do_not_convert
    def decompress(self, tensor: Tensor, ctx: Any) -> Tensor:
        """Return the mean (or sum) of the decoded gradients."""
        if ctx is None:
            return tensor
        exchange, gradient, mean = ctx
        if mean is None:
            [mean] = exchange.resume(tensor / self._factor if self._factor != 1 else tensor, 0)
        else:
            with tf.control_dependencies([tensor]):
                mean = tf.identity(mean)
        mean = tf.cast(tf.reshape(mean, gradient.shape), gradient.dtype)
        return mean * self._factor if self._factor != 1 else mean

    def set_compression(self, compression: Any, rules: Iterable[Rule | tuple[str, Any]] | None = None) -> None:
        """Use another compressor, with its rules, from the next step on. All workers call it alike, between two steps.

        What residuals hold is added, once, to the next gradients of their variables; all else begins anew. A
        ``tf.function`` that was traced before must be made anew.

        Args:
            compression: as the ``compression`` argument of a tape.
            rules: as in `bind`; the former ones are forgotten.

        Raises:
            ValueError, TypeError: as in `bind`.
        """
        settings = self.settings.with_compression(compression, rules)
        settings.check_each_tensor_alone(INSTEAD)
        self._end_step()
        self.change(settings)
        self._next = 0
        self._changes += 1
        self.plan(self.gradients)

    def compression_stats(self, phases: bool = False, per_bucket: bool = False) -> Stats:
        """Return what this worker sent (see `hvd_compress.reduction.stats.Stats`).

        Horovod's own time for what it carries is in ``communication_seconds``.
        """
        self._end_step()
        return self.stats(phases, per_bucket)

    def serialize(self) -> bytes:
        """As of any reducer, after the end of the last step."""
        self._end_step()
        return super().serialize()

    def _end_step(self) -> None:
        """Keep the last step's state if all its means are finite, as the optimizer saw them."""
        done = [exchange for exchange in self.exchanges if exchange.finished]
        if done:
            self.finish(done)

    def _find(self, tensor: Tensor) -> int:
        shape = tuple(tensor.shape)
        for i in range(len(self.variables)):
            number = (self._next + i) % len(self.variables)
            if self.variables[number].shape == shape:
                self._next = number + 1
                return number
        raise ValueError(
            f"a gradient of shape {shape} belongs to no bound variable: bind() those whose gradients are taken"
        )


def _summed_by_horovod(exchange: GraphExchange) -> bool:
    """Tell whether Horovod carries the one AllReduce of an exchange, under a name of its own."""
    return len(exchange.rounds) == 1 and exchange.rounds[0].op == "mean"
