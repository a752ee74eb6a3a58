"""Train a network with Lightning, its gradients compressed.

torchrun --nproc-per-node 2 examples/torch/train_lightning.py --compression "topk(ratio=0.01)"

Lightning wraps the model in DDP: a callback registers the compression. The last line of rank 0's standard output is a
JSON object with what came of it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import say_loading

if __name__ == "__main__":
    say_loading("PyTorch and Lightning")

import datasets
import lightning
import torch
import torch.distributed as dist
from common import progress_bar, rules
from models import build
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from training import Processes, inner_optimizer, loss_of, outcome, run_under_torchrun, same_on_all

from hvd_compress import parse
from hvd_compress.torch import ddp


class Compress(lightning.Callback):
    """Registers the compression as soon as Lightning has wrapped the model."""

    compression: ddp.RegisteredCompression

    def __init__(self, spec: str, **settings: Any) -> None:
        self.spec, self.settings = spec, settings

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Do so."""
        self.compression = ddp.register(trainer.strategy.model, self.spec, **self.settings)


class Progress(lightning.Callback):
    """Shows how far the training is, on rank 0."""

    def __init__(self, compress: Compress) -> None:
        self.compress = compress

    def on_train_start(self, trainer: lightning.Trainer, module: Network) -> None:
        """Begin."""
        steps = int(trainer.estimated_stepping_batches)
        self.bar = progress_bar(steps, module.args, trainer.global_rank, trainer.world_size)

    def on_train_batch_end(self, *_: Any) -> None:
        """Count a step."""
        self.bar.step_ended(self.compress.compression.compression_stats)

    def on_train_end(self, *_: Any) -> None:
        """End."""
        self.bar.close()


class Network(lightning.LightningModule):
    """A network of the examples."""

    def __init__(self, args: argparse.Namespace, data: datasets.Dataset) -> None:
        super().__init__()
        self.args = args
        self.network = build(args.model, data)

    def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
        """Return the loss of a batch."""
        images, labels = batch
        return loss_of(self.network(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer that the command line asks for."""
        return inner_optimizer(self.args, self)


def prepared(args: argparse.Namespace) -> tuple[Any, ...]:
    """Return what `train` takes."""
    parse(args.compression)
    data = datasets.load(args.task, args.data)
    torch.manual_seed(args.seed)
    return args, data, Network(args, data), Compress(args.compression, seed=args.seed, rules=rules(args))


def train(args: argparse.Namespace, data: datasets.Dataset, network: Network, compress: Compress) -> dict[str, object]:
    """Train, evaluate, and return what came of it."""
    arrays = (torch.from_numpy(array[: args.limit]) for array in (data.train_images, data.train_labels))
    loader = DataLoader(TensorDataset(*arrays), args.batch_size, shuffle=True, drop_last=True)
    processes = int(os.environ["LOCAL_WORLD_SIZE"])
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=processes,
        num_nodes=dist.get_world_size() // processes,
        strategy="ddp",
        max_epochs=args.epochs,
        callbacks=[compress, Progress(compress)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    began = time.perf_counter()
    trainer.fit(network, loader)
    seconds, stats = time.perf_counter() - began, compress.compression.compression_stats
    model = network.network
    return {
        **outcome(args, data, model, stats, Processes(), Processes.sum, trainer.global_step, seconds),
        "same_weights": same_on_all(model),
    }


if __name__ == "__main__":
    sys.exit(run_under_torchrun(__doc__.splitlines()[0], prepared, train))
