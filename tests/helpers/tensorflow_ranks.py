"""What the tests of TensorFlow on real ranks share: models, data, training, comparisons."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import horovod.tensorflow as hvd
import keras
import numpy as np
import tensorflow as tf
from specs import FEW

from hvd_compress import methods, parse

RANKS = int(os.environ.get("OMPI_COMM_WORLD_SIZE") or os.environ.get("HOROVOD_SIZE") or 2)
SPECS = list(dict.fromkeys([*FEW, *methods(), "ef_signsgd(feedback=momentum(masking=False, clip=1.0))"]))
# Passed to hvd.init: process sets that are added and removed later can slow Horovod down by 0.1 s a step.
SECOND = hvd.ProcessSet([1])
if RANKS > 2:
    SPECS = FEW


def small_cnn(seed=0):
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(40, activation="relu"),
            layers.Dense(10),
        ]
    )


def batch(step, size=16):
    """A batch of this rank's own."""
    images = np.random.default_rng([step, hvd.rank()]).standard_normal((size, 8, 8, 1)).astype(np.float32)
    return images, np.abs(images.sum(axis=(1, 2, 3))).astype(np.int64) % 10


def loss_of(model, images, labels):
    logits = model(images)
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))


def train(model, wrap, steps, start=0, graph=True, rate=0.05):
    """SGD by hand: `wrap` makes a distributed tape of a tape."""

    def step(images, labels):
        with tf.GradientTape() as tape:
            loss = loss_of(model, images, labels)
        variables = [variable.value for variable in model.trainable_variables]  # Horovod's own tape takes no others
        gradients = wrap(tape).gradient(loss, variables)
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.assign_sub(rate * gradient)

    step = tf.function(step, autograph=False) if graph else step
    for number in range(start, start + steps):
        step(*map(tf.constant, batch(number)))
    return flat(model)


def flat(model):
    return np.concatenate([np.asarray(v).reshape(-1) for v in model.trainable_variables])


def same_on_all_ranks(vector):
    gathered = hvd.allgather(tf.constant(vector[None]), name="same_on_all_ranks").numpy()
    return all(np.array_equal(row, gathered[0]) for row in gathered)


def rate_for(spec):
    """The learning rate: methods that send signs need a small one."""
    return 0.002 if parse(spec).bare.name in ("signsgd", "signum") else 0.05
