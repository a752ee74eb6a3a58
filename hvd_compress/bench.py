"""`hvd-compress bench`: what each compressor costs, as a multiple of copying the gradient once."""

from __future__ import annotations

import functools
import json
import math
import os
import statistics
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hvd_compress.compressors import AllGather, Compressor, ErrorFeedback, GatherCompressor, parse
from hvd_compress.compressors.state import State
from hvd_compress.ops import Array, Ops
from hvd_compress.ops.layout import Layout
from hvd_compress.ops.numpy import NumpyOps

SPECS = [
    *("fp16", "bf16", "int8"),
    *("topk", "topk(values=qsgd(bits=4))", "threshold", "randomk", "dgc(ratio=0.01)", "wangni"),
    *("qsgd(bits=2)", "qsgd(bits=4)", "qsgd(bits=8)", "qsgd(bits=4, norm=l2)", "terngrad", "natural", "low_precision"),
    *("signsgd", "ef_signsgd", "onebit", "signum", "powersgd(rank=4)", "sketched_sgd"),
    "sketched_sgd(ratio=0.01, rows=5, columns={columns}, p1=0, p2=1)",  # all is sketched, 1 % selected
]
SCALE = 1e-3 / 2.5758  # of the normal numbers: 1 % of their magnitudes are above 1e-3, the threshold's default
GATHERED = 4
PAUSE = 0.02  # seconds that let a framework's threads go to sleep
KINDS = ("", "_median")


