"""Where the time of a step goes in TensorFlow: phases that add up, what overlaps, and the trace of every rank."""

import time

import horovod.tensorflow as hvd
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_ranks import batch, loss_of, same_on_all_ranks, small_cnn, train
from timelines import read, since, total

import hvd_compress.tensorflow as hvdc
from hvd_compress.reduction.trace import trace_of
from hvd_compress.tensorflow.keras import DistributedOptimizer
from hvd_compress.tensorflow.reducer import _found
from hvd_compress.transports import WorkerFailed

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
    assert total(phases) == pytest.approx(wall, rel=0.1, abs=0.05)  # both end with the exchange of a step
    assert phases["computing"] >= NAP * STEPS
    assert phases["optimizer"] is None
    assert phases["wire"]["hidden"] > 0
    assert phases["wire"]["exposed"] > 0
    assert 0 < phases["encode"]["in_backward"] <= phases["encode"]["exposed"]
    assert stats["communication_seconds"] == stats["phases"]["wire"]["exposed"]


@pytest.mark.parametrize("spec", ["none", "topk(ratio=0.1)", "powersgd"])
def test_each_rank_s_trace_has_all_buckets_and_rounds(spec, tmp_path, monkeypatch):
    monkeypatch.setenv("HVD_COMPRESS_TIMELINE", str(tmp_path / "%r.json"))
    step, variables = slow_step(small_cnn(), True, compression=spec, bucket_bytes=1, dense_below=1)
    for number in range(3):
        step(*map(tf.constant, batch(number)))
    trace_of(hvd.rank()).write()
    lines = read(tmp_path / f"{hvd.rank()}.json")
    exchanges = _found(variables).exchanges
    assert len(exchanges) > 3
    for exchange in exchanges:
        for number in range(1, 4):
            names = [" ".join(map(str, event)) for event in lines[exchange.line][number]]
            assert names[0] == "encode"
            assert [name for name in names if name.startswith("wire")] == [
                f"wire {number}" for number in range(len(exchange.rounds))
            ]
            assert names[-1] == "decode"


def test_keras_and_horovod_s_own_tape_have_phases(monkeypatch):
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


def test_a_file_that_one_rank_cannot_write_is_an_error_on_all(monkeypatch):
    last = hvd.size() - 1
    if hvd.rank() == last:
        monkeypatch.setenv("HVD_COMPRESS_TIMELINE", "/no/such/folder/%r.json")
    model = small_cnn()
    said = f"rank {last} failed with OSError: HVD_COMPRESS_TIMELINE: /no/such/folder/{last}.json cannot be written"
    with pytest.raises(WorkerFailed, match=said):
        train(model, hvdc.DistributedGradientTape, 1)
    monkeypatch.delenv("HVD_COMPRESS_TIMELINE", raising=False)
    weights = train(model, hvdc.DistributedGradientTape, 2)
    assert np.isfinite(weights).all()
    assert same_on_all_ranks(weights)
