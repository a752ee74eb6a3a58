"""What recording the phases of steps costs: steps without it, with it, and with a trace, in turns, in the same job.

mpirun -np 2 python -m benchmarks.timeline

Rank 0 prints the median of a step's seconds, as the clock has them and as the training thread's processor has them
(other jobs of the machine disturb these less), and the median of what each step takes more than the one without a
recorder that came just before or after it. The last columns do not depend on how much the steps differ: how often a
step calls the recorder, and how long these calls take when they are repeated alone, in % of the processor's time.
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import horovod.torch as hvd
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch.nn import functional

import hvd_compress.torch as hvdc
from benchmarks.ddp.rank import MODELS
from hvd_compress.reduction.phases import Phases
from hvd_compress.reduction.trace import VARIABLE, Trace

WARM_UP = 5  # steps: buckets are planned in the first
WAYS = ("nothing", "phases", "trace")
RECORDING = ("enter", "leave", "started", "arrived", "dropped", "optimizer_begins", "optimizer_ends", "end_step")
REPETITIONS = 200

SPECS = ["topk(ratio=0.01)", "powersgd"]


class Nothing(Phases):
    """Records nothing."""

    def of(self, phase: str, exchange: str = "") -> Any:
        """Return a context of no effect."""
        return nullcontext()

    def started(self, *_: Any) -> None:
        """Do nothing."""

    arrived = dropped = optimizer_begins = optimizer_ends = end_step = started  # type: ignore[assignment]


class Noted(Phases):
    """Keeps in mind which calls a step makes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattribute__(self, name: str) -> Any:
        """Return a method that notes its call, if it is one of those that record."""
        if name not in RECORDING:
            return super().__getattribute__(name)
        method = super().__getattribute__(name)

        def noted(*args: Any) -> Any:
            self.calls.append((name, args))
            return method(*args)

        return noted

    def repeated(self, trace: Trace | None) -> float:
        """Return the least seconds that the calls take alone, the writing of the trace included."""
        phases, seconds = Phases(), []
        phases._trace = trace
        for _ in range(REPETITIONS):
            began = time.perf_counter()
            for name, args in self.calls:
                phases.of(*args[:1]) if name == "enter" else None  # the context, which is made as well
                getattr(phases, name)(*args)
            if trace is not None:
                trace.write()
            seconds.append(time.perf_counter() - began)
        return min(seconds)


class Training:
    """A model that is trained, one way.

    Args:
        model: a name in `MODELS`.
        spec: the compressor.
        way: one of `WAYS`.
        folder: for traces.
    """

    def __init__(self, model: str, spec: str, way: str, folder: Path) -> None:
        torch.manual_seed(0)
        self.module, self.inputs, self.labels = MODELS[model]()
        self.clock: list[float] = []
        self.processor: list[float] = []
        self.optimizer = hvdc.DistributedOptimizer(
            torch.optim.SGD(self.module.parameters(), lr=0.01),
            self.module.named_parameters(),
            spec,
            bucket_bytes=1 << 20,
        )
        if way == "nothing":
            self.optimizer._reducer.phases = Nothing()
        if way == "trace":
            os.environ[VARIABLE] = str(folder / f"{model}.{spec}.%r.json")
        self.step()  # in which it is opened
        os.environ.pop(VARIABLE, None)

    def step(self) -> None:
        """Take a step, and note its seconds."""
        hvd.barrier()
        began, thread = time.perf_counter(), time.thread_time()
        self.optimizer.zero_grad()
        functional.cross_entropy(self.module(self.inputs).flatten(0, -2), self.labels).backward()
        self.optimizer.step()
        self.clock.append(time.perf_counter() - began)
        self.processor.append(time.thread_time() - thread)


def measured(model: str, spec: str, steps: int, folder: Path) -> dict[str, Training]:
    """Return what each way came to, its steps in turns with the others', in an order that changes."""
    trainings = {way: Training(model, spec, way, folder) for way in WAYS}
    for number in range(steps):
        turn = number % len(WAYS)
        for way in (*WAYS[turn:], *WAYS[:turn]):
            trainings[way].step()
    for training in trainings.values():
        del training.clock[:WARM_UP], training.processor[:WARM_UP]
    return trainings


def calls_of(training: Training) -> Noted:
    """Return what a step calls, which no trace is of."""
    noted = Noted()
    reducer = training.optimizer._reducer
    reducer.phases = noted
    for exchange in reducer.exchanges:
        exchange.phases = noted
    training.step()
    return noted


def main() -> None:
    """Measure each model with some compressors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100, help="of each way")
    parser.add_argument(
        "--compression", nargs="+", action="extend", metavar="SPEC", help=f"(if none: {', '.join(SPECS)})"
    )
    args = parser.parse_args()
    args.compression = args.compression or SPECS
    hvd.init()
    torch.set_num_threads(1)
    table = Table(box=box.MARKDOWN)
    heads = ("model", "compression", "recorded", "ms", "more", "processor's ms", "more", "calls", "alone, ms", "in %")
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number > 2 else "left")
    with tempfile.TemporaryDirectory() as folder:
        alone = Trace(str(Path(folder) / f"alone.{hvd.rank()}.json"), hvd.rank())
        for model, spec in itertools.product(MODELS, args.compression):
            trainings = measured(model, spec, args.steps, Path(folder))
            noted = calls_of(trainings["nothing"])
            base = trainings["nothing"]
            for way, training in trainings.items():
                cells = []
                for own, without in ((training.clock, base.clock), (training.processor, base.processor)):
                    more = statistics.median(a - b for a, b in zip(own, without, strict=False))
                    cells += [f"{1e3 * statistics.median(own):.2f}", f"{1e3 * more:.3f}"]
                if way != "nothing":
                    seconds = noted.repeated(alone if way == "trace" else None)
                    share = 100 * seconds / statistics.median(base.processor)
                    cells += [str(len(noted.calls)), f"{1e3 * seconds:.3f}", f"{share:.2f}"]
                table.add_row(model, spec, way, *cells)
    if hvd.rank() == 0:
        Console(width=160, color_system=None, force_terminal=False).print(table)


if __name__ == "__main__":
    main()
