"""Train a network with Hugging Face Accelerate, its gradients compressed.

torchrun --nproc-per-node 2 examples/torch/train_accelerate.py --compression "topk(ratio=0.01)"

Accelerate wraps the model in DDP: one more line registers the compression. The last line of rank 0's standard output
is a JSON object with what came of it.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import say_loading

if __name__ == "__main__":
    say_loading("PyTorch and Accelerate")

import datasets
import torch
from accelerate import Accelerator
from common import progress_bar, rules
from models import build
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from training import Processes, inner_optimizer, loss_of, outcome, run_under_torchrun, same_on_all

from hvd_compress import parse
from hvd_compress.torch import ddp


def prepared(args: argparse.Namespace) -> tuple[Any, ...]:
    """Return what `train` takes."""
    parse(args.compression)
    accelerator, data = Accelerator(cpu=True), datasets.load(args.task, args.data)
    torch.manual_seed(args.seed)
    model = build(args.model, data)
    arrays = (torch.from_numpy(array[: args.limit]) for array in (data.train_images, data.train_labels))
    loader = DataLoader(TensorDataset(*arrays), args.batch_size, shuffle=True, drop_last=True)
    model, optimizer, loader = accelerator.prepare(model, inner_optimizer(args, model), loader)
    compression = ddp.register(model, args.compression, seed=args.seed, rules=rules(args))
    return args, data, accelerator, model, optimizer, loader, compression


def train(
    args: argparse.Namespace,
    data: datasets.Dataset,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader[tuple[Tensor, ...]],
    compression: ddp.RegisteredCompression,
) -> dict[str, object]:
    """Train, evaluate, and return what came of it."""
    began, steps = time.perf_counter(), args.epochs * len(loader)
    stats = compression.compression_stats
    with progress_bar(steps, args, accelerator.process_index, accelerator.num_processes) as progress:
        for _ in range(args.epochs):
            for images, labels in loader:
                optimizer.zero_grad()
                accelerator.backward(loss_of(model(images), labels))
                optimizer.step()
                progress.step_ended(stats)
    seconds = time.perf_counter() - began
    return {
        **outcome(args, data, model, stats, Processes(), Processes.sum, steps, seconds),
        "same_weights": same_on_all(model),
    }


if __name__ == "__main__":
    sys.exit(run_under_torchrun(__doc__.splitlines()[0], prepared, train))
