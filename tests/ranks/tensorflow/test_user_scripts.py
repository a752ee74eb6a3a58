"""Training scripts of the kinds that people write: all ranks end with the same weights, or with an error."""

import time
from functools import partial

import horovod.tensorflow as hvd
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_ranks import SPECS, batch, rate_for

import hvd_compress.tensorflow as hvdc
from hvd_compress import parse
from hvd_compress.reduction import stalls
from hvd_compress.tensorflow.keras import BroadcastAtStart, CompressedAdam, DistributedOptimizer
from hvd_compress.tensorflow.reducer import reducer_of, reduction_settings

SPECS = list(dict.fromkeys([*SPECS, "topk(feedback=ef21)", "topk(ratio=linear(0.5, 0.1, steps=10))"]))
SOME = ["none", "topk(ratio=0.1)", "powersgd", "qsgd(feedback=ef21)", "dgc(ratio=0.1)", "sketched_sgd"]


def slow_unless(keep, cases):
    """Mark the cases as slow that are further methods of the same."""
    return [case if keep(*case) else pytest.param(*case, marks=pytest.mark.slow) for case in cases]


DISAGREE = (hvdc.WorkersDisagree, tf.errors.OpError)
ANOTHER = pytest.mark.filterwarnings("ignore:rank . had the compressors", "ignore:the state was saved by another rank")


def small_model(seed=0):
    keras.utils.set_random_seed(seed)
    layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(40, activation="relu")]
    return keras.Sequential([*layers, keras.layers.Dense(30)])


def spread(variables):
    """The largest difference between the ranks' values."""
    own = np.concatenate([np.asarray(v).reshape(-1) for v in variables])
    assert np.isfinite(own).all()
    gathered = hvd.allgather(tf.constant(own[None]), name="spread").numpy()
    return (gathered.max(axis=0) - gathered.min(axis=0)).max()


def sgd(spec, momentum=0.9):
    return keras.optimizers.SGD(rate_for(spec), momentum=0.0 if parse(spec).has_momentum else momentum)


# --- resuming


class Loop:
    """SGD by hand, with our tape or with Horovod's and a bound compressor."""

    def __init__(self, spec, seed, graph=True, bound=False):
        self.model, self.spec = small_model(seed), spec
        self.variables = [v.value for v in self.model.trainable_variables]
        self.optimizer = keras.optimizers.SGD(rate_for(spec))
        self.state = reducer_of(self.variables, reduction_settings(spec), hvd.global_process_set)
        self.wrap = partial(hvdc.DistributedGradientTape, compression=spec)
        if bound:
            self.state = hvdc.compression.TensorFlowCompression(parse(spec)).bind(self.variables)
            self.wrap = partial(hvd.DistributedGradientTape, compression=self.state)
        self.checkpoint = tf.train.Checkpoint(variables=self.variables, compression=self.state)
        self.step = tf.function(self._step, autograph=False) if graph else self._step

    def _step(self, images, labels):
        with tf.GradientTape() as tape:
            logits = self.model(images)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        for variable, gradient in zip(self.variables, self.wrap(tape).gradient(loss, self.variables), strict=True):
            variable.assign_sub(rate_for(self.spec) * gradient)

    def train(self, steps):
        for number in range(steps):
            self.step(*map(tf.constant, batch(number)))

    @property
    def steps(self):
        stats = getattr(self.state, "compression_stats", self.state.stats)
        return stats()["steps"]

    def share(self):
        hvd.broadcast_variables(self.variables, root_rank=0)


