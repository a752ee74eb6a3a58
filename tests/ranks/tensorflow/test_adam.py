"""Adam with a compressed momentum, for Keras 3."""

import horovod.tensorflow as hvd
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_ranks import batch, flat, loss_of, same_on_all_ranks, small_cnn

from hvd_compress.tensorflow.keras import CompressedAdam, DistributedOptimizer

SPECS = ("onebit", "sketched_sgd(budget=0.2)", "powersgd")


def adam(compression, warmup, **settings):
    # A variance of a few steps is next to 0 here and there.
    return CompressedAdam(
        warmup_steps=warmup, compression=compression, **({"learning_rate": 0.01, "epsilon": 0.01} | settings)
    )


def fit(model, optimizer, steps, start=0, **compiled):
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), **compiled)
    for step in range(start, start + steps):
        model.train_on_batch(*batch(step))
    return flat(model)


@pytest.mark.parametrize("eagerly", [False, True])
def test_the_first_phase_is_adamw(eagerly):
    inner = keras.optimizers.AdamW(0.01, weight_decay=0.1, epsilon=0.01)
    expected = fit(small_cnn(), DistributedOptimizer(inner), 4)
    got = fit(small_cnn(), adam("onebit", 100, weight_decay=0.1), 4, run_eagerly=eagerly)
    assert np.allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("compression", ["none", "topk(ratio=1)"])
def test_without_loss_it_is_adam_with_a_frozen_variance(compression):
    """All ranks' gradients are computed here as well, and averaged without any help."""
    model, alone, warmup, steps = small_cnn(), small_cnn(), 3, 8
    fit(model, adam(compression, warmup), steps)
    m = v = np.zeros_like(flat(alone))
    for step in range(1, steps + 1):
        gradients = []
        for rank in range(hvd.size()):
            images = np.random.default_rng([step - 1, rank]).standard_normal((16, 8, 8, 1)).astype(np.float32)
            labels = np.abs(images.sum(axis=(1, 2, 3))).astype(np.int64) % 10
            with tf.GradientTape() as tape:
                loss = loss_of(alone, images, labels)
            parts = tape.gradient(loss, alone.trainable_variables)
            gradients.append(np.concatenate([part.numpy().reshape(-1) for part in parts]))
        g = np.mean(gradients, axis=0)
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g * g if step <= warmup else v
        rate = 0.01 * np.sqrt(1 - 0.999 ** min(step, warmup)) / (1 - 0.9**step)
        change, offset = rate * m / (np.sqrt(v) + 0.01) * (v > 0), 0
        for variable in alone.trainable_variables:
            size = int(np.prod(variable.shape))
            variable.assign(variable - change[offset : offset + size].reshape(variable.shape))
            offset += size
    assert np.allclose(flat(model), flat(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compression", ["onebit", "powersgd"])
def test_what_has_no_gradient_in_the_first_phase_is_only_decayed_in_the_second(compression):
    table = tf.Variable(np.random.default_rng(0).standard_normal((200, 16)).astype(np.float32))
    optimizer, decayed = adam(compression, 3, epsilon=1e-7, weight_decay=0.1), table.numpy()
    for step in range(8):
        rows = tf.range(20) if step < 3 else tf.range(step, 40)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(tf.gather(table, rows) * (1.0 + hvd.rank())))
        optimizer.apply(tape.gradient(loss, [table]), [table])
        decayed *= 1 - 0.01 * 0.1
    assert np.allclose(table.numpy()[20:], decayed[20:], rtol=1e-6)
    assert not (table.numpy()[:20] == decayed[:20]).any()


@pytest.mark.parametrize("compression", SPECS)
def test_ranks_agree_send_less_and_learn(compression):
    model, optimizer = small_cnn(), adam(compression, 5, epsilon=1e-3)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images, labels = batch(0, 64)
    first = model.evaluate(images, labels, verbose=0)

    def steps(count):
        model.fit(np.tile(images, (count, 1, 1, 1)), np.tile(labels, count), batch_size=64, shuffle=False, verbose=0)

    steps(5)
    dense = optimizer.compression_stats()["bytes_sent"]
    steps(60)
    assert model.evaluate(images, labels, verbose=0) < 0.8 * first
    assert same_on_all_ranks(flat(model))
    stats = optimizer.compression_stats()
    assert stats["steps"] == 65
    assert (stats["bytes_sent"] - dense) / 60 < 0.6 * dense / 5


def test_gradients_may_be_accumulated():
    whole, parts = small_cnn(), small_cnn()
    expected = fit(whole, adam("onebit", 2), 4)
    optimizer = adam("onebit", 2, gradient_accumulation_steps=2)
    parts.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for step in range(4):
        images, labels = batch(step)
        for half in (slice(8), slice(8, 16)):
            parts.train_on_batch(images[half], labels[half])
    assert np.allclose(flat(parts), expected, atol=1e-3)
    assert optimizer.compression_stats()["steps"] == 4


@pytest.mark.parametrize(("compression", "cut"), [("onebit", 1), ("powersgd", 4)])
def test_a_run_resumes_exactly(compression, cut, tmp_path):
    expected = fit(small_cnn(), adam(compression, 2), 6)
    model, optimizer = small_cnn(), adam(compression, 2)
    fit(model, optimizer, cut)
    path = tf.train.Checkpoint(model=model, optimizer=optimizer).save(str(tmp_path / f"{cut}-{hvd.rank()}"))
    again, resumed = small_cnn(seed=1), adam(compression, 2)
    resumed.build(again.trainable_variables)
    tf.train.Checkpoint(model=again, optimizer=resumed).restore(path)
    assert np.array_equal(fit(again, resumed, 6 - cut, start=cut), expected)


def test_it_is_saved_as_adamw(tmp_path):
    model = small_cnn()
    fit(model, adam("onebit", 2), 3)
    path = tmp_path / f"{hvd.rank()}.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
    assert type(loaded.optimizer) is keras.optimizers.AdamW
    for mine, theirs in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        assert np.array_equal(mine, theirs)


def test_what_makes_no_sense_is_refused():
    for compression, settings, error, message in (
        ("signsgd", {}, ValueError, "signsgd allows no feedback"),
        ("onebit", {"warmup": 0}, ValueError, "warmup_steps must be at least 1; got 0"),
        ("onebit", {"warmup": 2.5}, TypeError, "warmup_steps must be of type int; got 2.5"),
        ("onebit", {"beta_1": 1.0}, ValueError, r"beta_1 must be in \[0, 1\); got 1.0"),
        ("onebit", {"epsilon": -1.0}, ValueError, "epsilon must be at least 0; got -1.0"),
        ("onebit", {"amsgrad": True}, ValueError, "amsgrad must be False; got True"),
        ("topq", {}, ValueError, "unknown compressor"),
        (3, {}, TypeError, "compression must be one of"),
    ):
        with pytest.raises(error, match=message):
            adam(compression, **({"warmup": 5} | settings))


def test_no_rank_may_skip_a_step_by_itself():
    scaled = keras.optimizers.LossScaleOptimizer(adam("onebit", 5))
    with pytest.raises(ValueError, match="each rank would decide for itself"):
        fit(small_cnn(), scaled, 1)
