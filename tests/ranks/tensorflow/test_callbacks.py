"""The callbacks of Keras 3 jobs."""

import horovod.tensorflow as hvd
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_ranks import batch, flat, same_on_all_ranks, small_cnn

from hvd_compress.tensorflow.keras import (
    BroadcastAtStart,
    DistributedOptimizer,
    LearningRateWarmup,
    MetricAverage,
    TensorBoard,
)


class Watch(keras.callbacks.Callback):
    """Keeps what it sees."""

    def __init__(self):
        super().__init__()
        self.rates, self.logs, self.first = [], [], None

    def on_train_batch_begin(self, batch, logs=None):
        if self.first is None and self.model.built:
            self.first = flat(self.model)

    def on_train_batch_end(self, batch, logs=None):
        self.rates.append(float(self.model.optimizer.learning_rate))

    def on_epoch_end(self, epoch, logs=None):
        self.logs.append(dict(logs))


def fit(model, *callbacks, **settings):
    watch = Watch()
    optimizer = DistributedOptimizer(keras.optimizers.SGD(0.01, momentum=0.9))
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images, labels = batch(0, 64)
    model.fit(images, labels, batch_size=16, verbose=0, callbacks=[*callbacks, watch], **settings)
    return watch


def test_all_begin_with_the_weights_of_one():
    model = small_cnn(seed=hvd.rank())
    mine = flat(model)
    watch = fit(model, BroadcastAtStart(root_rank=1))
    assert same_on_all_ranks(watch.first)
    assert np.array_equal(watch.first, mine) == (hvd.rank() == 1)
    assert same_on_all_ranks(flat(model))


def test_a_model_that_is_built_by_its_first_batch():
    keras.utils.set_random_seed(hvd.rank())
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    fit(model, BroadcastAtStart())
    assert same_on_all_ranks(flat(model))


def test_optimizers_go_on_from_the_state_of_one():
    model = small_cnn()
    optimizer = DistributedOptimizer(keras.optimizers.SGD(0.01, momentum=0.9))
    optimizer.build(model.trainable_variables)
    for variable in optimizer.variables[2:]:
        variable.assign(tf.fill(variable.shape, float(hvd.rank())))
    model.compile(optimizer, "mse")
    callback = BroadcastAtStart(root_rank=1)
    callback.set_model(model)
    callback.on_train_begin()
    assert all((np.asarray(variable) == 1).all() for variable in optimizer.variables[2:])


def test_metrics_are_those_of_all():
    alone, together = Watch(), Watch()
    model = small_cnn()
    model.compile(DistributedOptimizer(keras.optimizers.SGD(0.01)), "mse", metrics=["mae"])
    targets = np.full((32, 10), float(hvd.rank()), np.float32)
    model.fit(batch(0, 32)[0], targets, epochs=2, verbose=0, callbacks=[alone, MetricAverage(), together])
    for mine, means in zip(alone.logs, together.logs, strict=True):
        assert set(mine) == set(means) == {"loss", "mae"}
        for name, value in mine.items():
            assert np.isclose(means[name], np.mean(hvd.allgather_object(value)))
            assert not np.isclose(means[name], value)


def test_the_learning_rate_rises_to_its_value():
    watch = fit(small_cnn(), LearningRateWarmup(0.08, warmup_epochs=2), epochs=4)
    first = 1 / hvd.size()
    expected = [0.08 * (first + min(1, step / 8) * (1 - first)) for step in range(16)]
    assert np.allclose(watch.rates, expected)


def test_what_is_wrong_is_refused():
    with pytest.raises(ValueError, match=f"root_rank must be in 0 to {hvd.size() - 1}; got 9"):
        BroadcastAtStart(root_rank=9)
    with pytest.raises(ValueError, match="warmup_epochs must be above 0; got 0"):
        LearningRateWarmup(0.1, warmup_epochs=0)
    with pytest.raises(ValueError, match="steps_per_epoch must be at least 1; got 0"):
        LearningRateWarmup(0.1, steps_per_epoch=0)


def test_tensorboard_shows_what_rank_0_sent(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = small_cnn()
    fit(model, MetricAverage(), TensorBoard(str(tmp_path / "logs"), write_graph=False), epochs=3)
    if hvd.rank():
        assert not (tmp_path / "logs").exists()
        return
    events = EventAccumulator(str(tmp_path / "logs" / "train"), size_guidance={"tensors": 0}).Reload()
    logged = {
        tag: [float(tf.make_ndarray(e.tensor_proto)) for e in events.Tensors(tag)] for tag in events.Tags()["tensors"]
    }
    sent = model.optimizer.compression_stats()["bytes_sent"]
    each = 4 * flat(model).size * 4  # four batches of floats; the agreement of the first step comes on top
    assert logged["epoch_bytes_sent"] == [sent - 2 * each, sent - each, sent]
    assert logged["epoch_steps"] == [4, 8, 12]
    assert {"epoch_loss", "epoch_ratio", "epoch_residual_norm", "epoch_compression_seconds"} <= set(logged)


def test_tensorboard_of_another_optimizer(tmp_path):
    model = small_cnn()  # on all ranks, for Horovod's names have Keras's in them, which are numbered
    model.compile("sgd", "mse")
    if hvd.rank():
        return
    callback = TensorBoard(str(tmp_path))
    callback.set_model(model)
    with pytest.raises(TypeError, match="DistributedOptimizer"):
        callback.on_train_begin()
