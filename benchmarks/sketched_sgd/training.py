"""Training with any number of simulated workers in one process; bytes are counted as on a real transport."""

from __future__ import annotations

import math
import statistics
import time
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from benchmarks.sketched_sgd.images import Images
from benchmarks.sketched_sgd.run import Run
from hvd_compress import Simulation, parse
from hvd_compress.compressors import AdamMomentum, MomentumCorrection
from hvd_compress.ops.torch import TorchOps
from hvd_compress.reduction.buckets import Gradient, Rule, make_plan
from hvd_compress.torch.adam import FrozenAdam

DENSE_BELOW = 1024
MOMENTUM = 0.9
BETA2, EPSILON = 0.98, 1e-9  # of Adam, as in Vaswani et al. 2017


class Task(Protocol):
    """A model with its data: `Images` or `Translation`.

    Attributes:
        measure: the name of what `score` returns.
    """

    model: nn.Module
    measure: str

    def order(self, batch: int, random: torch.Generator) -> Tensor:
        """Return the examples in the order of an epoch."""

    def loss(self, chosen: Tensor, random: torch.Generator) -> Tensor:
        """Return the mean loss of some examples."""

    def score(self) -> float:
        """Return the model's measure on data that it is not trained with."""

    def final(self) -> dict[str, Any]:
        """Return further results, of the trained model."""


class Workers:
    """Exchanges the gradients of all workers, in the buckets that `DistributedOptimizer` would use."""

    def __init__(self, parameters: dict[str, Tensor], run: Run) -> None:
        gradients = [Gradient(name, tuple(p.shape), "float32") for name, p in parameters.items()]
        self.parameters, self.clip = parameters, run.clip_residual
        compressor = parse(run.compression)
        rules = [Rule("*", compressor)] if run.all_compressed else []
        self.buckets = make_plan(gradients, compressor, rules, bucket_bytes=1 << 25, dense_below=DENSE_BELOW)
        self.simulations = [
            Simulation(bucket.compressor, bucket.layout, run.workers, ops=TorchOps(), seed=run.seed)
            for bucket in self.buckets
        ]
        self.gradients: list[list[Tensor]] = [[] for _ in self.buckets]
        self.masked: list[float] = []

    def collect(self) -> None:
        """Take one worker's gradients from the parameters."""
        for bucket, own in zip(self.buckets, self.gradients, strict=True):
            parts = [self.parameters[p.name].grad.reshape(-1) for p in bucket.layout.parameters]  # type: ignore[union-attr]
            own.append(torch.cat(parts))
        for parameter in self.parameters.values():
            parameter.grad = None

    def reduce(self) -> None:
        """Exchange the collected gradients, and set the parameters' gradients to the mean."""
        for bucket, simulation, own in zip(self.buckets, self.simulations, self.gradients, strict=True):
            before = simulation.states[0].local.get("momentum")
            mean = simulation.reduce(own)[0].mean
            if isinstance(bucket.compressor, MomentumCorrection) and before is not None:
                unmasked = before * bucket.compressor.momentum + own[0]
                self.masked.append(float(simulation.states[0].local["momentum"].norm() / unmasked.norm()))
            if self.clip:
                for state, gradient in zip(simulation.states, own, strict=True):
                    self._clip(state.local, self.clip * gradient.norm())
            own.clear()
            for p in bucket.layout.parameters:
                self.parameters[p.name].grad = mean[p.slice].view(p.shape).clone()

    def _clip(self, local: Any, largest: Tensor) -> None:
        """Scale a worker's residual so that its norm is at most the given one."""
        if "residual" in local and (norm := local["residual"].norm()) > largest:
            local["residual"].mul_(largest / norm)

    def bytes(self, way: str) -> int:
        """Return the bytes that a worker has "sent" or "received"."""
        counted = [entry for simulation in self.simulations for entry in simulation.traffic.collectives.values()]
        return sum(entry[way] for entry in counted)

    def norms(self) -> dict[str, float]:
        """Return the norms of the first worker's arrays, such as its residual and momentum, over all buckets.

        With momentum correction, "masked" is the norm of its momentum after masking relative to that before, in the
        mean of all steps since the last call.
        """
        squares: dict[str, float] = {}
        for simulation in self.simulations:
            state = simulation.states[0]
            for name, array in (*state.local.items(), *state.shared.items()):
                squares[name] = squares.get(name, 0.0) + float(array.norm()) ** 2
        norms = {name: math.sqrt(square) for name, square in squares.items()}
        if self.masked:
            norms["masked"] = statistics.mean(self.masked)
            self.masked.clear()
        return norms


def load(run: Run, folder: str) -> Task:
    """Return a run's task."""
    if run.task == "multi30k":
        from benchmarks.sketched_sgd.translation import Translation  # needs further packages

        return Translation(run, folder)
    return Images(run, folder)


def optimizer_of(run: Run, parameters: list[Tensor]) -> torch.optim.Optimizer:
    """Return the optimizer; it has the momentum unless the compressor keeps it."""
    compressor = parse(run.compression)
    if isinstance(compressor, AdamMomentum):
        return FrozenAdam(parameters, run.lr, compressor.momentum, BETA2, EPSILON, run.decay, compressor.start)
    if run.optimizer == "adam":
        return torch.optim.AdamW(parameters, run.lr, (MOMENTUM, BETA2), EPSILON, run.decay)
    if compressor.has_momentum:  # scales the decay as the momentum would
        return torch.optim.SGD(parameters, run.lr, weight_decay=run.decay / (1 - MOMENTUM))
    return torch.optim.SGD(parameters, run.lr, MOMENTUM, weight_decay=run.decay)


def train(run: Run, folder: str) -> dict[str, Any]:
    """Train; return the score after each epoch, the bytes, the norms of the first worker's state, and the seconds."""
    torch.set_num_threads(1)
    torch.manual_seed(run.seed)
    task = load(run, folder)
    parameters = {name: p for name, p in task.model.named_parameters() if p.requires_grad}
    workers = Workers(parameters, run)
    optimizer = optimizer_of(run, list(parameters.values()))
    random = torch.Generator().manual_seed(run.seed)
    share = run.batch // run.workers
    curve: list[float] = []
    norms: list[dict[str, float]] = []
    done = 0
    began = time.perf_counter()
    for _ in range(run.epochs):
        order = task.order(run.batch, random)
        steps = len(order) // run.batch
        total, rising = run.epochs * steps, max(1, round(run.warmup * run.epochs * steps))
        for step in range(steps):
            rate = run.lr * min((done + 1) / rising, 1.0) * min(1.0, (total - done) / max(1, total - rising))
            for group in optimizer.param_groups:
                group["lr"] = rate
            for worker in range(run.workers):
                first = step * run.batch + worker * share
                task.loss(order[first : first + share], random).backward()
                workers.collect()
            workers.reduce()
            optimizer.step()
            optimizer.zero_grad()
            done += 1
        task.model.eval()
        curve.append(task.score())
        norms.append(workers.norms())
        if not all(bool(p.isfinite().all()) for p in parameters.values()):
            break
        task.model.train()
    size = sum(p.numel() for p in parameters.values())
    task.model.eval()
    return {
        task.measure: curve[-1],
        **task.final(),
        "curve": curve,
        "norms": norms,
        "steps": done,
        "parameters": size,
        "bytes_sent": workers.bytes("sent"),
        "bytes_received": workers.bytes("received"),
        "dense_bytes": 4 * size * done,
        "seconds": time.perf_counter() - began,
    }