class Clock:
    """Times of one operation, in seconds."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def time(self, run: Callable[[], Any]) -> Any:
        """Run something and note how long it took."""
        began = time.perf_counter()
        result = run()
        self.seconds.append(time.perf_counter() - began)
        return result

    @property
    def least(self) -> float:
        """The shortest time."""
        return min(self.seconds)

    @property
    def median(self) -> float:
        """The median time."""
        return statistics.median(self.seconds)


class Bench:
    """Compressors on a vector of normal numbers, by the same generator that a training step drives.

    The yardstick is one copy between two vectors that the framework made.
    """

    def __init__(self, framework: str, size: int, threads: int | None, repetitions: int) -> None:
        self.size, self.repetitions = size, repetitions
        self.threads = threads or len(os.sched_getaffinity(0))
        self.ops, self._memcpy, empty = _framework(framework, self.threads)
        # Other than a framework's, it leaves no thread behind that spins on a core for a while.
        self._copy = self.ops.kernels.copy if self.ops.kernels else self._memcpy
        self._plain = empty(size), empty(size)
        side = math.isqrt(size)
        self.layout = Layout.of([("matrix", (side, side)), ("rest", (size - side * side,))])
        random = np.random.default_rng(0)
        self.vector = self.ops.from_numpy(random.standard_normal(size, np.float32) * np.float32(SCALE))
        self._buffer = self.ops.copy(self.vector)
        for array in self._plain:
            self._memcpy(array, self.vector)
        self._copies: list[float] = []
        self._check = Clock()

    def run(self, text: str) -> dict[str, Any]:
        """Return the times of the compressor of a spec, in seconds, and the bytes of its payload."""
        compressor = parse(text)
        bare = compressor.bare
        with_feedback = compressor if compressor is not bare else _with_feedback(bare)
        clocks = {name: Clock() for name in ("encode", "decode", "decode4", "bare", "whole")}
        state = State(self.layout)
        memcpy = Clock()
        for _ in range(self.repetitions):
            memcpy.time(lambda: self._memcpy(*self._plain))
        self._copies.append(memcpy.least)
        time.sleep(PAUSE)
        for _ in range(self.repetitions):
            self._check.time(lambda: self.ops.poison(self.vector))
        self._copy(self._buffer, self.vector)
        for _ in range(self.repetitions + 1):  # the first is a warm-up
            sent = self._step(bare, state, clocks["encode"], clocks["decode"])
            clocks["bare"].seconds.append(clocks["encode"].seconds[-1] + clocks["decode"].seconds[-1])
        if isinstance(bare, GatherCompressor):
            self._gather(bare, clocks["decode4"])
        if with_feedback is not None:
            self._feedback(with_feedback, clocks["whole"])
        for clock in clocks.values():
            del clock.seconds[:1]

        result: dict[str, Any] = {"spec": text}
        for kind, of in zip(KINDS, ("least", "median"), strict=True):
            encode, decode = (getattr(clocks[name], of) for name in ("encode", "decode"))
            result |= {f"encode{kind}_s": encode, f"decode{kind}_s": decode}
            result[f"decode4{kind}_s"] = getattr(clocks["decode4"], of) if clocks["decode4"].seconds else None
            added = getattr(clocks["whole"], of) - getattr(clocks["bare"], of) if clocks["whole"].seconds else None
            result[f"feedback{kind}_s"] = added
        return {**result, "payload_bytes": sent}

    @property
    def memcpy(self) -> float:
        """The least time of a copy, in seconds: of as many repetitions as the compressors have, the median of all such.

        The least of all copies would be that of the machine's best moment, which no compressor need have met.
        """
        return statistics.median(self._copies)

    @property
    def check(self) -> float:
        """The least time that a step takes, before it encodes, to look for what is not finite, in seconds."""
        return self._check.least

    def _step(self, compressor: Compressor, state: State, encode: Clock, decode: Clock) -> int:
        """Do a step alone: until the first collective it is encoding, after it decoding; return the bytes sent."""
        before = state.local.kept
        generator = compressor.at(state.step).reduce(self.ops, self._buffer, state)
        collective, sent = encode.time(lambda: next(generator)), 0
        seconds = 0.0
        while True:
            array = collective.payload if isinstance(collective, AllGather) else collective.array
            sent += self.ops.to_bytes(array).shape[0]
            answer = [array] if isinstance(collective, AllGather) else array
            began = time.perf_counter()
            try:
                collective = generator.send(answer)
            except StopIteration:
                decode.seconds.append(seconds + time.perf_counter() - began)
                break
            seconds += time.perf_counter() - began
        state.commit()
        free = state.local.vacated(self._buffer, before, self._address)
        self._buffer = self.ops.copy(self.vector) if free is None else free
        return sent

    def _gather(self, compressor: GatherCompressor, clock: Clock) -> None:
        """Decode and sum the payloads of several workers."""
        states = [State(self.layout, rank=rank) for rank in range(GATHERED)]
        payloads = [compressor.encode(self.ops, self.vector, state)[0] for state in states]
        read = functools.partial(compressor.read, self.ops, layout=self.layout)
        for _ in range(self.repetitions + 1):
            clock.time(lambda: compressor.combine(self.ops, map(read, payloads), GATHERED, self.layout))

    def _feedback(self, compressor: Compressor, clock: Clock) -> None:
        """Do whole steps with feedback, whose memory is set to zeros before each, so that each sends the same."""
        state, zeros = State(self.layout), self.ops.zeros(self.size)
        encode, decode = Clock(), Clock()
        for _ in range(self.repetitions + 2):  # one more: the first has no memory
            self._copy(self._buffer, self.vector)
            for store in (state.local, state.shared):
                for array in store.kept.values():
                    if array.shape == zeros.shape:
                        self._copy(array, zeros)
            self._step(compressor, state, encode, decode)
            clock.seconds.append(encode.seconds[-1] + decode.seconds[-1])
        del clock.seconds[:1]

    def _address(self, array: Array) -> int:
        return int(self.ops.to_numpy(array).ctypes.data)


class GraphBench(Bench):
    """The same in TensorFlow's graphs: encoding is all up to the end of a step's first call, decoding all after it.

    What is beside it in a step is timed with it: the check for what is not finite, TensorFlow's start of a graph, and
    the way between it and Python.
    """

    def __init__(self, framework: str, size: int, threads: int | None, repetitions: int) -> None:
        import horovod.tensorflow as hvd
        import tensorflow as tf

        hvd.init()
        super().__init__(framework, size, threads, repetitions)
        tf.config.threading.set_intra_op_parallelism_threads(self.threads)
        self._tensorflow = tf
        self._graphs: dict[Any, tuple[Any, Any]] = {}

    def _step(self, compressor: Compressor, state: State, encode: Clock, decode: Clock) -> int:
        if (compressor, state) not in self._graphs:
            self._graphs[compressor, state] = self._graph(compressor, state)
        exchange, graph = self._graphs[compressor, state]
        vector, sent = self._tensorflow.convert_to_tensor(self.ops.copy(self.vector)), exchange.horovod.traffic.sent
        exchange.horovod.left.clear()
        began = time.perf_counter()
        graph(vector)
        ended = time.perf_counter()
        encode.seconds.append(exchange.horovod.left[0] - began)
        decode.seconds.append(ended - exchange.horovod.left[0])
        exchange.commit()
        return exchange.horovod.traffic.sent - sent

    def _graph(self, compressor: Compressor, state: State) -> tuple[Any, Any]:
        """Return an exchange, and the graph of a step in which its collectives bring what they are given."""
        from hvd_compress.tensorflow.exchange import GraphExchange
        from hvd_compress.transports.horovod_tensorflow import HorovodTransport

        class Transport(HorovodTransport):
            def __init__(self) -> None:
                super().__init__()
                self.left: list[float] = []  # when the calls of a step ended

            def leaves(self, takes: int) -> None:
                super().leaves(takes)
                self.left.append(time.perf_counter())

        exchange = GraphExchange(
            compressor, self.layout, Transport(), dtype="float32", device="CPU:0", name="bench", seed=0
        )
        exchange.state = state

        def step(vector: Array) -> Array:
            [array] = exchange.begin(vector, own=True)
            for number in range(len(exchange.rounds)):
                [array] = exchange.resume(array, number)
            return array

        return exchange, self._tensorflow.function(step, autograph=False)


def _framework(name: str, threads: int) -> tuple[Ops, Callable[[Array, Array], Any], Callable[[int], Array]]:
    """Return the operations of a framework, what copies one vector to another, and what makes one."""
    if name in ("numpy", "tensorflow"):  # whose tensors are NumPy's arrays here
        ops: Ops = NumpyOps()
        copy: Callable[[Array, Array], Any] = np.copyto
        empty: Callable[[int], Array] = functools.partial(np.empty, dtype=np.float32)
    else:
        import torch

        from hvd_compress.ops.torch import TorchOps

        torch.set_num_threads(threads)
        ops, copy, empty = TorchOps(), torch.Tensor.copy_, torch.empty
    if ops.kernels:
        ops.kernels.set_threads(threads)
    return ops, copy, empty


def _with_feedback(compressor: Compressor) -> Compressor | None:
    """Return the compressor with error feedback, or None if it allows none."""
    try:
        return ErrorFeedback(compressor)
    except ValueError:
        return None


def table(report: dict[str, Any]) -> Any:
    """Return a report as a table of multiples of one memcpy."""
    from rich import box
    from rich.table import Table

    memcpy, size = report["memcpy_s"], report["size"]
    title = f"{size} coordinates, {report['threads']} threads: multiples of one memcpy ({1e3 * memcpy:.2f} ms)"
    within = "in encode" if report["framework"] == "tensorflow" else "not in encode"
    check = f"a step's check for what is not finite {report['check_s'] / memcpy:.2f}, {within}"
    shown = Table(box=box.MARKDOWN, title=f"{title}, least (median); {check}")
    shown.add_column("compressor")
    for column in ("encode", "decode", "both", "decode and sum 4", "feedback adds", "bytes", "times fewer"):
        shown.add_column(column, justify="right")
    for result in report["results"]:
        both = {f"both{kind}_s": result[f"encode{kind}_s"] + result[f"decode{kind}_s"] for kind in KINDS}
        times = result | both
        cells = [
            "-"
            if times[f"{name}_s"] is None
            else f"{times[f'{name}_s'] / memcpy:.2f} ({times[f'{name}_median_s'] / memcpy:.2f})"
            for name in ("encode", "decode", "both", "decode4", "feedback")
        ]
        sent = result["payload_bytes"]
        shown.add_row(result["spec"], *cells, str(sent), f"{4 * size / sent:.1f}" if sent else "-")
    return shown


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw a report as bars: encode and decode of each compressor, in multiples of one memcpy."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    results = report["results"][::-1]
    encode, decode = ([r[f"{name}_s"] / report["memcpy_s"] for r in results] for name in ("encode", "decode"))
    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.3 * len(results)), layout="constrained")
    names = [textwrap.fill(r["spec"], 34) for r in results]
    axes.barh(names, encode, label="encode")
    axes.barh(names, decode, left=encode, label="decode")
    axes.axvline(1, color="black", linewidth=1, linestyle=":")
    axes.set_xlabel(f"multiples of one memcpy of {report['size']} floats, {report['threads']} threads")
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(specs: Sequence[str], *, framework: str, json_path: Path | None, plot_path: Path | None, **of: Any) -> None:
    """Run the benchmark, show its table, and write what was asked for; an interrupt ends it with what is done."""
    from rich.console import Console
    from rich.progress import track

    for text in specs:
        parse(text)  # what is wrong is said before anything is timed
    bench = (GraphBench if framework == "tensorflow" else Bench)(framework, **of)
    results: list[dict[str, Any]] = []
    console = Console(stderr=True)
    try:
        chosen = specs or [text.format(columns=max(1, bench.size // 50)) for text in SPECS]
        results.extend(map(bench.run, track(chosen, "compressors", console=console, transient=True)))
    except KeyboardInterrupt:
        console.print("interrupted: the table has what was done")
    if not results:
        return
    report = {"size": bench.size, "threads": bench.threads, "framework": framework}
    report |= {"memcpy_s": bench.memcpy, "check_s": bench.check}
    report["results"] = results
    Console(width=None if sys.stdout.isatty() else 400).print(table(report))
    if json_path is not None:
        json_path.write_text(json.dumps(report, indent=1) + "\n")
    if plot_path is not None:
        plot(report, plot_path)
