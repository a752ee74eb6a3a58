"""Another compressor in mid-training, for Keras 3."""

import horovod.tensorflow as hvd
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_ranks import batch, flat, same_on_all_ranks, small_cnn

import hvd_compress.tensorflow as hvdc
from hvd_compress.tensorflow.keras import DistributedOptimizer

SHAPE = (40, 40)


class Run:
    """SGD with a learning rate of 1 and gradients of each rank's own: what is applied is what was exchanged."""

    def __init__(self, spec, sparse=False, **settings):
        self.variable = keras.Variable(np.zeros(SHAPE, np.float32), name="w")
        self.optimizer = DistributedOptimizer(keras.optimizers.SGD(1.0), compression=spec, **settings)
        self.optimizer.build([self.variable])
        self.sparse, self.owed = sparse, np.zeros(SHAPE, np.float32)

    def steps(self, numbers, factor=1.0):
        for number in numbers:
            gradients = [np.random.default_rng([number, rank]).standard_normal(SHAPE) for rank in range(hvd.size())]
            if self.sparse:
                gradients = [gradient * (np.arange(SHAPE[0]) % 4 == number % 4)[:, None] for gradient in gradients]
            self.owed += factor * np.mean(gradients, axis=0)
            own = tf.constant(factor * gradients[hvd.rank()], tf.float32)
            if self.sparse:
                rows = tf.where(tf.reduce_any(own != 0, axis=1))[:, 0]
                own = tf.IndexedSlices(tf.gather(own, rows), rows, tf.constant(SHAPE, tf.int64))
            self.optimizer.apply([own], [self.variable])

    @property
    def applied(self):
        return -np.asarray(self.variable)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("before", ["topk(ratio=0.05)", "powersgd(rank=1)", "qsgd(bits=3, feedback=ef)", "none"])
def test_nothing_is_lost(before, sparse):
    run = Run(before, sparse)
    run.steps(range(3))
    keeps = before != "none" and not (sparse and before.startswith("powersgd"))  # which sends plain rows
    assert np.allclose(run.applied, run.owed, atol=1e-4) != keeps
    assert (run.optimizer.compression_stats()["residual_norm"] > 0) == keeps
    run.optimizer.set_compression("none")
    assert (run.optimizer.compression_stats()["residual_norm"] > 0) == keeps
    run.steps(range(3, 5))
    if sparse and before.startswith("qsgd"):  # rows wait for their next gradient
        run.steps(range(5, 8))
    assert np.allclose(run.applied, run.owed, atol=1e-4)
    assert run.optimizer.compression_stats()["residual_norm"] == 0
    assert same_on_all_ranks(run.applied.reshape(-1))


def test_there_and_back_again():
    run = Run("topk(ratio=0.05)")
    for start, spec in enumerate(("signum(momentum=0)", "topk(ratio=0.05)", "topk(ratio=0.1)", "none")):
        run.steps(range(3 * start, 3 * start + 3))
        if spec.startswith("signum"):
            continue
        run.optimizer.set_compression(spec)
    run.steps(range(20, 21))
    assert np.allclose(run.applied, run.owed, atol=1e-4)
    stats = run.optimizer.compression_stats()
    assert stats["steps"] == 13
    assert stats["collectives"]["allgather"]["calls"] == 12
    assert stats["compression_seconds"] > 0


def test_a_step_that_is_not_finite_keeps_what_is_carried():
    run = Run("topk(ratio=0.05)")
    run.steps(range(2))
    kept = run.applied
    run.optimizer.set_compression("none")
    owed = run.owed.copy()
    run.steps([2], factor=np.inf if hvd.rank() else 1.0)
    assert not np.isfinite(run.applied).any()
    run.variable.assign(-kept)
    run.owed = owed
    run.steps([3])
    assert np.allclose(run.applied, run.owed, atol=1e-4)


@pytest.mark.parametrize("stepped", [False, True])
def test_a_checkpoint_holds_what_is_carried(stepped, tmp_path):
    def saved(run):
        return tf.train.Checkpoint(variable=run.variable, optimizer=run.optimizer)

    run = Run("topk(ratio=0.05)")
    run.steps(range(2))
    run.optimizer.set_compression("topk(ratio=0.1)")
    if stepped:
        run.steps([2])
        path = saved(run).save(str(tmp_path / f"rank-{hvd.rank()}"))
    else:  # carried on, for nothing of this step is kept
        run.steps([2], factor=np.nan)
        run.variable.assign(np.zeros(SHAPE))
        path = saved(run).save(str(tmp_path / f"rank-{hvd.rank()}"))
    run.steps(range(3, 5))
    again = Run("topk(ratio=0.1)")
    saved(again).restore(path)
    again.steps(range(3, 5))
    assert np.array_equal(again.applied, run.applied)


