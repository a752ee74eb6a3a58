"""The tape against Horovod's own, in graphs and eagerly."""

from functools import partial

import horovod.tensorflow as hvd
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_ranks import FEW, SECOND, SPECS, batch, flat, loss_of, rate_for, same_on_all_ranks, small_cnn, train

import hvd_compress.tensorflow as hvdc
from hvd_compress import Layout, Simulation, parse
from hvd_compress.tensorflow import reducer
from hvd_compress.tensorflow.variables import named


def close_or_equal(ours, theirs):
    """Bit-identical on two ranks; with more, the order of the sum may differ."""
    return np.array_equal(ours, theirs) if hvd.size() == 2 else np.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("settings", [{}, {"op": hvd.Sum}, {"gradient_predivide_factor": 2.0}])
def test_none_is_horovods_own_tape(graph, settings):
    expected = train(small_cnn(), partial(hvd.DistributedGradientTape, **settings), 5, graph=graph)
    got = train(small_cnn(), partial(hvdc.DistributedGradientTape, **settings), 5, graph=graph)
    assert close_or_equal(got, expected)


@pytest.mark.parametrize(("spec", "graph"), [*((spec, True) for spec in SPECS), *((spec, False) for spec in FEW)])
def test_parameters_stay_the_same_on_all_ranks_and_learn(spec, graph):
    model = small_cnn()
    before = flat(model)
    wrap = partial(hvdc.DistributedGradientTape, compression=spec, bucket_bytes=20_000)
    after = train(model, wrap, 4, graph=graph, rate=rate_for(spec))
    assert same_on_all_ranks(after)
    assert np.isfinite(after).all()
    assert not np.array_equal(before, after)


def test_a_step_is_traced_once():
    model, traced = small_cnn(), []

    @tf.function
    def step(images, labels):
        traced.append(1)
        with tf.GradientTape() as tape:
            loss = loss_of(model, images, labels)
        tape = hvdc.DistributedGradientTape(tape, compression=hvdc.Compression.topk(ratio=0.05))
        return tape.gradient(loss, model.trainable_variables)

    for number in range(5):
        step(*map(tf.constant, batch(number)))
    assert len(traced) <= 1


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("dense", [True, False])
def test_sparse_gradients_are_those_of_all_ranks(graph, dense):
    table, weights = tf.Variable(tf.zeros((10, 3))), tf.Variable(tf.ones((3, 2)))

    def step(rows):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.gather(table, rows) @ weights)
        return hvdc.DistributedGradientTape(tape, sparse_as_dense=dense).gradient(loss, [table, weights])

    step = tf.function(step, autograph=False) if graph else step
    for _ in range(2):
        gradient, _ = step(tf.constant([hvd.rank(), hvd.rank(), 9]))
        assert isinstance(gradient, tf.IndexedSlices) != dense
        expected = np.zeros((10, 3), np.float32)
        expected[: hvd.size()] = 2 * 2 / hvd.size()
        expected[9] = 2
        assert np.allclose(tf.convert_to_tensor(gradient), expected)


def test_ranks_that_disagree_fail_together():
    weights = tf.Variable(tf.ones((40, 40)))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(weights**2)
    tape = hvdc.DistributedGradientTape(tape, compression=f"topk(ratio={0.1 + 0.1 * hvd.rank()})")
    with pytest.raises(hvdc.WorkersDisagree, match="compression"):
        tape.gradient(loss, [weights])


def test_gradients_that_are_missing_on_one_rank():
    weights, others = tf.Variable(tf.ones(3)), tf.Variable(tf.ones(3))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(weights**2 if hvd.rank() == 0 else weights * others)
    gradients = hvdc.DistributedGradientTape(tape).gradient(loss, [weights, others])
    assert np.allclose(gradients, [[1 + 1 / hvd.size()] * 3, [1 - 1 / hvd.size()] * 3])


