"""Train an image classifier with a loop of its own in TensorFlow and Horovod, its gradients compressed.

horovodrun -np 2 python examples/tensorflow/train.py --compression "topk(ratio=0.01)"
mpirun -np 2 python examples/tensorflow/train.py --task mnist --data DIR --model cnn --compression powersgd

The last line of rank 0's standard output is a JSON object with what came of it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import say_loading

if __name__ == "__main__":
    say_loading("TensorFlow and Horovod")

import horovod.tensorflow as hvd
import keras
import tensorflow as tf

import hvd_compress.tensorflow as hvdc
from hvd_compress import parse

sys.path.insert(0, str(Path(__file__).parents[1] / "keras"))
from common import arguments, closing, learning_rate, momentum, progress_bar, rules, run_job
from data import Shares, evaluate, load, use_own_part_of_the_machine
from models import MODELS, build


def prepare(args: argparse.Namespace, shares: Shares) -> tuple[keras.Model, Callable[..., tf.Tensor]]:
    """Return the model, and the step that updates it and returns the loss."""
    keras.utils.set_random_seed(args.seed)
    model = build(args.model, shares.data.train_images.shape[1:])
    hvdc.broadcast_variables(model.weights, root_rank=0)
    rate = keras.optimizers.schedules.PolynomialDecay(learning_rate(args), args.epochs * shares.steps, 0.0)
    if args.optimizer == "adam":
        optimizer = keras.optimizers.Adam(rate)
    else:
        optimizer = keras.optimizers.SGD(rate, momentum=momentum(args))

    @tf.function(autograph=False)
    def step(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        tape = hvdc.DistributedGradientTape(tape, compression=args.compression, seed=args.seed, rules=rules(args))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    step.get_concrete_function(*(tf.constant(part) for part in next(shares.epoch(0))))  # says what is wrong now
    return model, step


def train(
    args: argparse.Namespace, shares: Shares, model: keras.Model, step: Callable[..., tf.Tensor]
) -> dict[str, Any]:
    """Train, evaluate, and return what came of it."""
    total = args.epochs * shares.steps
    began = time.perf_counter()
    with progress_bar(total, args, hvd.rank(), hvd.size()) as progress:
        for epoch in range(args.epochs):
            for images, labels in shares.epoch(epoch):
                loss = step(tf.constant(images), tf.constant(labels))
                progress.step_ended(partial(hvdc.compression_stats, model.trainable_variables), loss)
    seconds = time.perf_counter() - began
    accuracy, loss_on_test = evaluate(model, shares.data)
    return closing(
        args,
        hvdc.compression_stats(model.trainable_variables),
        accuracy=accuracy,
        loss=loss_on_test,
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
    return args, shares, *prepare(args, shares)


def main() -> int:
    """Run the job; 2 stands for bad input, 130 for Ctrl-C."""
    args = arguments(__doc__.splitlines()[0], list(MODELS))
    hvd.init()
    use_own_part_of_the_machine()
    return run_job(hvd, lambda: prepared(args), train)


if __name__ == "__main__":
    sys.exit(main())