def test_a_graph_of_before_is_refused_and_a_new_one_goes_on():
    model = small_cnn()
    optimizer = DistributedOptimizer(keras.optimizers.SGD(0.05), compression="topk(ratio=0.05)")
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    class Change(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model.optimizer.set_compression("qsgd", rules=[("*bias", "none")])
                self.model.make_train_function(force=True)

    images, labels = batch(0, 64)
    model.fit(images, labels, batch_size=16, epochs=3, verbose=0, callbacks=[Change()])
    assert same_on_all_ranks(flat(model))
    assert optimizer.compression_stats()["steps"] == 12
    optimizer.set_compression("none")
    with pytest.raises(tf.errors.OpError, match=r"make_train_function\(force=True\)"):
        model.fit(images, labels, batch_size=16, verbose=0)


@pytest.mark.parametrize("before", ["topk(ratio=0.05)", "powersgd"])
@pytest.mark.parametrize("caller", [0, 1])
def test_a_rank_that_did_not_call_it(before, caller):
    model = small_cnn()
    optimizer = DistributedOptimizer(keras.optimizers.SGD(0.05), compression=before, bucket_bytes=10_000)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.train_on_batch(*batch(0))
    if hvd.rank() == caller:
        optimizer.set_compression("none")
        model.make_train_function(force=True)
        with pytest.raises(hvdc.WorkersDisagree, match=r"not all called set_compression\(\)"):
            model.train_on_batch(*batch(1))
    else:
        with pytest.raises(tf.errors.OpError, match="Mismatched"):
            model.train_on_batch(*batch(1))
        optimizer.set_compression("none")  # collectives that come are numbered alike again


def test_what_is_wrong_is_told_and_changes_nothing():
    run = Run("topk(ratio=0.05)")
    run.steps([0])
    for compression, rules, error, message in (
        ("topq", None, ValueError, "unknown compressor"),
        ("none", [("v", "qsgd")], ValueError, "matches none of the 1 parameters"),
        (3, None, TypeError, "compression must be one of"),
    ):
        with pytest.raises(error, match=message):
            run.optimizer.set_compression(compression, rules)
    run.steps([1])
    assert run.optimizer.compression_stats()["collectives"]["allgather"]["calls"] == 2


class TapeRun(Run):
    """The same by hand: with our tape, or with Horovod's and a bound compressor."""

    def __init__(self, spec, bound):
        self.variable = tf.Variable(np.zeros(SHAPE, np.float32))
        self.spec, self.sparse, self.owed = spec, False, np.zeros(SHAPE, np.float32)
        self.bound = hvdc.Compression.none.bind([self.variable]) if bound else None
        if bound:
            self.bound.set_compression(spec)
        self.optimizer = self

    def apply(self, gradients, variables):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(self.variable * gradients[0])
        if self.bound is not None:
            tape = hvd.DistributedGradientTape(tape, compression=self.bound)
        else:
            tape = hvdc.DistributedGradientTape(tape, compression=self.spec)
        self.variable.assign_sub(tape.gradient(loss, [self.variable])[0])

    def set_compression(self, spec):
        if self.bound is not None:
            self.bound.set_compression(spec)
        else:
            hvdc.set_compression([self.variable], spec)

    def compression_stats(self):
        return hvdc.compression_stats([self.variable]) if self.bound is None else self.bound.compression_stats()


@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize("before", ["topk(ratio=0.05)", "powersgd(rank=1)", "none"])
def test_nothing_is_lost_by_a_tape(before, bound):
    run = TapeRun(before, bound)
    run.steps(range(3))
    assert np.allclose(run.applied, run.owed, atol=1e-4) == (before == "none")
    run.set_compression("none")
    assert (run.compression_stats()["residual_norm"] > 0) == (before != "none")
    run.steps(range(3, 5))
    assert np.allclose(run.applied, run.owed, atol=1e-4)
    assert run.compression_stats()["residual_norm"] == 0
    assert same_on_all_ranks(run.applied.reshape(-1))


def test_a_tape_s_graph_of_before_is_refused():
    variable = tf.Variable(np.zeros(SHAPE, np.float32))

    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(variable * 2.0)
        return hvdc.DistributedGradientTape(tape, compression="topk(ratio=0.05)").gradient(loss, variable)

    before = tf.function(step)
    before()
    hvdc.set_compression([variable], "none")
    assert np.allclose(tf.function(step)(), 2.0 + (2.0 - 2.0 * 0.05), atol=2.1)
    with pytest.raises(tf.errors.OpError, match=r"traced before set_compression\(\)"):
        before()
    with pytest.raises(LookupError, match="no gradients of these 2 variables"):
        hvdc.set_compression([variable, tf.Variable(0.0)], "none")


def test_auto_is_refused_and_the_methods_are_named():
    with pytest.raises(ValueError, match=r"compression='auto' works with hvd_compress.torch's .*; give a method.*topk"):
        Run("auto")
    run = Run("topk(ratio=0.1)")
    with pytest.raises(ValueError, match="compression='auto' works with"):
        run.optimizer.set_compression("auto")
    run.steps(range(2))
    assert same_on_all_ranks(run.applied.reshape(-1))
