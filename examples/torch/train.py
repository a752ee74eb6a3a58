"""Train an image classifier with PyTorch and Horovod, its gradients compressed.

horovodrun -np 2 python examples/torch/train.py --compression "topk(ratio=0.01)"
mpirun -np 2 python examples/torch/train.py --task mnist --data DIR --model cnn --compression powersgd

The last line of rank 0's standard output is a JSON object with what came of it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import horovod.torch as hvd
import torch
from torch.nn import functional
from tqdm import tqdm

import hvd_compress.torch as hvdc
from hvd_compress import methods, parse, spec

sys.path.insert(0, str(Path(__file__).parents[1]))
import datasets
from models import MODELS, build

RATES = {"sgd": 0.1, "momentum": 0.05, "adam": 0.001}


def arguments(line: list[str] | None = None) -> argparse.Namespace:
    """Read the command line, or one that is given."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--task", choices=datasets.TASKS, default="digits", help="the data set")
    parser.add_argument("--data", metavar="DIR", help="folder with the files of mnist or cifar10; digits needs none")
    parser.add_argument("--model", choices=sorted(MODELS), default="mlp", help="the network")
    parser.add_argument(
        "--compression", metavar="SPEC", default="none", help=f"a compressor: {', '.join(methods())}, with settings"
    )
    parser.add_argument(
        "--rule",
        metavar="PATTERN=SPEC",
        action="append",
        default=[],
        help="another compressor for parameters of these names, such as '*.bias=none'; may be repeated, the first "
        "that matches decides",
    )
    parser.add_argument("--optimizer", choices=sorted(RATES), default="momentum", help="momentum is SGD with 0.9")
    rates = ", ".join(f"{rate} for {name}" for name, rate in RATES.items())
    parser.add_argument(
        "--lr", type=float, help=f"learning rate at the start, falling to 0 linearly (if none: {rates})"
    )
    parser.add_argument("--epochs", type=int, default=10, help="passes over the training data")
    parser.add_argument("--batch-size", type=int, default=32, help="examples a step on each worker")
    parser.add_argument("--limit", type=int, metavar="N", help="use only the first N training examples")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the order of the data and the compressor")
    args = parser.parse_args(line)
    for name in ("epochs", "batch_size", "limit"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1; got {value}")
    for rule in args.rule:
        if "=" not in rule:
            parser.error(f"--rule must be PATTERN=SPEC; got {rule}")
    return args


def prepare(args: argparse.Namespace, data: datasets.Dataset) -> tuple[torch.nn.Module, Any]:
    """Return the model and its optimizer."""
    torch.manual_seed(args.seed)
    model = build(args.model, data.train_images.shape)
    rate = RATES[args.optimizer] if args.lr is None else args.lr
    inner: torch.optim.Optimizer
    if args.optimizer == "adam":
        inner = torch.optim.Adam(model.parameters(), lr=rate)
    else:
        # Some methods keep the momentum themselves; the optimizer then has none.
        momentum = 0.9 if args.optimizer == "momentum" and not parse(args.compression).has_momentum else 0
        inner = torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum)
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    optimizer = hvdc.DistributedOptimizer(
        inner,
        named_parameters=model.named_parameters(),
        compression=args.compression,
        seed=args.seed,
        rules=[tuple(rule.split("=", 1)) for rule in args.rule],
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
    with progress_bar(total, args.compression) as progress:
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
    stats = optimizer.compression_stats()
    return {
        "accuracy": accuracy,
        "loss": loss_on_test,
        "bytes_sent": stats["bytes_sent"],
        "dense_bytes": stats["dense_bytes"],
        "seconds": seconds,
        "compression_seconds": stats["compression_seconds"],
        "communication_seconds": stats["communication_seconds"],
        "ranks": hvd.size(),
        "compression": spec(parse(args.compression)),
        "rules": args.rule,
        "steps": total,
        "parameters": sum(p.numel() for p in model.parameters()),
        "task": args.task,
        "model": args.model,
        "optimizer": args.optimizer,
        "seed": args.seed,
        "test_examples": len(data.test_labels),
    }


class Lines:
    """A stream on which a progress bar adds lines rather than redraws one."""

    def write(self, text: str) -> None:
        """Write a line, if there is anything in it."""
        if text.strip():
            sys.stderr.write(text.strip() + "\n")

    def flush(self) -> None:
        """Write what is left."""
        sys.stderr.flush()


def progress_bar(total: int, title: str) -> tqdm[NoReturn]:
    """Return a progress bar on rank 0: one that redraws itself, or under a launcher a line every few seconds.

    Open MPI 5 forwards whole lines only: what redraws itself would be seen at the end, all at once.
    """
    lines = {"file": Lines(), "mininterval": 3.0} if hvd.size() > 1 else {}
    return tqdm(total=total, unit="step", disable=hvd.rank() != 0, desc=title, **lines)


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


def main() -> int:
    """Run the job; 2 stands for bad input, 130 for Ctrl-C."""
    args = arguments()
    hvd.init()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // hvd.local_size()))
    try:
        parse(args.compression)
        data = datasets.load(args.task, args.data)
        model, optimizer = prepare(args, data)
    except (OSError, TypeError, ValueError) as error:
        if hvd.rank() == 0:
            print(f"train.py: {error}", file=sys.stderr)
        return 2
    try:
        result = train(args, data, model, optimizer)
    except KeyboardInterrupt:
        if hvd.rank() == 0:
            print("interrupted", file=sys.stderr)
        os._exit(130)  # the other workers are stopping as well: there is nobody to take leave of
    if hvd.rank() == 0:
        print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
