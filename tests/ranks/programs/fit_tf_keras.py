"""Fits a model of Keras 2 (`tf_keras`) under Horovod's own optimizer, and saves its weights: FILE SPEC..."""

import os
import sys

os.environ |= {"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}

import horovod.tensorflow.keras as hvd
import numpy as np
import tf_keras

from hvd_compress import parse
from hvd_compress.tensorflow.compression import TensorFlowCompression


def fit(spec):
    """Return the weights, and apart the first and last loss and the bytes sent."""
    tf_keras.utils.set_random_seed(0)
    layers = tf_keras.layers
    model = tf_keras.Sequential(
        [layers.Input((8,)), layers.Dense(64, activation="relu"), layers.Dense(4, activation="softmax")]
    )
    compression = hvd.Compression.none
    if spec != "horovod":
        compression = TensorFlowCompression(parse(spec)).bind(model.trainable_variables, dense_below=0)
    optimizer = hvd.DistributedOptimizer(tf_keras.optimizers.SGD(0.1, momentum=0.9), compression=compression)
    model.compile(optimizer, "sparse_categorical_crossentropy")
    images = np.random.default_rng(hvd.rank()).standard_normal((256, 8)).astype(np.float32)
    labels = 2 * (images[:, 0] > 0) + (images[:, 1] > 0)
    losses = model.fit(images, labels, batch_size=16, epochs=4, verbose=0).history["loss"]
    sent = 0 if spec == "horovod" else compression.compression_stats()["bytes_sent"]
    weights = np.concatenate([array.reshape(-1) for array in model.get_weights()])
    return weights, np.array([losses[0], losses[-1], sent])


if __name__ == "__main__":
    path, *specs = sys.argv[1:]
    hvd.init()
    found = {}
    for spec in specs:
        found[spec], found[f"numbers of {spec}"] = fit(spec)
    np.savez(f"{path}-{hvd.rank()}.npz", **found)
