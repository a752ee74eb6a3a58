"""Trains a perceptron, the same one in every framework, and saves its weights for each spec: FRAMEWORK FILE SPEC..."""

import importlib
import os
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import numpy as np

STEPS, RATE = 20, 0.05
SHAPES = [(64, 40), (40,), (40, 30)]


def initial():
    random = np.random.default_rng(0)
    return [0.2 * random.standard_normal(shape).astype(np.float32) for shape in SHAPES]


def batch(step, rank):
    images = np.random.default_rng([step, rank]).standard_normal((16, 64)).astype(np.float32)
    return images, np.abs(images.sum(axis=1)).astype(np.int64) % 30


def train_torch(spec):
    import horovod.torch as hvd
    import torch

    import hvd_compress.torch as hvdc

    torch.set_num_threads(1)
    parameters = [torch.nn.Parameter(torch.from_numpy(array)) for array in initial()]
    named = [(str(number), parameter) for number, parameter in enumerate(parameters)]
    optimizer = hvdc.DistributedOptimizer(torch.optim.SGD(parameters, lr=RATE), named, compression=spec)
    for step in range(STEPS):
        images, labels = map(torch.from_numpy, batch(step, hvd.rank()))
        optimizer.zero_grad()
        hidden = torch.relu(images @ parameters[0] + parameters[1])
        torch.nn.functional.cross_entropy(hidden @ parameters[2], labels).backward()
        optimizer.step()
    return [parameter.detach().numpy() for parameter in parameters]


def train_tensorflow(spec):
    import horovod.tensorflow as hvd
    import tensorflow as tf

    import hvd_compress.tensorflow as hvdc

    variables = [tf.Variable(array) for array in initial()]

    @tf.function(autograph=False)
    def update(images, labels):
        with tf.GradientTape() as tape:
            hidden = tf.nn.relu(images @ variables[0] + variables[1])
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, hidden @ variables[2])
            loss = tf.reduce_mean(losses)
        for v, g in zip(
            variables, hvdc.DistributedGradientTape(tape, compression=spec).gradient(loss, variables), strict=True
        ):
            v.assign_sub(RATE * g)

    for step in range(STEPS):
        update(*map(tf.constant, batch(step, hvd.rank())))
    return [variable.numpy() for variable in variables]


if __name__ == "__main__":
    framework, path, *specs = sys.argv[1:]
    hvd = importlib.import_module(f"horovod.{framework}")
    hvd.init()
    train = {"torch": train_torch, "tensorflow": train_tensorflow}[framework]
    weights = {spec: np.concatenate([array.reshape(-1) for array in train(spec)]) for spec in specs}
    np.savez(f"{path}-{hvd.rank()}.npz", **weights)
