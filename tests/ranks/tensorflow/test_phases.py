"""Where the time of a step goes in TensorFlow: phases that add up, and what overlaps."""

import time

import horovod.tensorflow as hvd
import keras
import pytest
import tensorflow as tf
from tensorflow_ranks import batch, loss_of, small_cnn, train
from timelines import since, total

import hvd_compress.tensorflow as hvdc
from hvd_compress.tensorflow.keras import DistributedOptimizer

NAP, STEPS = 0.02, 5


def nap(images):
    time.sleep(NAP)
    return images


def slow_step(model, graph, **settings):
    variables = [variable.value for variable in model.trainable_variables]

    def step(images, labels):
        images = tf.ensure_shape(tf.numpy_function(nap, [images], tf.float32), [16, 8, 8, 1])
        with tf.GradientTape() as tape:
            loss = loss_of(model, images, labels)
        gradients = hvdc.DistributedGradientTape(tape, **settings).gradient(loss, variables)
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.assign_sub(0.05 * gradient)

    return (tf.function(step, autograph=False) if graph else step), variables


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("spec", ["none", "topk(ratio=0.1)", "powersgd"])
def test_the_phases_add_up_and_something_is_hidden(spec, graph):
    step, variables = slow_step(small_cnn(), graph, compression=spec, bucket_bytes=1)
    for number in range(2):
        step(*map(tf.constant, batch(number)))
    earlier, began = hvdc.compression_stats(variables, phases=True)["phases"], time.perf_counter()
    for number in range(STEPS):
        step(*map(tf.constant, batch(number)))
    wall, stats = time.perf_counter() - began, hvdc.compression_stats(variables, phases=True)
    phases = since(stats["phases"], earlier)
    assert total(phases) == pytest.approx(wall, rel=0.1)  # both end with the exchange of a step
    assert phases["computing"] >= NAP * STEPS
    assert phases["optimizer"] is None
    assert phases["wire"]["hidden"] > 0
    assert phases["wire"]["exposed"] > 0
    assert 0 < phases["encode"]["in_backward"] <= phases["encode"]["exposed"]
    assert stats["communication_seconds"] == stats["phases"]["wire"]["exposed"]


def test_keras_and_horovod_s_own_tape_have_phases():
    model = small_cnn()
    optimizer = DistributedOptimizer(keras.optimizers.SGD(0.01), compression="topk(ratio=0.1)")
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    began = time.perf_counter()
    model.fit(*batch(0, 64), batch_size=16, verbose=0)
    phases = optimizer.compression_stats(phases=True)["phases"]
    assert 0 < total(phases) <= time.perf_counter() - began
    assert min(phases["encode"]["exposed"], phases["decode"]["exposed"], phases["wire"]["exposed"]) > 0

    model = small_cnn()
    bound = hvdc.Compression.topk(ratio=0.1).bind([variable.value for variable in model.trainable_variables])
    began = time.perf_counter()
    train(model, lambda tape: hvd.DistributedGradientTape(tape, compression=bound), 3)
    phases = bound.compression_stats(phases=True)["phases"]
    assert 0 < total(phases) <= time.perf_counter() - began
    assert min(phases["encode"]["exposed"], phases["decode"]["exposed"]) > 0
