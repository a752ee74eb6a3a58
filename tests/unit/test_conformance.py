"""What every compressor must do. A new one is held to it by being registered."""

import __future__

import copy
import dataclasses
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvd_compress import (
    EF21,
    Compressor,
    ErrorFeedback,
    Feedback,
    GatherCompressor,
    Layout,
    Linear,
    MomentumCorrection,
    Simulation,
    make,
    methods,
    parse,
    spec,
)
from hvd_compress.compressors import quantize
from hvd_compress.compressors.state import State
from hvd_compress.ops.numpy import NumpyOps
from hvd_compress.ops.tensorflow import TensorFlowOps
from hvd_compress.ops.torch import TorchOps
from hvd_compress.reduction.step import Step

NUMPY, TORCH = NumpyOps(kernels=False), TorchOps(kernels=False)
OPS = {"numpy": NUMPY, "torch": TORCH, "numpy with kernels": NumpyOps(), "torch with kernels": TorchOps()}
OPS["tensorflow"] = TensorFlowOps()  # slow, one operation at a time: see `everywhere`
LAYOUT = Layout.of([("a", (30, 20)), ("b", (7,)), ("empty", (0, 3)), ("c", (16, 3, 3, 3)), ("scalar", ())])
ARCHITECTURE = Path(__file__).parents[2] / "docs" / "architecture.md"

FEEDBACKS = (None, "none", "ef", "ef21", "momentum", "momentum(masking=False, nesterov=True, clip=1.0)")
NESTED = ("qsgd(bits=3, block=16)", "ef_signsgd", "natural", "low_precision(bits=3)", "bf16")


def choices(item: dataclasses.Field) -> list:
    """Values of a setting that are worth a test each."""
    limits, found = item.metadata, []
    found += limits["choices"] or ((True, False) if item.type == "bool" else ())
    found += NESTED if limits["nested"] else ()
    found += [limits[key] for key in ("low", "high") if limits[key] is not None]
    if item.type == "float" and limits["high"] is not None:
        found.append(Linear(limits["high"], 0.5 * limits["high"], steps=2))
    return found


def variants(name: str) -> list[Compressor]:
    """The method with its defaults and with each feedback that it allows, and with each choice of each setting."""
    settings = [{}] + [{item.name: value} for item in dataclasses.fields(methods()[name]) for value in choices(item)]
    found = []
    for chosen in settings:
        for feedback in (None, "none") if chosen else FEEDBACKS:
            try:
                compressor = make(name, feedback=feedback, **chosen)
            except ValueError:
                continue
            if compressor not in found:
                found.append(compressor)
    return found


VARIANTS = [compressor for name in methods() for compressor in variants(name)]
DEFAULTS = [parse(name) for name in methods()]
every = pytest.mark.parametrize("compressor", VARIANTS, ids=spec)


def worth_it(compressor: Compressor, kind: str) -> bool:
    """Whether to test a variant with these operations: with the slow ones, each method with its defaults."""
    return kind != "tensorflow" or compressor in DEFAULTS


everywhere = pytest.mark.parametrize(
    ("compressor", "ops"),
    [
        pytest.param(compressor, ops, id=f"{spec(compressor)}-{kind}")
        for compressor in VARIANTS
        for kind, ops in OPS.items()
        if worth_it(compressor, kind)
    ],
)


def inner(compressor: Compressor, step: int = 0) -> Compressor:
    """The method without its feedback, as it is in a step."""
    return (compressor.inner if isinstance(compressor, Feedback) else compressor).at(step)


def gaussian(*seed: int, size: int = LAYOUT.size) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def sent(result, ops=NUMPY) -> np.ndarray:
    """What the result's worker contributed."""
    return ops.to_numpy(result.sent.add_to(ops.zeros(result.mean.shape[0])))


def kept(compressor: Compressor, payload: np.ndarray) -> int | None:
    """How many coordinates a payload has, if its length depends on that."""
    return int(payload[:8].view(np.int64)[0]) if compressor.varying else None


def tolerance(compressor: Compressor) -> float:
    return 4e-3 if inner(compressor).name == "fp16" else 2e-5


def close(compressor: Compressor, a: np.ndarray, b: np.ndarray) -> bool:
    scale = max(np.abs(b).max(initial=0), 1e-30)
    return bool(np.abs(a - b).max(initial=0) <= tolerance(compressor) * scale)


@every
def test_spec_and_object_are_the_same(compressor):
    assert parse(spec(compressor)) == compressor
    assert hash(parse(spec(compressor))) == hash(compressor)