def test_gradients_that_are_sparse_on_one_rank():
    weights = tf.Variable(tf.ones((3, 4)))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(weights if hvd.rank() == 0 else tf.gather(weights, [0]))
    with pytest.raises(hvdc.WorkersDisagree, match="sparse on some"):
        hvdc.DistributedGradientTape(tape).gradient(loss, [weights])


@pytest.mark.parametrize("graph", [True, False])
def test_an_error_on_one_rank_reaches_all_and_the_next_step_goes_well(graph, monkeypatch):
    from hvd_compress.compressors.sparsify import TopK

    weights = tf.Variable(tf.ones((40, 40)))
    select, failing = TopK.select, []

    def fails(self, *arguments):
        if failing and hvd.rank() == 1:
            raise ArithmeticError("mine")
        return select(self, *arguments)

    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(weights**2)
        return hvdc.DistributedGradientTape(tape, compression="topk(ratio=0.1)", seed=int(graph)).gradient(
            loss, [weights]
        )[0]

    monkeypatch.setattr(TopK, "select", fails)
    step = tf.function(step, autograph=False) if graph else step
    expected = step().numpy()
    failing.append(True)
    with pytest.raises(
        tf.errors.OpError,
        match="ArithmeticError: mine" if hvd.rank() == 1 else "rank 1 failed with ArithmeticError: mine\n",
    ):
        step()
    failing.clear()
    assert np.isfinite(step().numpy()).all()
    assert np.count_nonzero(expected) == 160


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_gradients_reach_every_rank_and_leave_the_state(bad):
    weights, factor = tf.Variable(tf.ones((40, 40))), tf.Variable(1.0)

    @tf.function(autograph=False)
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(factor * weights**2 * tf.reshape(tf.range(1600.0), (40, 40)))
        return hvdc.DistributedGradientTape(tape, compression="topk(ratio=0.1)").gradient(loss, [weights])[0]

    first = step().numpy()
    factor.assign(bad if hvd.rank() == 0 else 1.0)
    assert not np.isfinite(step().numpy()).all()
    factor.assign(1.0)
    third = step().numpy()
    assert np.isfinite(third).all()
    # What the first step did not send is still there: the same coordinates again, but those largest twice as large.
    assert np.count_nonzero(third) == np.count_nonzero(first) == 160
    assert np.abs(third).max() >= np.abs(first).max()


@pytest.mark.parametrize("spec", ["none", "topk(ratio=0.1)"])
@pytest.mark.parametrize("nested", ["alone", "inside", "around"])
def test_a_function_with_an_exchange_goes_without_xla_and_says_so(spec, nested):
    weights = tf.Variable(tf.ones((40, 40)) * (1.0 + hvd.rank()))

    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(weights**2)
        return hvdc.DistributedGradientTape(tape, compression=spec).gradient(loss, [weights])[0]

    compiled = tf.function(tf.function(step) if nested == "around" else step, jit_compile=True, autograph=False)
    function = tf.function(lambda: compiled() + 1, autograph=False) if nested == "inside" else compiled
    with pytest.warns(UserWarning, match="XLA cannot compile the exchange"):
        first = function()
    expected = np.zeros((40, 40))
    expected.reshape(-1)[: 1600 if spec == "none" else 160] = np.mean(2.0 * np.arange(1, hvd.size() + 1))
    assert np.allclose(first, expected + (nested == "inside"))
    second = function()
    assert np.allclose(second, first) == (spec == "none")


def test_functions_without_an_exchange_are_still_compiled():
    square = tf.function(lambda x: x**2, jit_compile=True, autograph=False)
    assert float(square(tf.constant(3.0))) == 9
    assert "HloModule" in square.experimental_get_compiler_ir(tf.constant(3.0))(stage="hlo")


