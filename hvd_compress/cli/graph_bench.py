"""The compressors' benchmark in TensorFlow graphs."""

from __future__ import annotations

import time
from typing import Any

from hvd_compress.cli.clock import Clock
from hvd_compress.cli.compressor_bench import CompressorBench
from hvd_compress.compressors import Compressor
from hvd_compress.compressors.state import State
from hvd_compress.ops import Array


class GraphBench(CompressorBench):
    """Times steps that are TensorFlow graphs: encoding ends with the graph's first call of Python, decoding follows.

    The times include what else such a step does: the check for non-finite values, the start of the graph, and the
    calls between TensorFlow and Python.
    """

    def __init__(self, framework: str, size: int, threads: int | None, repetitions: int, device: str = "cpu") -> None:
        import horovod.tensorflow as hvd
        import tensorflow as tf

        hvd.init()
        super().__init__(framework, size, threads, repetitions, device)
        tf.config.threading.set_intra_op_parallelism_threads(self.threads)
        self._tensorflow = tf
        self._graphs: dict[Any, tuple[Any, Any, list[float]]] = {}

    def _step(self, compressor: Compressor, state: State, encode: Clock, decode: Clock) -> int:
        if (compressor, state) not in self._graphs:
            self._graphs[compressor, state] = self._graph(compressor, state)
        exchange, graph, ends = self._graphs[compressor, state]
        vector, sent = self._tensorflow.convert_to_tensor(self.ops.copy(self.vector)), exchange.transport.traffic.sent
        ends.clear()
        began = time.perf_counter()
        graph(vector)
        ended = time.perf_counter()
        encode.seconds.append(ends[0] - began)
        decode.seconds.append(ended - ends[0])
        exchange.commit()
        return exchange.transport.traffic.sent - sent

    def _graph(self, compressor: Compressor, state: State) -> tuple[Any, Any, list[float]]:
        """Return an exchange, the graph of its step, in which each collective returns its own input, and a list.

        The list is given the times at which the calls of a step ended.
        """
        from hvd_compress.reduction.phases import Phases
        from hvd_compress.tensorflow.exchange import GraphExchange
        from hvd_compress.transports.horovod_tensorflow import HorovodTransport

        ends: list[float] = []

        class Ends(Phases):
            def started(self, exchange: str, number: int, kind: str) -> None:
                super().started(exchange, number, kind)
                ends.append(time.perf_counter())

        exchange = GraphExchange(
            compressor,
            self.layout,
            HorovodTransport(),
            dtype="float32",
            device="CPU:0",
            name="bench",
            seed=0,
            phases=Ends(),
        )
        exchange.state = state

        def step(vector: Array) -> Array:
            [array] = exchange.begin(vector, own=True)
            for number in range(len(exchange.rounds)):
                [array] = exchange.resume(array, number)
            return array

        return exchange, self._tensorflow.function(step, autograph=False), ends
