"""One rank of the measurements, as mpirun starts it: `rank.py SETTINGS`. Rank 0 prints a JSON object a cell."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.lab.accuracy import SCORES, WARMUP, largest_rate, optimizer_of
from benchmarks.lab.methods import METHODS
from benchmarks.lab.steps import ALONE, COLLECTIVES, Cell
from benchmarks.lab.tasks import TASKS, TIMED
from benchmarks.lab.time import curve_of
from benchmarks.lab.whole import Whole
from benchmarks.simulated.training import Task, train_steps, warmed_then_linear
from hvd_compress.advice.network import measure as measure_collectives
from hvd_compress.ops.torch import TorchOps
from hvd_compress.transports import Transport

WARM_UP = 5  # steps: buckets are rebuilt, and PyTorch's PowerSGD begins after two
LEAST, MOST, SECONDS = 8, 30, 1.5  # timed steps, and how long they take together
ONE_BUCKET = 1 << 20  # MB: over gloo PyTorch's PowerSGD mixes up the rounds of several

Stats = Callable[[], dict[str, Any] | None]  # what the scheme tells of all steps so far
Optimizer = torch.optim.Optimizer


class Stack(Protocol):
    """Who carries the gradients.

    Attributes:
        rank, size: of this worker, and the number of all.
    """

    rank: int
    size: int

    def wrapped(
        self, scheme: str, spec: str | None, model: nn.Module, optimizer: Optimizer
    ) -> tuple[nn.Module, Optimizer, Stats]:
        """Return a model and an optimizer that train together with the other workers'.

        Args:
            scheme: see `Cell`.
            spec: the compressor's, if the scheme is one of ours.
            model: this worker's.
            optimizer: of the model's parameters.
        """

    def transport(self) -> Transport:
        """Return what carries our collectives."""

    def agree(self, number: int) -> int:
        """Return rank 0's number, once all have come here."""

    def end(self) -> None:
        """End the process, or see to it that it can end."""


def unknown() -> None:
    """Tell nothing: neither Horovod nor DDP does."""


class Horovod:
    """Horovod over MPI."""

    def __init__(self, address: str) -> None:
        import horovod.torch as hvd

        hvd.init()
        self.hvd, self.rank, self.size = hvd, hvd.rank(), hvd.size()

    def wrapped(
        self, scheme: str, spec: str | None, model: nn.Module, optimizer: Optimizer
    ) -> tuple[nn.Module, Optimizer, Stats]:
        """See `Stack`."""
        from hvd_compress.torch import DistributedOptimizer

        named = list(model.named_parameters())
        if spec is not None:
            ours = DistributedOptimizer(optimizer, named, compression=spec)
            return model, ours, lambda: ours.compression_stats(phases=True)
        compression = self.hvd.Compression.fp16 if "fp16" in scheme else self.hvd.Compression.none
        return model, self.hvd.DistributedOptimizer(optimizer, named, compression=compression), unknown

    def transport(self) -> Transport:
        """See `Stack`."""
        from hvd_compress.transports.horovod_torch import HorovodTransport

        return HorovodTransport()

    def agree(self, number: int) -> int:
        """See `Stack`."""
        return int(self.hvd.broadcast_object(number, 0))

    def end(self) -> None:
        """See `Stack`."""
        self.hvd.shutdown()


class DDP:
    """DistributedDataParallel over gloo."""

    def __init__(self, address: str) -> None:
        import torch.distributed as dist

        os.environ |= {
            "RANK": os.environ["OMPI_COMM_WORLD_RANK"],
            "WORLD_SIZE": os.environ["OMPI_COMM_WORLD_SIZE"],
            "MASTER_ADDR": address,
            "MASTER_PORT": "29400",
        }
        dist.init_process_group("gloo")
        self.dist, self.rank, self.size = dist, dist.get_rank(), dist.get_world_size()

    def wrapped(
        self, scheme: str, spec: str | None, model: nn.Module, optimizer: Optimizer
    ) -> tuple[nn.Module, Optimizer, Stats]:
        """See `Stack`."""
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

        from hvd_compress.torch import ddp

        if scheme == "DDP, PowerSGD hook":
            parallel = DistributedDataParallel(model, bucket_cap_mb=ONE_BUCKET)
            state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=2, start_powerSGD_iter=2)
            parallel.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
            return parallel, optimizer, unknown
        parallel = DistributedDataParallel(model)
        if spec is not None:
            compression = ddp.register(parallel, spec)
            return parallel, optimizer, lambda: compression.compression_stats(phases=True)
        if scheme == "DDP, fp16 hook":
            parallel.register_comm_hook(None, default_hooks.fp16_compress_hook)
        return parallel, optimizer, unknown

    def transport(self) -> Transport:
        """See `Stack`."""
        from hvd_compress.transports.torch_distributed import ProcessGroupTransport

        return ProcessGroupTransport()

    def agree(self, number: int) -> int:
        """See `Stack`."""
        told = [number]
        self.dist.broadcast_object_list(told, 0)
        return int(told[0])

    def end(self) -> None:
        """See `Stack`."""
        os._exit(0)  # process groups that are not used any more need not be taken down


@functools.cache
def loaded(name: str, data: str) -> tuple[Task, nn.Module, Tensor]:
    """Return a task, its network before any training, and the numbers of its examples."""
    torch.manual_seed(0)
    task, recipe = TIMED[name].load(data, "test"), TIMED[name]
    return task, task.model, task.order(recipe.batch, torch.Generator().manual_seed(0))


