"""Checkpoints that were written before the reduction core was one: they resume bit for bit."""

from pathlib import Path

import horovod.tensorflow as hvd
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_ranks import RANKS

from hvd_compress.tensorflow.keras import DistributedOptimizer

CHECKPOINTS = Path(__file__).parents[2] / "data" / "checkpoints"
SHAPES = [(36, 30), (20,)]


@pytest.mark.skipif(RANKS != 2, reason="two ranks wrote them")
@pytest.mark.parametrize(("name", "momentum"), [("topk", 0.9), ("dgc", 0.0)])
def test_it_resumes(name, momentum):
    variables = [keras.Variable(np.zeros(shape, np.float32), name=f"v{i}") for i, shape in enumerate(SHAPES)]
    optimizer = DistributedOptimizer(keras.optimizers.SGD(0.05, momentum=momentum), compression=f"{name}(ratio=0.05)")
    optimizer.build(variables)
    path = CHECKPOINTS / f"tensorflow-{name}-rank{hvd.rank()}"
    tf.train.Checkpoint(variables=variables, optimizer=optimizer).read(str(path)).assert_consumed()
    for step in range(4, 8):
        random = np.random.default_rng(1000 * step + hvd.rank())
        optimizer.apply([tf.constant(random.standard_normal(v.shape).astype(np.float32)) for v in variables])
    with np.load(f"{path}-after.npz") as expected:
        for variable, name in zip(variables, expected.files, strict=True):
            assert np.array_equal(np.asarray(variable), expected[name])
    assert optimizer.compression_stats()["steps"] == 8
