"""What a compressor costs: encode, decode and feedback, as multiples of copying the gradient once."""

from __future__ import annotations

import functools
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hvd_compress.cli.clock import Clock
from hvd_compress.cli.compressor_report import ENDINGS, plot, table
from hvd_compress.compressors import AllGather, Compressor, ErrorFeedback, GatherCompressor, parse
from hvd_compress.compressors.state import State
from hvd_compress.ops import Array, Ops
from hvd_compress.ops.layout import Layout
from hvd_compress.ops.numpy import NumpyOps
from hvd_compress.reduction.step import Step, echo

SPECS = [
    *("fp16", "bf16", "int8"),
    *("topk", "topk(values=qsgd(bits=4))", "threshold", "randomk", "dgc(ratio=0.01)", "wangni"),
    *("qsgd(bits=2)", "qsgd(bits=4)", "qsgd(bits=8)", "qsgd(bits=4, norm=l2)", "terngrad", "natural", "low_precision"),
    *("signsgd", "ef_signsgd", "onebit", "signum", "powersgd(rank=4)", "sketched_sgd"),
    "sketched_sgd(ratio=0.01, rows=5, columns={columns}, p1=0, p2=1)",  # sketches every coordinate and selects 1 %
]
SCALE = 1e-3 / 2.5758  # standard deviation: 1 % of the magnitudes are above 1e-3, the default of `threshold`
GATHERED = 4  # workers whose payloads are decoded and summed
PAUSE = 0.02  # seconds until a framework's threads have stopped spinning