class Fit:
    """The same with Keras."""

    def __init__(self, spec, seed, wrap=None):
        self.model = small_model(seed)
        self.optimizer = DistributedOptimizer(sgd(spec), compression=spec) if wrap is None else wrap(spec)
        self.optimizer.build(self.model.trainable_variables)
        self.variables = self.model.trainable_variables
        self.model.compile(self.optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        self.checkpoint = tf.train.Checkpoint(model=self.model, optimizer=self.optimizer)
        self.callbacks = []

    def train(self, steps):
        images, labels = batch(0, 16 * steps)
        self.model.fit(images, labels, batch_size=16, verbose=0, callbacks=self.callbacks)
        self.callbacks = []

    @property
    def steps(self):
        return self.optimizer.compression_stats()["steps"]

    def share(self):
        self.callbacks = [BroadcastAtStart()]


def bindable(specs):
    return [spec for spec in specs if not parse(spec).whole_gradient]


KINDS = {
    "graph": Loop,
    "eager": partial(Loop, graph=False),
    "bound": partial(Loop, bound=True),
    "keras": Fit,
    "adam": partial(
        Fit, wrap=lambda spec: CompressedAdam(warmup_steps=5, compression=spec, learning_rate=0.01, epsilon=0.01)
    ),
}
RUNS = [
    *(("graph", spec) for spec in SPECS),
    *(("eager", spec) for spec in SOME),
    *(("bound", spec) for spec in bindable(SOME)),
    *(("keras", spec) for spec in SOME),
    *(("adam", spec) for spec in ("onebit", "powersgd")),
]


@ANOTHER
@pytest.mark.parametrize(("kind", "spec"), slow_unless(lambda kind, spec: spec in SOME or kind == "adam", RUNS))
def test_rank_0_loads_and_broadcasts(kind, spec, tmp_path):
    run = KINDS[kind](spec, seed=0)
    run.train(8)
    if hvd.rank() == 0:
        path = run.checkpoint.save(str(tmp_path / "state"))
    run = KINDS[kind](spec, seed=3)
    if hvd.rank() == 0:
        run.checkpoint.restore(path).assert_consumed()
    run.share()
    run.train(12)
    assert spread(run.variables) == 0
    assert hvd.allgather_object(run.steps) == [20] * hvd.size()


@ANOTHER
@pytest.mark.parametrize(
    ("kind", "spec"),
    slow_unless(
        lambda kind, spec: spec in ("topk(ratio=0.1)", "sketched_sgd") or kind == "adam",
        [(kind, spec) for kind, spec in RUNS if spec in SOME or kind == "adam"],
    ),
)
def test_rank_0s_state_on_all_ranks(kind, spec, tmp_path):
    """Also in mid-training, in graphs that were traced before."""
    run = KINDS[kind](spec, seed=0)
    run.train(4)
    path = hvd.broadcast_object(run.checkpoint.save(str(tmp_path / "state")))
    run.train(2)
    for again in (KINDS[kind](spec, seed=3), run):
        again.checkpoint.restore(path).assert_consumed()
        again.train(6)
        assert spread(again.variables) == 0
        assert again.steps == 10


@pytest.mark.parametrize("kind", ["graph", "eager", "bound", "keras"])
def test_one_rank_that_loads_in_mid_training_is_told(kind, tmp_path):
    run = KINDS[kind]("powersgd", seed=0)
    run.train(2)
    path = run.checkpoint.save(str(tmp_path / "state"))
    run.train(2)
    if hvd.rank() == 0:
        run.checkpoint.restore(path)
    with pytest.raises(DISAGREE, match=r"not all called|Mismatched"):
        run.train(1)


# --- gradients that come up later


class Heads:
    """A trunk, and heads that are used in turn: by hand, with a tape."""

    def __init__(self, spec, graph=True, optimizer=None):
        random = np.random.default_rng(0)

        def matrix(name):
            return tf.Variable(random.standard_normal((40, 40)).astype(np.float32) / 40, name=name)

        self.spec, self.graph, self.optimizer = spec, graph, optimizer
        self.trunk, self.heads = matrix("trunk"), [matrix(f"head{i}") for i in range(3)]
        self.variables = [self.trunk, *self.heads]
        self.state = reducer_of(self.variables, reduction_settings(spec), hvd.global_process_set)
        self.checkpoint = tf.train.Checkpoint(variables=self.variables, compression=self.state)
        self.trace()
        self.number = 0

    def trace(self):
        self.function = tf.function(self._step, autograph=False) if self.graph else self._step

    def _step(self, x, heads):
        with tf.GradientTape() as tape:
            loss = sum(tf.reduce_mean(tf.square(tf.nn.relu(x @ self.trunk) @ self.heads[i] - 1)) for i in heads)
        if self.optimizer is not None:
            self.optimizer.apply(tape.gradient(loss, self.variables), self.variables)
            return []
        gradients = hvdc.DistributedGradientTape(tape, compression=self.spec).gradient(loss, self.variables)
        for variable, gradient in zip(self.variables, gradients, strict=True):
            if gradient is not None:
                variable.assign_sub(rate_for(self.spec) * gradient)
        return [tf.constant(gradient is not None) for gradient in gradients]

    def step(self, *heads):
        """Take a step with some heads, and return which gradients there are."""
        self.number += 1
        x = np.random.default_rng([self.number, hvd.rank()]).standard_normal((4, 40)).astype(np.float32)
        there = self.function(tf.constant(x), heads)
        assert spread(self.variables) == 0
        return [bool(t) for t in there]


@pytest.mark.parametrize(
    ("spec", "graph"),
    slow_unless(
        lambda spec, graph: spec in SOME, [*((spec, True) for spec in SPECS), *((spec, False) for spec in SOME)]
    ),
)
def test_heads_in_turn(spec, graph):
    model = Heads(spec, graph)
    assert model.step(0) == [True, True, False, False]
    kept = [np.asarray(head) for head in model.heads[1:]]
    assert model.step(0) == [True, True, False, False]
    assert all(np.array_equal(a, b) for a, b in zip(kept, model.heads[1:], strict=True))
    for head in (1, 0, 1, 0):
        model.step(head)
    assert np.array_equal(kept[1], model.heads[2])
    assert not np.array_equal(kept[0], model.heads[1])
    assert hvdc.compression_stats(model.variables)["steps"] == 6


@pytest.mark.parametrize("spec", SOME)
def test_heads_that_differ_between_ranks(spec):
    model = Heads(spec, graph=False)
    for number in range(3):
        model.step((number + hvd.rank()) % 2)
    with pytest.raises(DISAGREE, match=r"not all called|Mismatched"):
        model.step(1 + hvd.rank())  # a rank alone has what none has had before
    model.step(2)
    for number in range(5):
        model.step((number + hvd.rank()) % 3)
    assert not np.array_equal(Heads(spec).heads[2], model.heads[2])


def test_heads_that_differ_between_ranks_in_graphs():
    model = Heads("topk(ratio=0.1)")
    model.step(0)
    with pytest.raises(DISAGREE, match=r"not all called|Mismatched"):  # a rank alone uses what has not come up
        model.step(min(hvd.rank(), 1))
    model.trace()
    model.step(0)
    model.step(1)
    with pytest.raises(tf.errors.OpError, match="anew on all ranks"):  # 0 was traced before 1 came up
        model.step(min(hvd.rank(), 1))
    model.step(0)
    model.trace()
    for number in range(4):
        model.step((number + hvd.rank()) % 2)


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("spec", ["topk(ratio=0.05)", "powersgd(rank=1)", "none"])
def test_nothing_is_lost_when_gradients_come_up(spec, graph):
    weights = [tf.Variable(tf.zeros((40, 40))) for _ in range(2)]
    given = [tf.constant(np.random.default_rng(r).standard_normal((40, 40)), tf.float32) for r in range(hvd.size())]

    def step(*factors):
        with tf.GradientTape() as tape:
            parts = zip(weights, factors, strict=True)
            loss = sum(tf.reduce_sum(w * given[hvd.rank()] * f) for w, f in parts if f is not None)
        gradients = hvdc.DistributedGradientTape(tape, compression=spec).gradient(loss, weights)
        for weight, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                weight.assign_sub(gradient)

    step = tf.function(step, autograph=False) if graph else step
    step(1.0, None)
    step(1.0, None)
    step(1.0, 1.0)
    step(1.0, None)
    for _ in range(40):
        step(0.0, 0.0)
    mean = -sum(given) / hvd.size()
    assert np.allclose(weights[0], 4 * mean, atol=1e-3)
    assert np.allclose(weights[1], mean, atol=1e-3)


@ANOTHER
@pytest.mark.parametrize("spec", ["none", "topk(ratio=0.1)", "powersgd", "sketched_sgd"])
@pytest.mark.parametrize("loaders", ["one", "all", "own"])
def test_heads_are_saved(spec, loaders, tmp_path):
    start = partial(Heads, spec, graph=loaders != "own")  # graphs of before leave out the heads that came later
    model = start()
    for head in (0, 0, 1):
        model.step(head)
    path = model.checkpoint.save(str(tmp_path / f"state-{hvd.rank()}"))
    model.step(0)
    model.step(2)
    model.step(1)
    path = path if loaders == "own" else hvd.broadcast_object(path)
    for again in (start(), model) if loaders != "one" else (start(),):
        if hvd.rank() == 0 or loaders != "one":
            again.checkpoint.restore(path).assert_consumed()
        hvd.broadcast_variables(again.variables, root_rank=0)
        again.number = 3
        for head in (0, 2, 1):
            again.step(head)
        if loaders == "own" and again is not model:  # resumed is uninterrupted
            assert all(np.array_equal(a, b) for a, b in zip(model.variables, again.variables, strict=True))


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("spec", [*SOME, "adam"])
def test_heads_in_turn_with_an_optimizer_of_keras(spec, graph):
    if spec == "adam":
        optimizer = CompressedAdam(warmup_steps=3, epsilon=0.01, weight_decay=0.01)
    else:
        optimizer = DistributedOptimizer(sgd(spec), compression=spec)
    model = Heads("none", graph, optimizer)
    optimizer.build(model.variables)
    for head in (0, 0, 1, 0, 1):
        model.step(head)
    assert np.array_equal(Heads("none").heads[2], model.heads[2])
    if not graph:
        model.step(2)
        for number in range(3):
            model.step((number + hvd.rank()) % 3)


# --- momentum, variables that come twice, variables that are frozen


@pytest.mark.parametrize("spec", ["dgc(ratio=0.1)", "signum", "fetchsgd"])
def test_momentum_that_is_set_later(spec):
    run = Fit(spec, seed=0)
    run.optimizer.momentum = 0.9
    with pytest.raises(ValueError, match="must be 0"):
        run.train(1)
    run = Fit("none", seed=0)
    run.train(1)
    for change in (run.optimizer.set_compression, partial(hvdc.set_compression, run.variables)):
        with pytest.raises(ValueError, match="must be 0"):
            change(spec)
    run.train(1)
    assert spread(run.variables) == 0


def test_momentum_that_one_rank_sets():
    run = Fit("signum", seed=0)
    run.train(1)
    if hvd.rank() == 0:
        run.optimizer.momentum = 0.9
        run.model.make_train_function(force=True)
    with pytest.raises((ValueError, tf.errors.OpError), match=r"must be 0|Mismatched"):
        run.train(1)


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("spec", SOME)
def test_a_variable_that_comes_twice(spec, graph):
    start = np.random.default_rng(0).standard_normal((40, 40)).astype(np.float32)
    once, twice = tf.Variable(start), tf.Variable(start)

    def step(variable, sources):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(variable) * (1.0 + hvd.rank()))
        gradients = hvdc.DistributedGradientTape(tape, compression=spec).gradient(loss, sources)
        variable.assign_sub(0.1 * tf.convert_to_tensor(gradients[-1]))
        return gradients

    steps = [partial(step, once, [once]), partial(step, twice, [twice, twice])]
    if graph:
        steps = [tf.function(step, autograph=False) for step in steps]
    for _ in range(3):
        [one], both = steps[0](), steps[1]()
        assert np.array_equal(both[0], one)
        assert np.array_equal(both[1], one)
    assert spread([twice]) == 0
    assert hvdc.compression_stats([twice, twice])["steps"] == 3


