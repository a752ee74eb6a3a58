"""Keras 3: `model.fit` on different data leaves the same weights on all ranks; Horovod's own optimizer does not."""

import horovod.tensorflow as hvd
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_ranks import FEW, batch, flat, same_on_all_ranks, small_cnn

import hvd_compress.tensorflow as hvdc
from hvd_compress import parse
from hvd_compress.tensorflow.keras import DistributedOptimizer


def data(batches=6, size=16):
    parts = [batch(number, size) for number in range(batches)]
    return np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])


def sgd(spec="none", **settings):
    momentum = 0.0 if parse(spec).has_momentum else 0.9
    rate = 0.002 if parse(spec).bare.name in ("signsgd", "signum") else 0.01
    return keras.optimizers.SGD(**{"learning_rate": rate, "momentum": momentum, **settings})


def fit(model, optimizer, epochs=1, **settings):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, **settings)
    model.fit(*data(), batch_size=16, epochs=epochs, shuffle=False, verbose=0)
    return flat(model)


@pytest.mark.parametrize("spec", FEW)
def test_fit_leaves_the_same_weights_on_all_ranks(spec):
    model = small_cnn()
    before = flat(model)
    after = fit(model, DistributedOptimizer(sgd(spec), compression=spec))
    assert same_on_all_ranks(after)
    assert np.isfinite(after).all()
    assert not np.array_equal(before, after)


def test_horovods_own_does_not():
    import horovod.tensorflow.keras as hvd_keras

    assert not same_on_all_ranks(fit(small_cnn(), hvd_keras.DistributedOptimizer(sgd()), jit_compile=False))


def test_horovods_own_refuses_our_compressors():
    import horovod.tensorflow.keras as hvd_keras

    for compression in (hvdc.Compression.topk(), hvdc.Compression.topk().bind(small_cnn().trainable_variables)):
        with pytest.raises(TypeError, match=r"Use hvd_compress\.tensorflow\.keras\.DistributedOptimizer"):
            hvd_keras.DistributedOptimizer(sgd(), compression=compression)


@pytest.mark.parametrize("spec", ["none", "topk(ratio=0.05)"])
@pytest.mark.parametrize(
    "settings",
    [
        {"clipnorm": 0.1},
        {"global_clipnorm": 0.1},
        {"gradient_accumulation_steps": 2},
        {"weight_decay": 0.01},
        {"use_ema": True},
    ],
)
def test_settings_of_keras_keep_the_ranks_together(spec, settings):
    assert same_on_all_ranks(fit(small_cnn(), DistributedOptimizer(sgd(spec, **settings), compression=spec)))


@pytest.mark.parametrize("settings", [{"run_eagerly": True}, {"steps_per_execution": 3}, {"jit_compile": True}])
def test_settings_of_compile(settings):
    assert same_on_all_ranks(
        fit(small_cnn(), DistributedOptimizer(sgd(), compression=hvdc.Compression.topk(0.05)), **settings)
    )


