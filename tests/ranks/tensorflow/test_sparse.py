"""`tf.IndexedSlices`, the gradients of embeddings, by rows."""

import tracemalloc

import horovod.tensorflow as hvd
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_ranks import flat, same_on_all_ranks

import hvd_compress.tensorflow as hvdc
from hvd_compress import Layout, State, parse
from hvd_compress.ops.numpy import NumpyOps
from hvd_compress.reduction.rows import Rows, SparseRows
from hvd_compress.tensorflow.keras import DistributedOptimizer

ROWS, WIDTH = 60, 30
SPECS = ["none", "fp16", "qsgd(bits=8)", "qsgd(bits=3, feedback=ef)", "topk(ratio=0.2)", "dgc(ratio=0.2)", "powersgd"]


def rows_of(step, rank):
    """Rows of a rank's own, some of them twice; in some steps none."""
    count = 0 if (step + rank) % 3 == 2 else 12 - step
    rng = np.random.default_rng([step, rank])
    return rng.integers(0, ROWS, count), rng.standard_normal((count, WIDTH)).astype(np.float32)


class Embedding:
    def __init__(self, spec, graph=True, dtype="float32", shape=(ROWS, WIDTH), **settings):
        self.table = tf.Variable(tf.zeros(shape, dtype))
        self.spec, self.settings = spec, settings
        signature = [tf.TensorSpec([None], tf.int64), tf.TensorSpec([None, shape[1]], tf.float32)]
        self.step = tf.function(self._step, autograph=False, input_signature=signature) if graph else self._step

    def _step(self, indices, values):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.cast(tf.gather(self.table, indices), tf.float32) * values)
        [gradient] = hvdc.DistributedGradientTape(tape, compression=self.spec, **self.settings).gradient(
            loss, [self.table]
        )
        return gradient

    def gradients(self, steps):
        return [self.step(*map(tf.constant, rows_of(step, hvd.rank()))) for step in steps]


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("spec", SPECS)
def test_rows_are_those_of_simulated_workers(spec, graph):
    ops, size = NumpyOps(), hvd.size()
    states = [State(Layout.of([("0", (ROWS, WIDTH))]), rank=rank, workers=size) for rank in range(size)]
    model = Embedding(spec, graph)
    for step, gradient in enumerate(model.gradients(range(5))):
        vectors = [Rows(*rows_of(step, rank), ROWS) for rank in range(size)]
        workers = [SparseRows(parse(spec)).reduce(ops, *both) for both in zip(vectors, states, strict=True)]
        payloads = [next(worker).payload for worker in workers]
        means = []
        for worker, state in zip(workers, states, strict=True):
            with pytest.raises(StopIteration) as stopped:
                worker.send(payloads)
            means.append(stopped.value.value.mean)
            state.commit()
        assert np.array_equal(gradient.indices, means[0].indices)
        assert np.array_equal(gradient.values, means[0].values)
        assert gradient.dense_shape.numpy().tolist() == [ROWS, WIDTH]
    stats = hvdc.compression_stats([model.table])
    norm = np.linalg.norm(states[hvd.rank()].local.get("residual", np.zeros(1)))
    assert stats["residual_norm"] == pytest.approx(norm, rel=1e-6)


def test_rows_on_the_wire():
    model = Embedding("none")
    indices = [7, 50] if hvd.rank() else []
    model.step(tf.constant(indices, tf.int64), tf.ones((len(indices), WIDTH)))
    # The length (8), the number of rows (8), and for two rows their indices (5) and values.
    expected = 16 + (5 + 2 * 4 * WIDTH if hvd.rank() else 0)
    assert hvdc.compression_stats([model.table])["collectives"]["allgather"]["sent"] == expected


@pytest.mark.parametrize("scale", [{"op": hvd.Sum}, {"gradient_predivide_factor": 2.0}])
def test_factors(scale):
    plain, scaled = Embedding("none").gradients([0])[0], Embedding("none", **scale).gradients([0])[0]
    factor = hvd.size() if "op" in scale else 1
    assert np.allclose(scaled.values, plain.values * factor)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("spec", ["none", "fp16", "topk(ratio=0.5)"])
