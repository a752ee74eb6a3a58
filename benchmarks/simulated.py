"""A training with any number of simulated workers in one process, the bytes counted as on a real transport."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hvd_compress import Simulation, parse
from hvd_compress.ops.torch import TorchOps
from hvd_compress.plan import Gradient, make_plan

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "examples"), str(HERE.parent / "examples" / "torch")]

import datasets  # noqa: E402
import models  # noqa: E402
from runs import Run  # noqa: E402

DENSE_BELOW = 1024


class Workers:
    """The exchange of the gradients of all workers, planned as `DistributedOptimizer` plans it."""

    def __init__(self, parameters: dict[str, Tensor], compression: str, workers: int, seed: int) -> None:
        gradients = [Gradient(name, tuple(p.shape), "float32") for name, p in parameters.items()]
        self.parameters = parameters
        self.buckets = make_plan(gradients, parse(compression), bucket_bytes=1 << 25, dense_below=DENSE_BELOW)
        self.simulations = [
            Simulation(bucket.compressor, bucket.layout, workers, ops=TorchOps(), seed=seed) for bucket in self.buckets
        ]
        self.gradients: list[list[Tensor]] = [[] for _ in self.buckets]

    def collect(self) -> None:
        """Take the gradients of one worker from the parameters."""
        for bucket, own in zip(self.buckets, self.gradients, strict=True):
            parts = [self.parameters[p.name].grad.reshape(-1) for p in bucket.layout.parameters]  # type: ignore[union-attr]
            own.append(torch.cat(parts))
        for parameter in self.parameters.values():
            parameter.grad = None

    def reduce(self) -> None:
        """Exchange what was collected, and set the parameters' gradients to the mean."""
        for bucket, simulation, own in zip(self.buckets, self.simulations, self.gradients, strict=True):
            mean = simulation.reduce(own)[0].mean
            own.clear()
            for p in bucket.layout.parameters:
                self.parameters[p.name].grad = mean[p.slice].view(p.shape).clone()

    @property
    def sent(self) -> int:
        """Bytes that a worker has sent."""
        return sum(simulation.traffic.sent for simulation in self.simulations)

    def norms(self) -> dict[str, float]:
        """Return the norms of the first worker's arrays, such as its residual and momentum, over all buckets."""
        squares: dict[str, float] = {}
        for simulation in self.simulations:
            state = simulation.states[0]
            for name, array in (*state.local.items(), *state.shared.items()):
                squares[name] = squares.get(name, 0.0) + float(array.norm()) ** 2
        return {name: math.sqrt(square) for name, square in squares.items()}


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images, some of them flipped, shifted by up to 4 pixels together."""
    flip = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    images = torch.where(flip, images.flip(3), images)
    dy, dx = torch.randint(0, 9, (2,), generator=generator).tolist()
    side = images.shape[2]
    return functional.pad(images, (4, 4, 4, 4), mode="reflect")[:, :, dy : dy + side, dx : dx + side]


def build(run: Run, images: torch.Size) -> torch.nn.Module:
    """Return the run's network."""
    if run.model == "resnet9":
        return models.resnet9(images[1], images[2], run.width)
    return models.build(run.model, images)


def accuracy(model: torch.nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the part of the images that are told right."""
    model.eval()
    with torch.no_grad():
        right = sum(
            int((model(batch).argmax(dim=1) == answers).sum())
            for batch, answers in zip(images.split(500), labels.split(500), strict=True)
        )
    model.train()
    return right / len(images)


def train(run: Run, folder: str) -> dict[str, Any]:
    """Train, and return the accuracy after each epoch, the bytes, the norms of what workers keep, and the seconds."""
    torch.set_num_threads(1)
    torch.manual_seed(run.seed)
    data = datasets.load(run.task, str(Path(folder) / run.task))
    images, labels = (torch.from_numpy(a[: run.limit or None]) for a in (data.train_images, data.train_labels))
    test_images, test_labels = torch.from_numpy(data.test_images), torch.from_numpy(data.test_labels)
    model = build(run, images.shape)
    parameters = dict(model.named_parameters())
    workers = Workers(parameters, run.compression, run.workers, run.seed)
    momentum = 0.0 if parse(run.compression).has_momentum else 0.9
    optimizer = torch.optim.SGD(parameters.values(), lr=run.lr, momentum=momentum, weight_decay=run.decay)
    random = torch.Generator().manual_seed(run.seed)
    steps, share = len(images) // run.batch, run.batch // run.workers
    total, rising = run.epochs * steps, max(1, round(run.warmup * run.epochs * steps))
    curve: list[float] = []
    norms: list[dict[str, float]] = []
    began = time.perf_counter()
    for epoch in range(run.epochs):
        order = torch.randperm(len(images), generator=random)
        for step in range(steps):
            done = epoch * steps + step
            rate = run.lr * min((done + 1) / rising, 1.0) * min(1.0, (total - done) / max(1, total - rising))
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch = order[step * run.batch : (step + 1) * run.batch]
            inputs = augmented(images[batch], random) if run.augment else images[batch]
            answers = labels[batch]
            for worker in range(run.workers):
                own = slice(worker * share, (worker + 1) * share)
                functional.cross_entropy(model(inputs[own]), answers[own]).backward()
                workers.collect()
            workers.reduce()
            optimizer.step()
            optimizer.zero_grad()
        curve.append(accuracy(model, test_images, test_labels))
        norms.append(workers.norms())
        if not all(bool(p.isfinite().all()) for p in parameters.values()):
            break
    size = sum(p.numel() for p in parameters.values())
    return {
        "accuracy": curve[-1],
        "curve": curve,
        "norms": norms,
        "steps": len(curve) * steps,
        "parameters": size,
        "bytes_sent": workers.sent,
        "dense_bytes": 4 * size * len(curve) * steps,
        "seconds": time.perf_counter() - began,
    }