def default_specs(size: int) -> list[str]:
    """Return the specs to measure by default on vectors of `size` coordinates."""
    return [spec.format(columns=max(1, size // 50)) for spec in SPECS]


class CompressorBench:
    """Times compressors on one vector of normal numbers.

    Everything is relative to one copy between two vectors that the framework allocated.

    Args:
        framework: "numpy", "tensorflow" or "torch", whose arrays are compressed.
        device: where PyTorch's tensors are: "cpu", or "cuda".
        size: coordinates of the vector.
        threads: of the kernels and the framework; None for one a core.
        repetitions: of each operation.
    """

    def __init__(self, framework: str, size: int, threads: int | None, repetitions: int, device: str = "cpu") -> None:
        self.size, self.repetitions = size, repetitions
        self.threads = threads or len(os.sched_getaffinity(0))
        self.ops, self._memcpy, empty, self.settle = _framework(framework, self.threads, device)
        # Unlike a framework's copy, the kernels' leaves no thread spinning on a core afterwards.
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
        self._check = Clock(self.settle)

    def run(self, text: str) -> dict[str, Any]:
        """Return the least and median times of a spec's compressor, in seconds, and the bytes that it sends."""
        compressor = parse(text)
        bare = compressor.bare
        with_feedback = compressor if compressor is not bare else _with_feedback(bare)
        clocks = {name: Clock(self.settle) for name in ("encode", "decode", "decode4", "bare", "whole")}
        state = State(self.layout)
        memcpy = Clock(self.settle)
        for _ in range(self.repetitions):
            memcpy.time(lambda: self._memcpy(*self._plain))
        self._copies.append(memcpy.least)
        time.sleep(PAUSE)
        for _ in range(self.repetitions):
            self._check.time(lambda: self.ops.poison(self.vector, True))
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
        for ending, which in zip(ENDINGS, ("least", "median"), strict=True):
            seconds = {name: getattr(clock, which) if clock.seconds else None for name, clock in clocks.items()}
            result |= {f"{name}{ending}_s": seconds[name] for name in ("encode", "decode", "decode4")}
            whole = seconds["whole"]
            result[f"feedback{ending}_s"] = None if whole is None else whole - seconds["bare"]
        return {**result, "payload_bytes": sent}

    @property
    def memcpy(self) -> float:
        """Seconds of one copy: the median, over the compressors, of the least time before each.

        The least of all would be the machine's best moment, in which no compressor may have run.
        """
        return statistics.median(self._copies)

    @property
    def check(self) -> float:
        """The least seconds of checking the vector for non-finite values, which a step does before it encodes."""
        return self._check.least

    def _step(self, compressor: Compressor, state: State, encode: Clock, decode: Clock) -> int:
        """Do the step of a single worker, timed, and return the bytes that it sends.

        All up to the first collective is encoding, all after it decoding.
        """
        before = state.local.kept
        step = encode.time(lambda: Step(compressor, self.ops, self._buffer, state))
        sent, seconds = 0, 0.0
        while step.pending is not None:
            combined = echo(step.pending)
            payload = combined[0] if isinstance(step.pending, AllGather) else combined
            sent += self.ops.to_bytes(payload).shape[0]
            began = time.perf_counter()
            step.feed(combined)
            self.settle()
            seconds += time.perf_counter() - began
        decode.seconds.append(seconds)
        del step  # and with it the mean, whose memory the next step may use
        state.commit()
        free = state.local.vacated(self._buffer, before, self._address)
        self._buffer = self.ops.copy(self.vector) if free is None else free
        return sent

    def _gather(self, compressor: GatherCompressor, clock: Clock) -> None:
        """Time decoding and summing the payloads of `GATHERED` workers."""
        states = [State(self.layout, rank=rank) for rank in range(GATHERED)]
        payloads = [compressor.encode(self.ops, self.vector, state)[0] for state in states]
        read = functools.partial(compressor.read, self.ops, layout=self.layout)
        for _ in range(self.repetitions + 1):
            clock.time(lambda: compressor.combine(self.ops, map(read, payloads), GATHERED, self.layout))

    def _feedback(self, compressor: Compressor, clock: Clock) -> None:
        """Time whole steps with feedback; its memory is zeroed before each, so that all send the same."""
        state, zeros = State(self.layout), self.ops.zeros(self.size)
        encode, decode = Clock(self.settle), Clock(self.settle)
        for _ in range(self.repetitions + 2):  # one more warm-up: the first has no memory yet
            self._copy(self._buffer, self.vector)
            for store in (state.local, state.shared):
                for array in store.kept.values():
                    if array.shape == zeros.shape:
                        self._copy(array, zeros)
            self._step(compressor, state, encode, decode)
            clock.seconds.append(encode.seconds[-1] + decode.seconds[-1])
        del clock.seconds[:1]

    def _address(self, array: Array) -> int:
        return int(array.ctypes.data if isinstance(array, np.ndarray) else array.data_ptr())


def _framework(
    name: str, threads: int, device: str
) -> tuple[Ops, Callable[[Array, Array], Any], Callable[[int], Array], Callable[[], None]]:
    """Return a framework's operations, copy of a vector to another, allocation of one, and wait for its device."""
    if name in ("numpy", "tensorflow"):  # TensorFlow hands its tensors to the kernels as NumPy arrays
        ops: Ops = NumpyOps()
        copy: Callable[[Array, Array], Any] = np.copyto
        empty: Callable[[int], Array] = functools.partial(np.empty, dtype=np.float32)
    else:
        import torch

        from hvd_compress.ops.torch import TorchOps

        torch.set_num_threads(threads)
        ops, copy, empty = TorchOps(device), torch.Tensor.copy_, functools.partial(torch.empty, device=device)
        if device == "cuda":
            return ops, copy, empty, torch.cuda.synchronize
    if ops.kernels:
        ops.kernels.set_threads(threads)
    return ops, copy, empty, lambda: None


def _with_feedback(compressor: Compressor) -> Compressor | None:
    """Return the compressor with error feedback, or None if it allows none."""
    try:
        return ErrorFeedback(compressor)
    except ValueError:
        return None


def main(
    specs: Sequence[str],
    *,
    framework: str,
    device: str,
    size: int,
    threads: int | None,
    repetitions: int,
    json_path: Path | None,
    plot_path: Path | None,
) -> None:
    """Run the benchmark, print its table, and write the files asked for; after Ctrl-C, with the results until then."""
    from rich.console import Console
    from rich.progress import track

    for text in specs:
        parse(text)  # refuses a wrong spec before anything is timed
    bench_type = CompressorBench
    if framework == "tensorflow":
        from hvd_compress.cli.graph_bench import GraphBench

        bench_type = GraphBench
    bench = bench_type(framework, size, threads, repetitions, device)
    results: list[dict[str, Any]] = []
    console = Console(stderr=True)
    try:
        chosen = specs or default_specs(bench.size)
        results.extend(map(bench.run, track(chosen, "compressors", console=console, transient=True)))
    except KeyboardInterrupt:
        console.print("interrupted: the table shows the results until then")
    if not results:
        return
    report = {"size": bench.size, "threads": bench.threads, "framework": framework, "device": device}
    report |= {"memcpy_s": bench.memcpy, "check_s": bench.check}
    report["results"] = results
    Console(width=None if sys.stdout.isatty() else 400).print(table(report))
    if json_path is not None:
        json_path.write_text(json.dumps(report, indent=1) + "\n")
    if plot_path is not None:
        plot(report, plot_path)