def test_a_process_set_averages_among_itself():
    weights = tf.Variable(tf.ones((40, 40)))
    with tf.GradientTape(persistent=True) as tape:
        loss = tf.reduce_sum(weights) * (1.0 + hvd.rank())
    own = hvdc.DistributedGradientTape(tape, process_set=SECOND).gradient(loss, [weights])[0]
    assert np.array_equal(own, np.full((40, 40), 1.0 + hvd.rank()))
    mean = hvdc.DistributedGradientTape(tape).gradient(loss, [weights])[0]
    assert np.allclose(mean, 1 + (hvd.size() - 1) / 2)


def test_persistent_tapes_and_two_models_keep_their_residuals_apart():
    first, second = (tf.Variable(tf.reshape(tf.range(1600.0), (40, 40))) for _ in range(2))
    for step in range(3):
        with tf.GradientTape(persistent=True) as tape:
            losses = tf.reduce_sum(first**2), tf.reduce_sum(second**2)
        distributed = hvdc.DistributedGradientTape(tape, compression="topk(ratio=0.1)")
        one, other = (distributed.gradient(loss, [v])[0] for loss, v in zip(losses, (first, second), strict=True))
        assert np.array_equal(one, other)
        if step == 0:
            once = np.asarray(one)
    assert not np.array_equal(once, one)  # what was not sent has come after


def test_rules_name_variables():
    weights, others = tf.Variable(tf.ones((40, 40)), name="weights"), tf.Variable(tf.ones((40, 40)), name="others")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(weights * tf.reshape(tf.range(1600.0), (40, 40))) + tf.reduce_sum(others)
    tape = hvdc.DistributedGradientTape(tape, rules=[("weights", "topk(ratio=0.1, feedback=none)")])
    chosen, plain = tape.gradient(loss, [weights, others])
    assert np.count_nonzero(chosen) == 160
    assert np.count_nonzero(plain) == 1600
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(others)
    tape = hvdc.DistributedGradientTape(tape, rules=[("weights", "topk")])
    with pytest.raises(ValueError, match="matches none of the 1 parameters: others"):
        tape.gradient(loss, [others])


@pytest.mark.parametrize(
    ("spec", "device"),
    [*((spec, "CPU:0") for spec in (*SPECS, "powersgd(start=2)")), *((spec, "GPU:0") for spec in FEW[1:-1])],
)
def test_it_gives_what_simulated_workers_give(spec, device, monkeypatch):
    """Also with what runs on a GPU; without one, TensorFlow puts that on the CPU."""

    def placed(variables):
        found = named(variables)
        for variable in found:
            variable.device = device
        return found

    monkeypatch.setattr(reducer, "named", placed)
    shapes = [(40, 30), (25, 50)]
    variables = [tf.Variable(tf.zeros(shape)) for shape in shapes]
    # Buckets begin with the last variable.
    layout = Layout.of([("1", shapes[1]), ("0", shapes[0])])
    simulation = Simulation(parse(spec), layout, hvd.size())

    @tf.function(autograph=False)
    def step(*gradients):
        with tf.GradientTape() as tape:
            loss = sum(tf.reduce_sum(v * g) for v, g in zip(variables, gradients, strict=True))
        return hvdc.DistributedGradientTape(tape, compression=spec).gradient(loss, variables)

    for number in range(4):
        every = [
            [np.random.default_rng([number, rank, i]).standard_normal(shapes[i]).astype(np.float32) for i in range(2)]
            for rank in range(hvd.size())
        ]
        expected = simulation.reduce([np.concatenate([g[1].reshape(-1), g[0].reshape(-1)]) for g in every])[0].mean
        means = step(*map(tf.constant, every[hvd.rank()]))
        got = np.concatenate([np.asarray(means[i]).reshape(-1) for i in (1, 0)])
        tolerance = 4e-3 if "fp16" in spec else 1e-4 if "powersgd" in spec else 1e-5
        assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()
    stats = hvdc.compression_stats(variables)
    assert stats["steps"] == 4
    sent = {kind: entry["sent"] for kind, entry in stats["collectives"].items() if kind != "agreement"}
    if hvd.rank() == 0:  # whose bytes are those that the simulation counts
        assert sum(sent.values()) == simulation.traffic.sent


