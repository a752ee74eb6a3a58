"""What the examples for PyTorch share: a training, whoever averages the gradients."""

from __future__ import annotations

import argparse
import os
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))
import datasets
from common import arguments, closing, learning_rate, momentum, progress_bar, run_job, threads
from models import MODELS


class World(Protocol):
    """The workers of a job: Horovod's module, or one that has its functions."""

    def rank(self) -> int:
        """Return this worker's number."""

    def size(self) -> int:
        """Return the number of workers."""


class Processes:
    """The processes that torchrun has started."""

    rank = staticmethod(dist.get_rank)
    size = staticmethod(dist.get_world_size)

    @staticmethod
    def sum(tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all of them."""
        dist.all_reduce(tensor)
        return tensor


def run_under_torchrun(
    description: str, prepare: Callable[[argparse.Namespace], tuple[Any, ...]], train: Callable[..., dict[str, Any]]
) -> int:
    """Read the command line and run the job; return 2 for bad input, and exit with 130 at Ctrl-C.

    Args:
        description: what the example does, for --help.
        prepare: returns what `train` takes, once all processes have met.
        train: returns what came of it.
    """
    args = arguments(description, list(MODELS), datasets.TASKS)
    if "RANK" not in os.environ:
        name = Path(sys.argv[0]).name
        sys.exit(f"{name}: start it with torchrun: torchrun --nproc-per-node 2 examples/torch/{name}")
    dist.init_process_group("gloo")
    share_machine(int(os.environ["LOCAL_WORLD_SIZE"]))
    try:
        return run_job(Processes, lambda: prepare(args), train)
    finally:
        dist.destroy_process_group()


def same_on_all(model: nn.Module) -> bool:
    """Tell whether all processes have the same weights, bit for bit."""
    weights = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    digests: list[int] = [0] * dist.get_world_size()
    dist.all_gather_object(digests, zlib.crc32(weights.numpy().tobytes()))
    return len(set(digests)) == 1


def inner_optimizer(args: argparse.Namespace, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer that the command line asks for."""
    if args.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=learning_rate(args))
    return torch.optim.SGD(model.parameters(), lr=learning_rate(args), momentum=momentum(args))


def share_machine(workers: int) -> None:
    """Take this worker's share of the cores, of which there are some `workers` on this machine."""
    torch.set_num_threads(threads(workers))


def loss_of(output: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """Return the cross entropy of scores of shape (..., classes) and labels of shape (...)."""
    return functional.cross_entropy(output.flatten(0, -2), labels.flatten(), reduction=reduction)


def train(
    args: argparse.Namespace,
    data: datasets.Dataset,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    stats: Callable[[], dict[str, Any]],
    world: World,
    sum_over_workers: Callable[[Tensor], Tensor],
) -> dict[str, object]:
    """Train, evaluate, and return what came of it.

    Args:
        args: the command line.
        data: what to train on.
        model: what is called.
        optimizer: what steps.
        stats: returns what was sent.
        world: the workers.
        sum_over_workers: sums a tensor over them.
    """
    images, labels = (torch.from_numpy(array[: args.limit]) for array in (data.train_images, data.train_labels))
    # Each epoch has one order of all examples, the same on all workers, of which each takes its share.
    order_of = torch.Generator().manual_seed(args.seed)
    steps_per_epoch = max(1, len(images) // (args.batch_size * world.size()))
    total = args.epochs * steps_per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    began = time.perf_counter()
    model.train()
    with progress_bar(total, args, world.rank(), world.size()) as progress:
        for _ in range(args.epochs):
            own = torch.randperm(len(images), generator=order_of)[world.rank() :: world.size()]
            for step in range(steps_per_epoch):
                batch = own[step * args.batch_size : (step + 1) * args.batch_size]
                optimizer.zero_grad()
                loss = loss_of(model(images[batch]), labels[batch])
                loss.backward()
                optimizer.step()
                schedule.step()
                progress.step_ended(stats, loss)
    return outcome(args, data, model, stats, world, sum_over_workers, total, time.perf_counter() - began)


def outcome(
    args: argparse.Namespace,
    data: datasets.Dataset,
    model: nn.Module,
    stats: Callable[[], dict[str, Any]],
    world: World,
    sum_over_workers: Callable[[Tensor], Tensor],
    steps: int,
    seconds: float,
) -> dict[str, object]:
    """Evaluate, and return what came of a training of so many steps and seconds."""
    accuracy, loss = evaluate(model, data, world, sum_over_workers)
    return closing(
        args,
        stats(),
        accuracy=accuracy,
        loss=loss,
        seconds=seconds,
        ranks=world.size(),
        steps=steps,
        parameters=sum(p.numel() for p in model.parameters()),
        test_examples=len(data.test_labels),
    )


@torch.no_grad()
def evaluate(
    model: nn.Module, data: datasets.Dataset, world: World, sum_over_workers: Callable[[Tensor], Tensor]
) -> tuple[float, float]:
    """Return accuracy and mean loss on the test data, of which each worker takes its share."""
    model.eval()
    images, labels = torch.from_numpy(data.test_images), torch.from_numpy(data.test_labels)
    sums = torch.zeros(2, dtype=torch.float64)
    own = torch.arange(world.rank(), len(images), world.size())
    for batch in own.split(256):
        output = model(images[batch])
        sums[0] += (output.argmax(dim=-1) == labels[batch]).sum()
        sums[1] += loss_of(output, labels[batch], reduction="sum")
    right, loss = (sum_over_workers(sums) / labels.numel()).tolist()
    return right, loss
