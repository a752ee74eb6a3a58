"""The compressors under Horovod's own tape and optimizers, tensor by tensor."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf

from hvd_compress.compressors import Compressor
from hvd_compress.ops.layout import Layout
from hvd_compress.reduction.agreement import check_agreement, describe
from hvd_compress.reduction.buckets import Rule, choose
from hvd_compress.tensorflow.exchange import GraphExchange
from hvd_compress.tensorflow.saved import SavedState
from hvd_compress.tensorflow.variables import Variable
from hvd_compress.transports.horovod_tensorflow import HorovodTransport, check_op

Tensor = Any
_bound = itertools.count()


class BoundCompression(SavedState):
    """A compressor with its state for each of some variables, for Horovod's own tape and optimizers.

    Horovod calls `compress` with a gradient and no name, in the order of the variables: the gradient is that of the
    next one of its shape. If the method is one AllReduce, Horovod carries it. Otherwise its collectives are carried
    here, and Horovod is given an empty tensor. A step's state is kept or given up when the next one begins.
    """

    def __init__(
        self,
        compressor: Compressor,
        rules: Sequence[Rule],
        variables: Sequence[Variable],
        op: int,
        dense_below: int,
        seed: int,
    ) -> None:
        super().__init__()
        check_op(op)
        self.compressor, self.rules, self.variables = compressor, rules, variables
        self.transport = HorovodTransport()
        self._factor = self.transport.workers if op == hvd.Sum else 1
        prefix = f"hvd_compress.bound.{next(_bound)}"
        layout = Layout.of((str(number), v.shape) for number, v in enumerate(variables))
        for number, v in enumerate(variables):
            chosen = choose(v.gradient, compressor, dense_below, rules)
            exchange = GraphExchange(
                chosen,
                Layout.of([(str(number), v.shape)]),
                self.transport,
                dtype=v.gradient.dtype if chosen.keeps_dtype else "float32",
                device=v.device,
                name=f"{prefix}.{number}",
                seed=seed,
                raises=True,
            )
            self.exchanges.append(exchange)
        self.planned = True
        self._next = 0
        self._agreed = False
        self._agreement = f"{prefix}.agreement"
        self._description = {
            **describe(compressor, seed, layout),
            "rules": [str(rule) for rule in rules],
            "op": op,
            "dense_below": dense_below,
        }

    def compress(self, tensor: Tensor) -> tuple[Tensor, Any]:
        """Return what Horovod is to sum, and a context for `decompress`.

        Raises:
            ValueError: if no variable has the gradient's shape.
            WorkersDisagree: in the first step, if the workers differ in version, settings or variables.
        """
        if 0 in tensor.shape:
            return tensor, None
        if not self._agreed:
            check_agreement(self.transport.gather_object(self._description, self._agreement))
            self._agreed = True
        exchange = self.exchanges[self._find(tensor)]
        vector = tf.cast(tf.reshape(tensor, [-1]), exchange.dtype)
        [array] = exchange.begin(vector, own=False, end_last=self._end_step)
        if len(exchange.rounds) == 1 and exchange.rounds[0].op == "mean":
            return array, (exchange, tensor, None)
        for number in range(len(exchange.rounds)):
            [array] = exchange.proceed(array, number)
        return tf.zeros(0), (exchange, tensor, array)

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

    def compression_stats(self) -> dict[str, Any]:
        """Return what this worker sent, with some of the keys of `GradientReducer.stats`."""
        traffic = self.transport.traffic
        return {
            "bytes_sent": traffic.sent,
            "bytes_received": traffic.received,
            "compression_seconds": sum(exchange.compression_seconds for exchange in self.exchanges),
            "collectives": {kind: dict(entry) for kind, entry in traffic.collectives.items()},
        }

    def serialize(self) -> bytes:
        """As of any `SavedState`, after the end of the last step."""
        self._end_step()
        return super().serialize()

    def _end_step(self) -> None:
        """Keep the last step's state if all its means are finite, as the optimizer saw them."""
        done = [exchange for exchange in self.exchanges if exchange.finished]
        finite = all(exchange.finite for exchange in done)
        for exchange in done:
            exchange.commit() if finite else exchange.rollback()
        self.steps += bool(done)

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