def test_an_empty_variable_has_its_place_in_layouts():
    """What random numbers and checkpoints go by has all variables in it, the empty ones too."""
    variables = [tf.Variable(tf.ones(shape)) for shape in ((40, 50), (0, 5), (60, 50))]
    with tf.GradientTape() as tape:
        loss = tf.add_n([tf.reduce_sum(variable**2) for variable in variables])
    gradients = hvdc.DistributedGradientTape(tape, compression="wangni", rules=[("*", "wangni(ratio=0.1)")]).gradient(
        loss, variables
    )
    assert [gradient.shape for gradient in gradients] == [variable.shape for variable in variables]
    from hvd_compress.tensorflow.reducer import _found

    [exchange] = _found(variables).exchanges
    assert [place.name for place in exchange.layout.parameters] == ["2", "1", "0"]


@pytest.mark.parametrize("graph", [True, False])
def test_groups_are_buckets(graph):
    model, spec = small_cnn(), "topk(ratio=0.05)"
    plain = train(small_cnn(), partial(hvdc.DistributedGradientTape, compression=spec, dense_below=0), 3, graph=graph)
    first, _, second, *_ = [variable.value for variable in model.trainable_variables]
    wrap = partial(hvdc.DistributedGradientTape, compression=spec, dense_below=0, groups=[[first, second]])
    assert close_or_equal(train(model, wrap, 3, graph=graph), plain)
    variables = [variable.value for variable in model.trainable_variables]
    layouts = [exchange.layout.parameters for exchange in reducer._found(variables).all]
    assert {"0", "2"} in [{place.name for place in each} for each in layouts]
    with pytest.raises(ValueError, match="groups cannot be used"):
        train(model, partial(hvdc.DistributedGradientTape, compression="topk(scope=model)", groups=2), 1, graph=graph)


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("graph", [True, False])
def test_a_local_source_keeps_its_gradient_as_with_horovods_tape(graph, scale):
    shared, own = tf.Variable(tf.ones((3, 4))), tf.Variable(tf.ones((3, 4)))

    def step(wrap):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(shared * own) * (hvd.rank() + 1.0)
        tape = wrap(tape, scale_local_gradients=scale)
        tape.register_local_source(own)
        return tape.gradient(loss, [shared, own], use_generic_names=True)

    step = tf.function(step, autograph=False) if graph else step
    expected, got = step(hvd.DistributedGradientTape), step(hvdc.DistributedGradientTape)
    assert np.allclose(expected, got)
    assert np.allclose(got[1], (hvd.rank() + 1) / (hvd.size() if scale else 1))


def test_arguments_in_horovods_order_and_what_is_refused():
    weights = tf.Variable(tf.ones((40, 40)))
    with tf.GradientTape(persistent=True) as tape:
        loss = tf.reduce_sum(weights**2) * (hvd.rank() + 1.0)
    with pytest.warns(DeprecationWarning, match="groups=1"):
        ours = hvdc.DistributedGradientTape(tape, "", "", hvdc.Compression.none, True, hvd.Sum, 1.0, 1)
    assert np.allclose(ours.gradient(loss, [weights])[0], hvd.size() * (hvd.size() + 1))
    for place in ("/cpu:0", "topk(ratio=0.1)", hvdc.Compression.topk()):
        with pytest.raises(ValueError, match=r"device_dense must be ''; got .*compression=\.\.\."):
            hvdc.DistributedGradientTape(tape, place)
    with pytest.raises(ValueError, match="device_sparse must be ''"):
        hvdc.DistributedGradientTape(tape, device_sparse="/cpu:0")
    with pytest.raises(ValueError, match="only once"):
        hvdc.DistributedGradientTape(tape, groups=[[weights], [weights]])