@pytest.mark.parametrize("spec", bindable(SOME))
def test_a_bound_variable_that_comes_twice(spec):
    variable = tf.Variable(np.random.default_rng(0).standard_normal((40, 40)).astype(np.float32))
    bound = hvdc.compression.TensorFlowCompression(parse(spec)).bind([variable, variable])
    for _ in range(3):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(variable) * (1.0 + hvd.rank()))
        gradients = hvd.DistributedGradientTape(tape, compression=bound).gradient(loss, [variable, variable])
        variable.assign_sub(0.01 * gradients[0])
        variable.assign_sub(0.01 * gradients[1])
    assert spread([variable]) == 0


@pytest.mark.parametrize("spec", SOME)
def test_tied_layers(spec):
    keras.utils.set_random_seed(0)
    shared = keras.layers.Dense(64, activation="relu")
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), shared, shared, keras.layers.Dense(30)])
    optimizer = DistributedOptimizer(sgd(spec), compression=spec)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(*batch(0, 64), batch_size=16, verbose=0)
    assert spread(model.trainable_variables) == 0
    assert len(model.trainable_variables) == 4


@pytest.mark.parametrize("spec", SOME[:3])
@pytest.mark.parametrize("anew", [True, False])
def test_variables_that_become_trainable_later_and_freeze_again(spec, anew):
    model = small_model()
    images, labels = batch(0, 48)
    optimizer = DistributedOptimizer(sgd(spec), compression=spec)
    if not anew:
        optimizer.build(model.trainable_variables)
    for trainable in (False, True, False, True):
        model.layers[1].trainable = trainable
        if anew:
            optimizer = DistributedOptimizer(sgd(spec), compression=spec)
        before = np.asarray(model.layers[1].kernel)
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(images, labels, batch_size=16, verbose=0)
        assert np.array_equal(before, model.layers[1].kernel) != trainable
        assert spread(model.weights) == 0


