"""Train an image classifier with Keras 3, TensorFlow and Horovod, its gradients compressed.

horovodrun -np 2 python examples/keras/train.py --compression "topk(ratio=0.01)"
mpirun -np 2 python examples/keras/train.py --task mnist --data DIR --model cnn --compression powersgd

The last line of rank 0's standard output is a JSON object with what came of it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import say_loading

if __name__ == "__main__":
    say_loading("Keras and Horovod")

import horovod.tensorflow as hvd
import keras
from common import arguments, closing, learning_rate, momentum, progress_bar, rules, run_job
from data import Shares, evaluate, load, use_own_part_of_the_machine
from models import MODELS, build

from hvd_compress import parse
from hvd_compress.tensorflow.keras import BroadcastAtStart, DistributedOptimizer


class Batches(keras.utils.PyDataset):
    """The batches of this worker, as `fit` takes them."""

    def __init__(self, shares: Shares) -> None:
        super().__init__()
        self.shares, self.number = shares, 0
        self.batches = list(shares.epoch(0))

    def __len__(self) -> int:
        return self.shares.steps

    def __getitem__(self, step: int) -> Any:
        return self.batches[step]

    def on_epoch_end(self) -> None:
        """Go on to the next order."""
        self.number += 1
        self.batches = list(self.shares.epoch(self.number))


class Progress(keras.callbacks.Callback):
    """A progress bar over all steps."""

    def __init__(self, total: int, args: argparse.Namespace) -> None:
        super().__init__()
        self.bar = progress_bar(total, args, hvd.rank(), hvd.size())

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Show the loss."""
        self.bar.step_ended(self.model.optimizer.compression_stats, (logs or {})["loss"])

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Leave the line."""
        self.bar.close()


def prepare(args: argparse.Namespace, shares: Shares) -> keras.Model:
    """Return the model, compiled with a distributed optimizer."""
    keras.utils.set_random_seed(args.seed)
    model = build(args.model, shares.data.train_images.shape[1:])
    rate = keras.optimizers.schedules.PolynomialDecay(learning_rate(args), args.epochs * shares.steps, 0.0)
    if args.optimizer == "adam":
        inner = keras.optimizers.Adam(rate)
    else:
        inner = keras.optimizers.SGD(rate, momentum=momentum(args))
    optimizer = DistributedOptimizer(inner, compression=args.compression, seed=args.seed, rules=rules(args))
    optimizer.build(model.trainable_variables)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def train(args: argparse.Namespace, shares: Shares, model: keras.Model) -> dict[str, Any]:
    """Train, evaluate, and return what came of it."""
    total = args.epochs * shares.steps
    callbacks = [BroadcastAtStart(), Progress(total, args)]
    began = time.perf_counter()
    model.fit(Batches(shares), epochs=args.epochs, shuffle=False, verbose=0, callbacks=callbacks)
    seconds = time.perf_counter() - began
    accuracy, loss = evaluate(model, shares.data)
    return closing(
        args,
        model.optimizer.compression_stats(),
        accuracy=accuracy,
        loss=loss,
        seconds=seconds,
        ranks=hvd.size(),
        steps=total,
        parameters=sum(int(keras.ops.size(variable)) for variable in model.trainable_variables),
        test_examples=len(shares.data.test_labels),
    )


def prepared(args: argparse.Namespace) -> tuple[Any, ...]:
    """Return what `train` takes."""
    parse(args.compression)
    shares = Shares(load(args.task, args.data, args.limit), args.batch_size, args.seed)
    return args, shares, prepare(args, shares)


def main() -> int:
    """Run the job; 2 stands for bad input, 130 for Ctrl-C."""
    args = arguments(__doc__.splitlines()[0], list(MODELS))
    hvd.init()
    use_own_part_of_the_machine()
    return run_job(hvd, lambda: prepared(args), train)


if __name__ == "__main__":
    sys.exit(main())