def test_dtypes(spec, dtype):
    for gradient, expected in zip(
        Embedding(spec, dtype=dtype).gradients(range(2)), Embedding(spec).gradients(range(2)), strict=True
    ):
        assert gradient.dtype == dtype
        assert np.array_equal(gradient.indices, expected.indices)
        assert np.allclose(tf.cast(gradient.values, tf.float32), expected.values, rtol=0.02, atol=0.02)


def test_rules_hold_for_sparse_gradients():
    [gradient] = Embedding("none", rules=[("*", "topk(ratio=0.1)")]).gradients([0])
    assert len(gradient.indices) <= hvd.size()


def test_other_numbers_of_rows_do_not_trace_anew():
    model = Embedding("topk(ratio=0.2)", graph=False)
    model.gradients(range(2))
    [reducer] = [r for key, r in hvdc.reducer._reducers.items() if key[0] == (id(model.table),)]
    before = reducer._function.experimental_get_tracing_count()
    model.gradients([3, 4, 6])
    assert reducer._function.experimental_get_tracing_count() <= before + 1


@pytest.mark.parametrize("spec", ["none", "topk(ratio=0.2)"])
def test_non_finite_rows_reach_every_rank_and_leave_the_state(spec):
    model = Embedding(spec)
    model.gradients(range(2))
    before = hvdc.compression_stats([model.table])["residual_norm"]
    values = np.ones((2, WIDTH), np.float32)
    values[1, 3] = np.nan if hvd.rank() == 1 else 1
    gradient = model.step(tf.constant([1, 2], tf.int64), tf.constant(values))
    assert not np.isfinite(gradient.values).all()
    assert hvdc.compression_stats([model.table])["residual_norm"] == before


@pytest.mark.parametrize("spec", ["topk(ratio=0.2)", "qsgd", "qsgd(feedback=ef)"])
def test_resumed_is_uninterrupted(spec, tmp_path):
    def checkpoint_of(model):
        [reducer] = [r for key, r in hvdc.reducer._reducers.items() if key[0] == (id(model.table),)]
        return tf.train.Checkpoint(compression=reducer)

    model = Embedding(spec)
    model.gradients(range(4))
    path = checkpoint_of(model).save(str(tmp_path / "state"))
    expected = model.gradients(range(4, 7))
    resumed = Embedding(spec)
    resumed.gradients(range(1))
    checkpoint_of(resumed).restore(path)
    for got, wanted in zip(resumed.gradients(range(4, 7)), expected, strict=True):
        assert np.array_equal(got.indices, wanted.indices)
        assert np.array_equal(got.values, wanted.values)


@pytest.mark.parametrize("spec", ["none", "topk(ratio=0.5)", "qsgd"])
def test_nothing_is_made_dense(spec):
    shape = (400_000, 16)
    model = Embedding(spec, shape=shape)
    arguments = tf.constant([1, 399_999], tf.int64), tf.ones((2, 16))
    model.step(*arguments)
    tracemalloc.start()
    model.step(*arguments)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < shape[0]
    for operation in model.step.get_concrete_function(*arguments).graph.get_operations():
        for output in operation.outputs:
            assert (output.shape.num_elements() or 0) < shape[0], operation


def test_fit_with_an_embedding():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.layers.Embedding(5000, 16),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(4, activation="softmax"),
        ]
    )
    optimizer = DistributedOptimizer(keras.optimizers.Adam(0.01), compression="topk(ratio=0.5)")
    model.compile(optimizer, "sparse_categorical_crossentropy")
    words = np.random.default_rng(hvd.rank()).integers(0, 5000, (256, 5))
    losses = model.fit(words, words[:, 0] % 4, batch_size=32, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]
    assert same_on_all_ranks(flat(model))
    assert optimizer.compression_stats()["ratio"] > 20