def measure(stack: Stack, cell: Cell, data: str) -> dict[str, Any]:
    """Return the median seconds of a step, with their quartiles, and what the scheme tells of a step."""
    task, network, order = loaded(cell.model, data)
    recipe, scheme = TIMED[cell.model], cell.scheme
    model = copy.deepcopy(network)
    parameters = sum(p.numel() for p in model.parameters())
    method = METHODS.get(scheme)
    optimizer, stats = optimizer_of(recipe, method or METHODS["none"], list(model.parameters())), unknown
    if scheme != ALONE:
        spec = method and method.spec(recipe.optimizer)
        model, optimizer, stats = stack.wrapped(scheme, spec, model, optimizer)
    task.model = model
    share, random = recipe.batch // stack.size, torch.Generator().manual_seed(stack.rank)
    batches = len(order) // recipe.batch

    def step(number: int) -> None:
        first = number % batches * recipe.batch + stack.rank * share
        task.loss(order[first : first + share], random).backward()
        optimizer.step()
        optimizer.zero_grad()

    marks = []
    for number in range(WARM_UP):
        marks.append(time.perf_counter())
        step(number)
    slowest = time.perf_counter() - marks[-1]
    steps = stack.agree(max(LEAST, min(MOST, round(SECONDS / slowest))))
    before, worked, marks = stats(), time.process_time(), [time.perf_counter()]
    for number in range(steps):
        step(WARM_UP + number)
        marks.append(time.perf_counter())
    low, middle, high = statistics.quantiles((b - a for a, b in itertools.pairwise(marks)), n=4)
    after, worked = stats(), time.process_time() - worked
    stack.agree(0)
    all_done = (time.perf_counter() - marks[0]) / steps
    told = {} if before is None or after is None else each_step(before, after, steps)
    return {
        "seconds": round(all_done if scheme == ALONE else middle, 5),  # alone, ranks do not wait for each other
        "low": round(low, 5),
        "high": round(high, 5),
        "mean": round((marks[-1] - marks[0]) / steps, 5),
        "cpu": round(worked / steps, 5),
        "steps": steps,
        "parameters": parameters,
        **told,
    }


def each_step(before: dict[str, Any], after: dict[str, Any], steps: int) -> dict[str, Any]:
    """Return the bytes that a step sends, and where its milliseconds go."""
    phases = {}
    for name, seconds in after["phases"].items():
        parts = {"": (before["phases"][name], seconds)}
        if isinstance(seconds, dict):
            parts = {f" {part}": (before["phases"][name][part], value) for part, value in seconds.items()}
        phases |= {name + part: round(1000 * (b - a) / steps, 2) for part, (a, b) in parts.items() if b is not None}
    return {"bytes": round((after["bytes_sent"] - before["bytes_sent"]) / steps), "phases": phases}


def measure_network(stack: Stack) -> dict[str, Any]:
    """Return what collectives of some sizes take: pairs of bytes and seconds, by kind."""
    return {"points": measure_collectives(stack.transport(), TorchOps(), "lab").points}


@dataclass
class OneOfAll:
    """The worker of this rank, whose gradients the optimizer or the model exchanges; see `Team`."""

    number: int
    own: Sequence[int]

    def collect(self) -> None:
        """Do nothing."""

    def reduce(self) -> None:
        """Do nothing."""


def train(stack: Stack, whole: Whole, data: str) -> dict[str, Any]:
    """Train from start to end; return the curve, with seconds in which scoring is not counted."""
    recipe, method = TASKS[whole.task], METHODS.get(whole.scheme)
    torch.manual_seed(whole.seed)
    task = recipe.load(data, "test")
    settings = METHODS[curve_of(whole.scheme)]
    optimizer = optimizer_of(recipe, settings, list(task.model.parameters()))
    spec = method and method.spec(recipe.optimizer)
    task.model, optimizer, _ = stack.wrapped(whole.scheme, spec, task.model, optimizer)
    steps = len(task.order(recipe.batch, torch.Generator())) // recipe.batch * recipe.epochs
    rate = warmed_then_linear(largest_rate(recipe, settings, whole.factor), WARMUP)
    pause = -(-steps // SCORES)
    team = OneOfAll(stack.size, [stack.rank])
    curve: list[tuple[int, float, float]] = []
    stack.agree(0)
    spent, began = 0.0, time.perf_counter()
    for done in train_steps(
        task, team, optimizer, rate, batch=recipe.batch, epochs=recipe.epochs, seed=whole.seed, pause=pause
    ):
        spent += time.perf_counter() - began
        if stack.rank == 0:
            curve.append((done, round(spent, 3), round(task.score(), 5)))
        stack.agree(0)
        began = time.perf_counter()
    return {"curve": curve, "steps": steps}


def main() -> None:
    """Measure what the command line asks for."""
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    stack: Stack = (Horovod if settings["stack"] == "horovod" else DDP)(settings["address"])

    def tell(result: dict[str, Any]) -> None:
        if stack.rank == 0:
            print(json.dumps(result), flush=True)

    for cell in (Cell(**cell) for cell in settings.get("cells", ())):
        tell(measure_network(stack) if cell.scheme == COLLECTIVES else measure(stack, cell, settings["data"]))
    for whole in (Whole(**whole) for whole in settings.get("whole", ())):
        tell(train(stack, whole, settings["data"]))
    stack.agree(0)
    stack.end()


if __name__ == "__main__":
    main()