def test_clipping_is_of_the_mean():
    """As on one rank with the batches of all."""
    ours, whole = small_cnn(), small_cnn()
    fit(ours, DistributedOptimizer(sgd(clipnorm=0.1)))
    images, labels = (np.stack(hvd.allgather_object(part)) for part in data())
    images = images.reshape(hvd.size(), 6, 16, 8, 8, 1).swapaxes(0, 1).reshape(-1, 8, 8, 1)
    labels = labels.reshape(hvd.size(), 6, 16).swapaxes(0, 1).reshape(-1)
    whole.compile(sgd(clipnorm=0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    whole.fit(images, labels, batch_size=16 * hvd.size(), shuffle=False, verbose=0)
    assert np.allclose(flat(ours), flat(whole), atol=1e-5)


@pytest.mark.parametrize("spec", ["none", "topk(ratio=0.05)"])
def test_a_loss_that_is_scaled(spec):
    model = small_cnn()
    optimizer = DistributedOptimizer(keras.optimizers.LossScaleOptimizer(sgd(spec)), compression=spec)
    assert same_on_all_ranks(fit(model, optimizer))
    with pytest.raises(ValueError, match="must be inside"):
        fit(small_cnn(), keras.optimizers.LossScaleOptimizer(DistributedOptimizer(sgd())))


@pytest.mark.parametrize("spec", ["topk(ratio=0.05)", "dgc(ratio=0.1)", "powersgd"])
def test_the_scale_of_the_loss_changes_nothing(spec):
    """Bit for bit: scales are powers of 2."""

    def trained(scale, growth):
        inner = keras.optimizers.LossScaleOptimizer(sgd(spec), scale, growth)
        model = small_cnn()
        return fit(model, DistributedOptimizer(inner, compression=spec)), float(inner.dynamic_scale)

    changed, scale = trained(4.0, 2)
    expected, unchanged = trained(1.0, 1000)
    assert scale > 4
    assert unchanged == 1
    assert np.array_equal(changed, expected)


@pytest.mark.parametrize("spec", ["none", "topk(ratio=0.05)", "powersgd"])
def test_a_gradient_that_is_not_finite_is_said_or_an_error(spec):
    def bad(nonfinite):
        model = small_cnn()
        optimizer = DistributedOptimizer(sgd(spec), compression=spec, nonfinite=nonfinite)
        optimizer.build(model.trainable_variables)
        gradients = [tf.ones(variable.shape) for variable in model.trainable_variables]
        if hvd.rank() == 1:
            gradients[0] *= np.inf
        return optimizer, gradients

    optimizer, gradients = bad("warn")
    with pytest.warns(RuntimeWarning, match="step 1: the gradients of .*kernel.* are not finite; rank: "):
        optimizer.apply(gradients)
    assert optimizer.compression_stats()["nonfinite_steps"] == 1
    optimizer, gradients = bad("error")
    with pytest.raises(tf.errors.OpError, match="NonFiniteGradients: step 1"):
        optimizer.apply(gradients)


def test_what_is_saved_is_the_plain_optimizer(tmp_path):
    model = small_cnn()
    fit(model, DistributedOptimizer(sgd(), compression="topk(ratio=0.05)"))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is keras.optimizers.SGD
    assert np.array_equal(flat(loaded), flat(model))
    for mine, theirs in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        assert np.array_equal(np.asarray(mine), np.asarray(theirs))


def test_what_is_wrong_is_refused():
    with pytest.raises(ValueError, match="keeps the momentum itself"):
        DistributedOptimizer(sgd(), compression="dgc")
    with pytest.raises(TypeError, match=r"must be a keras\.optimizers\.Optimizer"):
        DistributedOptimizer("sgd")
    with pytest.raises(ValueError, match="op must be"):
        DistributedOptimizer(sgd(), op=hvd.Max)
    with pytest.raises(TypeError, match="compression must be one of"):
        DistributedOptimizer(sgd(), compression=3)
    with pytest.raises(TypeError, match=r"compression=.*got the spec 'topk"):
        DistributedOptimizer(sgd(), "topk(ratio=0.1)")
    with pytest.raises(TypeError, match=r"compression=.*name must be a string"):
        DistributedOptimizer(sgd(), hvdc.Compression.topk())
    with pytest.raises(ValueError, match="device_dense must be ''"):
        DistributedOptimizer(sgd(), device_dense="/cpu:0")
    with pytest.raises(ValueError, match="is the same: give one of them"):
        DistributedOptimizer(sgd(gradient_accumulation_steps=2), backward_passes_per_step=2)
    with pytest.raises(ValueError, match="give the optimizer inside it gradient_accumulation_steps=2"):
        DistributedOptimizer(keras.optimizers.LossScaleOptimizer(sgd()), backward_passes_per_step=2)
    built = sgd()
    built.build(small_cnn().trainable_variables)
    with pytest.raises(ValueError, match="comes too late"):
        DistributedOptimizer(built, backward_passes_per_step=2)


@pytest.mark.parametrize("spec", ["none", "topk(ratio=0.05)"])
@pytest.mark.parametrize("average", [True, False])
def test_backward_passes_per_step(spec, average):
    """As Keras accumulates, whose mean of two batches is half of their sum."""
    ours, expected = small_cnn(), small_cnn()
    optimizer = DistributedOptimizer(
        sgd(spec, name="sgd"),
        "passes",
        compression=spec,
        backward_passes_per_step=2,
        average_aggregated_gradients=average,
        groups=1,
    )
    fit(ours, optimizer)
    inner = sgd(spec, gradient_accumulation_steps=2, learning_rate=0.01 if average else 0.02)
    fit(expected, DistributedOptimizer(inner, compression=spec, groups=1))
    assert same_on_all_ranks(flat(ours))
    assert np.array_equal(flat(ours), flat(expected)) if average else np.allclose(flat(ours), flat(expected), atol=1e-5)
    assert optimizer.compression_stats()["steps"] == 3
    assert optimizer.name == "passes"


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 2}])
def test_a_local_variable_keeps_its_gradient(scale, settings):
    model = small_cnn()
    optimizer = DistributedOptimizer(
        sgd(learning_rate=0.0, **settings), compression="topk(ratio=0.05)", scale_local_gradients=scale
    )
    for variable in model.layers[-1].trainable_variables:
        optimizer.register_local_var(variable)
    *shared, kernel, bias = model.trainable_variables
    gradients = [tf.ones(v.shape) * (hvd.rank() + 1.0) for v in [*shared, kernel, bias]]
    before = [v.numpy() for v in model.trainable_variables]
    optimizer.learning_rate = 1.0
    for _ in range(settings.get("gradient_accumulation_steps", 1)):
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    moved = [old - v.numpy() for old, v in zip(before, model.trainable_variables, strict=True)]
    own = (hvd.rank() + 1) / (hvd.size() if scale else 1)
    assert all(np.allclose(part, own, atol=1e-5) for part in moved[-2:])
    assert np.allclose(moved[1], (hvd.size() + 1) / 2, atol=1e-5)  # a bias, sent as it is
    assert same_on_all_ranks(np.concatenate([part.ravel() for part in moved[:-2]]))


@pytest.mark.parametrize(
    "spec", [spec for spec in FEW if spec.startswith(("topk", "powersgd", "dgc", "qsgd(feedback"))]
)
def test_resumed_is_uninterrupted(spec, tmp_path):
    """Bit for bit, with momenta and residuals in a checkpoint of each rank's own."""

    def start(seed):
        model = small_cnn(seed)
        optimizer = DistributedOptimizer(sgd(spec), compression=spec)
        optimizer.build(model.trainable_variables)
        return model, optimizer, tf.train.Checkpoint(model=model, optimizer=optimizer)

    model, optimizer, _ = start(0)
    expected = fit(model, optimizer, epochs=2)
    model, optimizer, checkpoint = start(0)
    fit(model, optimizer)
    path = checkpoint.save(str(tmp_path / f"rank-{hvd.rank()}"))
    model, optimizer, checkpoint = start(1)
    checkpoint.restore(path).assert_consumed()
    assert np.array_equal(fit(model, optimizer), expected)
    assert optimizer.compression_stats()["steps"] == 12
