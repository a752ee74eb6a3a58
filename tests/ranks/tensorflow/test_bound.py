"""The compressors under Horovod's own tape."""

import logging
from functools import partial

import horovod.tensorflow as hvd
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_ranks import same_on_all_ranks, small_cnn, train

import hvd_compress.tensorflow as hvdc
from hvd_compress.compressors.named import as_compressor
from hvd_compress.tensorflow.compression import TensorFlowCompression

SPECS = ["none", "fp16", "topk(ratio=0.05)", "randomk(ratio=0.1)", "qsgd", "powersgd"]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("op", [hvd.Average, hvd.Sum])
def test_it_is_our_own_tape(spec, op):
    """Both compress tensor by tensor here, with the same random numbers."""
    ours, theirs = small_cnn(), small_cnn()
    bound = TensorFlowCompression(as_compressor(spec)).bind([v.value for v in theirs.trainable_variables], op=op)
    got = train(theirs, partial(hvd.DistributedGradientTape, compression=bound, op=op), 5, rate=0.01)
    assert same_on_all_ranks(got)
    expected = train(ours, partial(hvdc.DistributedGradientTape, compression=spec, bucket_bytes=1, op=op), 5, rate=0.01)
    close = {"rtol": 1e-2, "atol": 1e-3} if spec in ("randomk(ratio=0.1)", "qsgd") else {"rtol": 1e-4, "atol": 1e-6}
    assert np.allclose(got, expected, **close)
    assert bound.compression_stats()["bytes_sent"] > 0


def test_resumed_is_uninterrupted(tmp_path):
    def start(seed):
        model = small_cnn(seed)
        variables = [variable.value for variable in model.trainable_variables]
        bound = hvdc.Compression.topk(ratio=0.05).bind(variables)
        return model, bound, tf.train.Checkpoint(variables=variables, compression=bound)

    model, bound, _ = start(0)
    expected = train(model, partial(hvd.DistributedGradientTape, compression=bound), 6)
    model, bound, checkpoint = start(0)
    train(model, partial(hvd.DistributedGradientTape, compression=bound), 3)
    path = checkpoint.save(str(tmp_path / f"rank-{hvd.rank()}"))
    model, bound, checkpoint = start(1)
    checkpoint.restore(path).assert_consumed()
    assert np.array_equal(train(model, partial(hvd.DistributedGradientTape, compression=bound), 3, start=3), expected)


def test_what_is_wrong_is_refused():
    weights = tf.Variable(tf.ones((40, 40)))
    with tf.GradientTape(persistent=True) as tape:
        loss = tf.reduce_sum(weights**2)
    with pytest.raises(RuntimeError, match="bind it"):
        hvd.DistributedGradientTape(tape, compression=hvdc.Compression.topk()).gradient(loss, [weights])
    with pytest.raises(ValueError, match="whole model at once"):
        hvdc.Compression.topk(scope="model").bind([weights])
    bound = hvdc.Compression.topk().bind([tf.Variable(tf.ones(3))])
    with pytest.raises(ValueError, match="belongs to no bound variable"):
        hvd.DistributedGradientTape(tape, compression=bound).gradient(loss, [weights])


@pytest.mark.parametrize("kind", ["bound", "ours"])
@pytest.mark.parametrize("spec", ["none", "topk(ratio=0.05)"])
def test_autograph_says_nothing(kind, spec):
    """It warns of functions that it cannot transform, and leads users to look for a fault of their own."""
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    weights = tf.Variable(tf.ones((40, 40)))
    bound = hvdc.Compression.parse(spec).bind([weights])

    @tf.function
    def step(inputs):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((inputs @ weights) ** 2)
        if kind == "bound":
            tape = hvd.DistributedGradientTape(tape, compression=bound)
        else:
            tape = hvdc.DistributedGradientTape(tape, compression=spec)
        return tape.gradient(loss, [weights])

    tf.get_logger().addHandler(handler)
    try:
        for _ in range(2):
            step(tf.ones((8, 40)))
    finally:
        tf.get_logger().removeHandler(handler)
    assert not [text for text in said if "AutoGraph" in text]