@every
@pytest.mark.parametrize("workers", [1, 2, 4, 64])
def test_every_worker_ends_up_with_the_mean_of_what_was_sent(compressor, workers):
    """Or, if the method is a majority vote, with the sign of its sum."""
    simulation = Simulation(compressor, LAYOUT, workers)
    for step in range(2):
        method = inner(compressor, step)
        results = simulation.reduce([gaussian(step, rank) for rank in range(workers)])
        assert all(np.array_equal(result.mean, results[0].mean) for result in results)
        assert results[0].mean.dtype == np.float32
        assert results[0].mean.shape == (LAYOUT.size,)
        if method.estimates:
            continue
        if results[0].sent is not None:
            contributions = [sent(result) for result in results]
        elif isinstance(method, GatherCompressor) and not isinstance(compressor, EF21):
            contributions = [method.decode(NUMPY, payload, LAYOUT) for payload in simulation.payloads[0]]
        else:
            continue  # see the tests of feedback
        mean = np.mean(np.asarray(contributions, np.float64), axis=0)
        assert close(compressor, results[0].mean, np.sign(mean) if method.majority_vote else mean)


shapes = st.lists(st.lists(st.integers(0, 9), min_size=0, max_size=3).map(tuple), min_size=1, max_size=4)


@every
@given(shapes=shapes, seed=st.integers(0, 2**32 - 1))
def test_bytes_are_exactly_those_promised(compressor, shapes, seed):
    layout = Layout.of([(str(i), shape) for i, shape in enumerate(shapes)])
    if not layout.size:
        return
    simulation = Simulation(compressor, layout, 2, seed=seed)
    simulation.reduce([gaussian(seed, rank, size=layout.size) for rank in range(2)])
    number = kept(compressor, simulation.payloads[0][0])
    assert 8 * simulation.traffic.sent == compressor.at(0).payload_bits(layout, number)


@every
def test_a_payload_may_be_taken_and_its_step_dropped(compressor):
    """A payload, and all of the state, are those of a whole step as soon as the payload is there."""
    if not isinstance(compressor.bare, GatherCompressor) or isinstance(compressor, EF21):
        pytest.skip("its state depends on what the others send")
    whole, dropped = Simulation(compressor, LAYOUT, 1), State(LAYOUT)
    for number in range(4):
        vector = gaussian(number)
        whole.reduce([vector])
        step = Step(compressor, whole.ops, vector.copy(), dropped)
        assert np.array_equal(step.pending.payload, whole.payloads[0][0])
        dropped.commit()
        expected, got = whole.states[0].state_dict(), dropped.state_dict()
        assert got["step"] == expected["step"]
        for store in ("shared", "local"):
            assert got[store].keys() == expected[store].keys()
            assert all(np.array_equal(got[store][name], expected[store][name]) for name in got[store])


@every
def test_collectives_are_those_declared(compressor):
    simulation = Simulation(compressor, LAYOUT, 2)
    simulation.reduce([gaussian(0), gaussian(1)])
    counted = {kind: entry["calls"] for kind, entry in simulation.traffic.collectives.items()}
    declared = list(compressor.collectives)
    assert counted == {kind: declared.count(kind) for kind in set(declared)}


@every
@pytest.mark.parametrize("kind", [kind for kind, ops in OPS.items() if ops is not NUMPY])
def test_all_implementations_send_the_same(compressor, kind):
    ours, theirs = Simulation(compressor, LAYOUT, 3, ops=NUMPY), Simulation(compressor, LAYOUT, 3, ops=OPS[kind])
    for step in range(3):
        vectors = [gaussian(step, rank) for rank in range(3)]
        expected = ours.reduce(vectors)[0].mean
        got = theirs.reduce([theirs.ops.from_numpy(vector) for vector in vectors])[0].mean
        assert close(compressor, expected, theirs.ops.to_numpy(got))
        for references, others in zip(ours.payloads, theirs.payloads, strict=True):
            for a, b in zip(references, map(theirs.ops.to_numpy, others), strict=True):
                assert a.dtype == b.dtype
                if a.dtype == np.uint8:
                    assert np.array_equal(a, b)
                else:
                    assert close(compressor, a.astype(np.float32), b.astype(np.float32))


