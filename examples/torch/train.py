"""Train an image classifier with PyTorch and Horovod, its gradients compressed.

horovodrun -np 2 python examples/torch/train.py --compression "topk(ratio=0.01)"
mpirun -np 2 python examples/torch/train.py --task mnist --data DIR --model cnn --compression powersgd

The last line of rank 0's standard output is a JSON object with what came of it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import horovod.torch as hvd
import torch
from torch.nn import functional

import hvd_compress.torch as hvdc
from hvd_compress import parse

sys.path.insert(0, str(Path(__file__).parents[1]))
import datasets
from common import arguments, closing, learning_rate, momentum, progress_bar, rules, run_job
from models import MODELS, build


def prepare(args: argparse.Namespace, data: datasets.Dataset) -> tuple[torch.nn.Module, Any]:
    """Return the model and its optimizer."""
    torch.manual_seed(args.seed)
    model = build(args.model, data.train_images.shape)
    inner: torch.optim.Optimizer
    if args.optimizer == "adam":
        inner = torch.optim.Adam(model.parameters(), lr=learning_rate(args))
    else:
        inner = torch.optim.SGD(model.parameters(), lr=learning_rate(args), momentum=momentum(args))
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    optimizer = hvdc.DistributedOptimizer(
        inner,
        named_parameters=model.named_parameters(),
        compression=args.compression,
        seed=args.seed,
        rules=rules(args),
    )
    return model, optimizer


def train(
    args: argparse.Namespace, data: datasets.Dataset, model: torch.nn.Module, optimizer: Any
) -> dict[str, object]:
    """Train, evaluate, and return what came of it."""
    images, labels = (torch.from_numpy(array[: args.limit]) for array in (data.train_images, data.train_labels))
    # Each epoch has one order of all examples, the same on all workers, of which each takes its share.
    order_of = torch.Generator().manual_seed(args.seed)
    steps_per_epoch = max(1, len(images) // (args.batch_size * hvd.size()))
    total = args.epochs * steps_per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    began = time.perf_counter()
    model.train()
    with progress_bar(total, args.compression, hvd.rank(), hvd.size()) as progress:
        for _ in range(args.epochs):
            own = torch.randperm(len(images), generator=order_of)[hvd.rank() :: hvd.size()]
            for step in range(steps_per_epoch):
                batch = own[step * args.batch_size : (step + 1) * args.batch_size]
                optimizer.zero_grad()
                loss = functional.cross_entropy(model(images[batch]), labels[batch])
                loss.backward()
                optimizer.step()
                schedule.step()
                progress.update()
                progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    seconds = time.perf_counter() - began
    accuracy, loss_on_test = evaluate(model, data)
    return closing(
        args,
        optimizer.compression_stats(),
        accuracy=accuracy,
        loss=loss_on_test,
        seconds=seconds,
        ranks=hvd.size(),
        steps=total,
        parameters=sum(p.numel() for p in model.parameters()),
        test_examples=len(data.test_labels),
    )


def use_own_part_of_the_machine() -> None:
    """Take this worker's share of the cores."""
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // hvd.local_size()))


@torch.no_grad()
def evaluate(model: torch.nn.Module, data: datasets.Dataset) -> tuple[float, float]:
    """Return accuracy and mean loss on the test data, of which each worker takes its share."""
    model.eval()
    images, labels = torch.from_numpy(data.test_images), torch.from_numpy(data.test_labels)
    sums = torch.zeros(2, dtype=torch.float64)
    own = torch.arange(hvd.rank(), len(images), hvd.size())
    for batch in own.split(256):
        output = model(images[batch])
        sums[0] += (output.argmax(dim=1) == labels[batch]).sum()
        sums[1] += functional.cross_entropy(output, labels[batch], reduction="sum")
    right, loss = (hvd.allreduce(sums, op=hvd.Sum) / len(images)).tolist()
    return right, loss


def prepared(args: argparse.Namespace) -> tuple[Any, ...]:
    """Return what `train` takes."""
    parse(args.compression)
    data = datasets.load(args.task, args.data)
    return (args, data, *prepare(args, data))


def main() -> int:
    """Run the job; 2 stands for bad input, 130 for Ctrl-C."""
    args = arguments(__doc__.splitlines()[0], list(MODELS))
    hvd.init()
    use_own_part_of_the_machine()
    return run_job(hvd, lambda: prepared(args), train)


if __name__ == "__main__":
    sys.exit(main())
