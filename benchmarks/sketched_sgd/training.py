"""One of the study's trainings."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.simulated.images import Images
from benchmarks.simulated.training import Task, train_steps, warmed_then_linear
from benchmarks.simulated.workers import Workers
from benchmarks.sketched_sgd.run import Run
from examples.torch.models import IMAGE_MODELS, resnet9
from hvd_compress import parse
from hvd_compress.compressors import AdamMomentum, MomentumCorrection
from hvd_compress.reduction.buckets import Rule
from hvd_compress.torch.adam import FrozenAdam

DENSE_BELOW = 1024
MOMENTUM = 0.9
BETA2, EPSILON = 0.98, 1e-9  # of Adam, as in Vaswani et al. 2017


class ObservedWorkers(Workers):
    """Workers of which the first one's state is measured, and whose residuals can be clipped."""

    def __init__(self, parameters: dict[str, Tensor], run: Run) -> None:
        compressor = parse(run.compression)
        super().__init__(
            parameters,
            compressor,
            run.workers,
            seed=run.seed,
            rules=[Rule("*", compressor)] if run.all_compressed else [],
            bucket_bytes=1 << 25,
            dense_below=DENSE_BELOW,
        )
        self.clip = run.clip_residual
        self.masked: list[float] = []

    def exchange(self, number: int, gradients: Sequence[Tensor]) -> Tensor:
        """Return the mean of a bucket's gradients."""
        compressor, states = self.buckets[number].compressor, self.simulations[number].states
        before = states[0].local.get("momentum")
        mean = super().exchange(number, gradients)
        if isinstance(compressor, MomentumCorrection) and before is not None:
            unmasked = before * compressor.momentum + gradients[0]
            self.masked.append(float(states[0].local["momentum"].norm() / unmasked.norm()))
        if self.clip:
            for state, gradient in zip(states, gradients, strict=True):
                self._clip(state.local, self.clip * gradient.norm())
        return mean

    def _clip(self, local: Any, largest: Tensor) -> None:
        """Scale a worker's residual so that its norm is at most the given one."""
        if "residual" in local and (norm := local["residual"].norm()) > largest:
            local["residual"].mul_(largest / norm)

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
        from benchmarks.simulated.translation import Translation  # needs further packages

        return Translation(folder, width=run.width, limit=run.limit)
    network = partial(resnet9, width=run.width) if run.model == "resnet9" else IMAGE_MODELS[run.model]
    return Images(run.task, network, folder, limit=run.limit, augment=run.augment)


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
    workers = ObservedWorkers(parameters, run)
    optimizer = optimizer_of(run, list(parameters.values()))
    rate = warmed_then_linear(run.lr, run.warmup)
    curve: list[float] = []
    norms: list[dict[str, float]] = []
    done = 0
    began = time.perf_counter()
    for steps in train_steps(task, workers, optimizer, rate, batch=run.batch, epochs=run.epochs, seed=run.seed):
        done = steps
        curve.append(task.score())
        norms.append(workers.norms())
        if not all(bool(p.isfinite().all()) for p in parameters.values()):
            break
    size = sum(p.numel() for p in parameters.values())
    return {
        task.measure: curve[-1],
        **(task.translations() if run.task == "multi30k" else {}),  # type: ignore[attr-defined]
        "curve": curve,
        "norms": norms,
        "steps": done,
        "parameters": size,
        "bytes_sent": workers.bytes("sent"),
        "bytes_received": workers.bytes("received"),
        "dense_bytes": 4 * size * done,
        "seconds": time.perf_counter() - began,
    }