@everywhere
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_values_reach_every_worker_and_leave_no_trace(compressor, ops, bad):
    simulation = Simulation(compressor, LAYOUT, 3, ops=ops)
    good = [ops.from_numpy(gaussian(rank)) for rank in range(3)]
    simulation.reduce(good)
    before = [copy.deepcopy(state.state_dict()) for state in simulation.states]
    for place in (0, LAYOUT.size // 2, LAYOUT.size - 1):
        poisoned = gaussian(7)
        poisoned[place] = bad
        results = simulation.reduce([good[0], ops.from_numpy(poisoned), good[2]])
        assert not any(ops.all_finite(result.mean) for result in results)
        assert not any(result.finite for result in results)
        if compressor.spreads:
            assert [ops.all_finite(sent) for sent in simulation.payloads[0]] == [True, False, True]
    for state, old in zip(simulation.states, before, strict=True):
        new = state.state_dict()
        assert new["step"] == old["step"] == 1
        for store in ("shared", "local"):
            assert new[store].keys() == old[store].keys()
            assert all(np.array_equal(new[store][name], old[store][name]) for name in old[store])


@everywhere
def test_the_input_is_not_modified(compressor, ops):
    simulation = Simulation(compressor, LAYOUT, 2, ops=ops)
    for _ in range(2):
        vectors = [gaussian(rank) for rank in range(2)]
        simulation.reduce([ops.from_numpy(vector.copy()) for vector in vectors])
        kept = [ops.from_numpy(vector) for vector in vectors]
        simulation.reduce(kept)
        assert all(np.array_equal(ops.to_numpy(vector), gaussian(rank)) for rank, vector in enumerate(kept))


@every
def test_runs_repeat_and_resume_exactly(compressor):
    def run(simulation, steps):
        return [simulation.reduce([gaussian(step, rank) for rank in range(2)])[0].mean for step in steps]

    whole = run(Simulation(compressor, LAYOUT, 2), range(6))
    first = Simulation(compressor, LAYOUT, 2)
    begun = run(first, range(3))
    resumed = Simulation(compressor, LAYOUT, 2)
    for state, other in zip(resumed.states, first.states, strict=True):
        assert state.load_state_dict(other.state_dict())
    for got, expected in zip(begun + run(resumed, range(3, 6)), whole, strict=True):
        assert np.array_equal(got, expected)


@every
def test_zeros_and_extreme_values(compressor):
    for vector in (
        np.zeros(LAYOUT.size, np.float32),
        np.full(LAYOUT.size, 1e-42, np.float32),
        np.eye(1, LAYOUT.size, dtype=np.float32)[0],
    ):
        result = Simulation(compressor, LAYOUT, 2).reduce([vector, vector])[0]
        assert np.isfinite(result.mean).all()
        if not vector.any() and not inner(compressor).majority_vote:
            assert not result.mean.any()
    if inner(compressor).name != "fp16":
        vector = np.full(LAYOUT.size, 1e30, np.float32)
        assert np.isfinite(Simulation(compressor, LAYOUT, 2).reduce([vector, -vector])[0].mean).all()


@every
def test_one_coordinate(compressor):
    result = Simulation(compressor, 1, 2).reduce([np.float32([2.0]), np.float32([4.0])])[0]
    assert result.mean.shape == (1,)
    assert np.isfinite(result.mean).all()


@every
def test_unbiased_means_that_the_average_is_the_vector(compressor):
    if not compressor.unbiased:
        pytest.skip("biased")
    layout, vector, steps = Layout.of([("m", (6, 5))]), gaussian(4, size=30), 3000
    vector += np.sign(vector)  # no coordinate so small that it is hardly ever drawn
    simulation = Simulation(compressor, layout, 1)
    decoded = np.array([simulation.reduce([vector])[0].mean for _ in range(steps)], np.float64)
    error = np.abs(decoded.mean(axis=0) - vector)
    deviation = decoded.std(axis=0) / np.sqrt(steps)
    assert (error <= 5 * deviation + 1e-5).all()


@every
def test_what_is_left_of_a_contraction_is_smaller_than_the_vector(compressor):
    method = inner(compressor)
    if not method.contraction:
        with pytest.raises(ValueError, match="allows no feedback"):
            ErrorFeedback(method)
        return
    for seed in range(5):
        vector = gaussian(seed)
        result = Simulation(method, LAYOUT, 1).reduce([vector])[0]
        assert np.sum((vector - sent(result)) ** 2) < np.sum(vector**2)


@every
def test_feedback_loses_nothing(compressor):
    """What was applied and what is left over add up to the gradients, or with momentum correction to the momenta."""
    if not isinstance(compressor, Feedback):
        pytest.skip("without feedback")
    if inner(compressor).estimates:
        pytest.skip("applies estimates")
    simulation = Simulation(compressor, LAYOUT, 2)
    given_, applied = np.zeros(LAYOUT.size), np.zeros(LAYOUT.size)
    momenta = np.zeros((2, LAYOUT.size))
    for step in range(8):
        vectors = [gaussian(step, rank) for rank in range(2)]
        result = simulation.reduce(vectors)[0]
        applied += 2 * result.mean.astype(np.float64)
        if isinstance(compressor, MomentumCorrection):
            norms = [np.sqrt(2) * np.linalg.norm(vector) for vector in vectors]
            if compressor.clip:
                vectors = [vector * compressor.clip / norm for vector, norm in zip(vectors, norms, strict=True)]
            if not compressor.masking:
                momenta = compressor.momentum * momenta + vectors
                vectors = vectors + compressor.momentum * momenta if compressor.nesterov else momenta
        given_ += np.sum(vectors, axis=0)
    states = simulation.states
    if isinstance(compressor, EF21):
        mean = states[0].shared["estimate"]
        assert close(compressor, mean, np.mean([state.local["estimate"] for state in states], axis=0))
        assert np.array_equal(mean, result.mean)
    elif not getattr(compressor, "masking", False):
        left = np.sum([state.local["residual"] for state in states], axis=0)
        assert np.abs(given_ - applied - left).max() <= 200 * tolerance(compressor)


@every
@given(data=st.data())
def test_hostile_payloads_are_refused_or_decoded_within_bounds(compressor, data):
    method = inner(compressor)
    if not isinstance(method, GatherCompressor):
        return
    layout = Layout.of([("a", (9, 5)), ("b", (3,))])
    number = data.draw(st.integers(0, layout.size)) if method.varying else None
    expected = method.payload_bits(layout, number) // 8 - (8 if method.varying else 0)
    length = data.draw(st.sampled_from([expected] * 4 + [0, expected - 1, expected + 1]))
    payload = np.frombuffer(data.draw(st.binary(min_size=length, max_size=length)), np.uint8).copy()
    if method.varying and length >= 8 and data.draw(st.booleans()):
        payload[:8] = np.int64([number]).view(np.uint8)
    for kind, ops in OPS.items():
        if not worth_it(compressor, kind):
            continue
        try:
            vector = method.decode(ops, ops.from_numpy(payload), layout)
        except ValueError:
            continue
        assert length == method.payload_bits(layout, kept(method, payload)) // 8 - (8 if method.varying else 0)
        assert vector.shape == (layout.size,)


@every
def test_flipped_bits_never_crash(compressor):
    method = inner(compressor)
    if not isinstance(method, GatherCompressor):
        pytest.skip("sends no payload of its own")
    simulation = Simulation(method, LAYOUT, 1)
    simulation.reduce([gaussian(0)])
    payload = simulation.payloads[0][0]
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        broken = payload.copy()
        broken[random.integers(len(broken))] ^= np.uint8(1 << random.integers(8))
        try:
            assert method.decode(OPS["numpy with kernels"], broken, LAYOUT).shape == (LAYOUT.size,)
        except ValueError:
            refused += 1
    assert refused < 200


@every
def test_dtypes_and_shapes_that_do_not_fit_raise_before_any_state_changes(compressor):
    simulation = Simulation(compressor, LAYOUT, 2)
    good = gaussian(0)
    for bad, error in ((good[1:], ValueError), (good.astype(np.int32), TypeError), (good[:, None], ValueError)):
        with pytest.raises(error, match="worker 1: "):
            simulation.reduce([good, bad])
    assert simulation.states[0].step == 0
    assert not simulation.states[0].local


@everywhere
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_the_mean_is_of_the_dtype_of_the_vector(compressor, ops, dtype):
    simulations = [Simulation(compressor, LAYOUT, 2, ops=ops) for _ in range(2)]
    vectors = [gaussian(rank).astype(np.float16) for rank in range(2)]
    [expected, got] = [
        ops.to_numpy(simulation.reduce([ops.from_numpy(v.astype(kind)) for v in vectors])[0].mean)
        for simulation, kind in zip(simulations, ("float32", dtype), strict=True)
    ]
    assert got.dtype == dtype
    assert np.allclose(got, expected, rtol=4e-3, atol=4e-3)


def test_the_worked_example_of_the_architecture_is_a_compressor(monkeypatch):
    code = re.search(r"```python\n(@dataclass.*?)```", ARCHITECTURE.read_text(), re.DOTALL)[1]
    namespace = {**vars(quantize)}
    exec(compile(code, "architecture.md", "exec", flags=__future__.annotations.compiler_flag), namespace)
    monkeypatch.setitem(sys.modules[parse.__module__]._METHODS, "fp24", namespace["Float24"])
    for compressor in variants("fp24"):
        test_spec_and_object_are_the_same(compressor)
        test_every_worker_ends_up_with_the_mean_of_what_was_sent(compressor, 4)
        test_bytes_are_exactly_those_promised(compressor)
        test_all_implementations_send_the_same(compressor, "torch")
        test_non_finite_values_reach_every_worker_and_leave_no_trace(compressor, TORCH, float("inf"))
        test_what_is_left_of_a_contraction_is_smaller_than_the_vector(compressor)
        test_hostile_payloads_are_refused_or_decoded_within_bounds(compressor)
    assert spec(parse("fp24")) == "fp24"
