"""What the TensorFlow and the Keras example do with the data and the machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import datasets
import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf
from common import threads
from numpy.typing import NDArray

Batch = tuple[NDArray[np.float32], NDArray[np.int64]]


def use_own_part_of_the_machine() -> None:
    """Take one GPU, or this worker's share of the cores."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        tf.config.set_visible_devices(gpus[hvd.local_rank() % len(gpus)], "GPU")
    tf.config.threading.set_intra_op_parallelism_threads(threads(hvd.local_size()))


def load(task: str, folder: str | None, limit: int | None) -> datasets.Dataset:
    """Return a data set with the channels last, as TensorFlow has them on the CPU."""
    data = datasets.load(task, folder)
    both = (data.train_images, data.test_images)
    train, test = (np.ascontiguousarray(images.transpose(0, 2, 3, 1)) for images in both)
    return datasets.Dataset(train[:limit], data.train_labels[:limit], test, data.test_labels)


class Shares:
    """The batches of this worker: each epoch has one order of all examples, of which each worker takes its share."""

    def __init__(self, data: datasets.Dataset, batch_size: int, seed: int) -> None:
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.steps = max(1, len(data.train_labels) // (batch_size * hvd.size()))

    def epoch(self, number: int) -> Iterator[Batch]:
        """Give the batches of an epoch."""
        order = np.random.default_rng([self.seed, number]).permutation(len(self.data.train_labels))
        own = order[hvd.rank() :: hvd.size()]
        for step in range(self.steps):
            batch = own[step * self.batch_size : (step + 1) * self.batch_size]
            yield self.data.train_images[batch], self.data.train_labels[batch]


def evaluate(model: Any, data: datasets.Dataset) -> tuple[float, float]:
    """Return accuracy and mean loss on the test data, of which each worker takes its share."""
    sums = np.zeros(2)
    own = np.arange(hvd.rank(), len(data.test_labels), hvd.size())
    for batch in np.array_split(own, max(1, len(own) // 256)):
        logits, labels = model(data.test_images[batch], training=False), data.test_labels[batch]
        sums[0] += np.sum(np.argmax(logits, axis=1) == labels)
        sums[1] += float(tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)))
    right, loss = np.asarray(hvd.allreduce(tf.constant(sums), op=hvd.Sum, name="evaluate")) / len(data.test_labels)
    return float(right), float(loss)