def test_an_optimizer_that_knew_only_some_variables():
    model = small_model()
    model.layers[1].trainable = False
    optimizer = DistributedOptimizer(sgd("topk"), compression="topk")
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(*batch(0), verbose=0)
    model.layers[1].trainable = True
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises((ValueError, KeyError)):
        model.fit(*batch(0), verbose=0)


def test_one_rank_alone_freezes():
    run = Fit("topk", seed=0)
    run.train(2)
    if hvd.rank() == 1:
        run.model.layers[1].trainable = False
        run.model.compile(run.optimizer, run.model.loss)
    with pytest.raises(DISAGREE, match=r"not all called|Mismatched"):
        run.train(1)


# --- ranks that do not come


def test_a_rank_that_skips_a_batch_is_named(monkeypatch, caplog):
    loop = Loop("topk", 0)
    loop.train(2)
    monkeypatch.setattr(stalls._office(), "warn_after", 0.5)
    hvd.allreduce(tf.constant(0.0), name="together")
    if hvd.rank() == 1:
        time.sleep(4)
    loop.train(1)
    said = [record.message for record in caplog.records if "in step 3: rank 1 has ended step 2, " in record.message]
    assert bool(said) == (hvd.rank() != 1)
    assert spread(loop.variables) == 0


def test_a_graph_that_was_left_by_an_error_waits_for_nobody(monkeypatch, caplog, tmp_path):
    run = KINDS["graph"]("powersgd", seed=0)
    run.train(2)
    path = run.checkpoint.save(str(tmp_path / "state"))
    run.train(2)
    monkeypatch.setattr(stalls._office(), "warn_after", 1.0)
    if hvd.rank() == 0:
        run.checkpoint.restore(path)
    with pytest.raises(DISAGREE, match=r"not all called|Mismatched"):
        run.train(1)
    time.sleep(3)
    assert not [record for record in caplog.records if "has waited" in record.message]
