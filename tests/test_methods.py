"""Each method against its own formula."""

import numpy as np
import pytest

from hvd_compress import ErrorFeedback, Layout, Simulation, parse
from hvd_compress.compressors.lowrank import PowerSGD
from hvd_compress.compressors.quantize import QSGD
from hvd_compress.compressors.sparsify import RandomK, TopK


def gaussian(*seed, size=1000):
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def sent(compressor, vector, layout=None):
    result = Simulation(compressor, layout or vector.size, 1).reduce([vector])[0]
    return result.add_sent(np.zeros_like(vector), 1.0)


def test_topk_keeps_the_largest_and_nothing_else():
    vector = gaussian(0)
    kept = sent(TopK(0.05), vector)
    order = np.argsort(-np.abs(vector))
    assert np.array_equal(kept[order[:50]], vector[order[:50]])
    assert not kept[order[50:]].any()


def test_topk_by_tensor_and_by_model():
    layout = Layout.of([("small", (10, 10)), ("large", (10, 10))])
    vector = np.concatenate([gaussian(0, size=100), 100 * gaussian(1, size=100)])
    by_tensor, by_model = (sent(TopK(0.1, scope=scope), vector, layout) for scope in ("tensor", "model"))
    assert [np.count_nonzero(by_tensor[p.slice]) for p in layout.parameters] == [10, 10]
    assert [np.count_nonzero(by_model[p.slice]) for p in layout.parameters] == [0, 20]


def test_topk_in_half_precision_clips():
    kept = sent(TopK(1.0, values="fp16"), np.array([1e6, -1e6, 1.0], np.float32))
    assert kept.tolist() == [65504, -65504, 1]


def test_topk_with_feedback_sends_everything_in_time():
    vector = np.arange(1, 101, dtype=np.float32)
    simulation = Simulation(ErrorFeedback(TopK(0.1)), 100, 1)
    received = sum(simulation.reduce([vector if step == 0 else 0 * vector])[0].mean for step in range(10))
    assert np.array_equal(received, vector)


@pytest.mark.parametrize("norm", ["max", "l2"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_qsgd_rounds_to_a_neighbour(bits, norm):
    vector, s = gaussian(1), 2 ** (bits - 1) - 1
    scales = [np.abs(b).max() if norm == "max" else np.linalg.norm(b) for b in (vector[:600], vector[600:])]
    scale = np.repeat(scales, [600, 400])
    levels = sent(QSGD(bits, norm, block=600), vector) * s / scale
    assert np.abs(levels - np.round(levels)).max() < 1e-4
    assert np.abs(levels - vector * s / scale).max() < 1 + 1e-4
    assert np.abs(levels).max() <= s + 1e-4


def test_qsgd_variance_bound():
    # Alistarh et al. 2017, lemma 3.1: E|Q(v) - v|^2 <= min(n / s^2, sqrt(n) / s) |v|^2 with the l2 norm.
    vector = gaussian(2, size=512)
    simulation = Simulation(QSGD(4, "l2", block=512), 512, 1)
    errors = [np.sum((simulation.reduce([vector])[0].mean - vector) ** 2) for _ in range(200)]
    assert np.mean(errors) <= min(512 / 49, np.sqrt(512) / 7) * np.sum(vector**2)


def test_qsgd_draws_differ_between_workers_and_steps():
    vector = gaussian(3)
    simulation = Simulation(QSGD(2), 1000, 2)
    simulation.reduce([vector, vector])
    first = simulation.payloads[0]
    assert not np.array_equal(*first)
    simulation.reduce([vector, vector])
    assert not np.array_equal(first[0], simulation.payloads[0][0])
    again = Simulation(QSGD(2), 1000, 2, seed=1)
    again.reduce([vector, vector])
    assert not np.array_equal(first[0], again.payloads[0][0])


@pytest.mark.parametrize("scaled", [False, True])
def test_randomk(scaled):
    vector = gaussian(4)
    simulation = Simulation(RandomK(0.1, scaled), 1000, 3)
    results = simulation.reduce([vector, 2 * vector, 3 * vector])
    drawn = results[0].mean != 0
    assert drawn.sum() == 100
    assert np.allclose(results[0].mean[drawn], (10 if scaled else 1) * 2 * vector[drawn], rtol=1e-5)
    assert not np.array_equal(drawn, simulation.reduce([vector] * 3)[0].mean != 0)


def test_powersgd_finds_a_matrix_of_its_rank():
    factors = gaussian(5, size=(40, 3)) @ gaussian(6, size=(3, 30))
    layout = Layout.of([("m", (40, 30))])
    vector = factors.reshape(-1).astype(np.float32)
    assert np.allclose(sent(PowerSGD(3), vector, layout), vector, atol=1e-3)


def test_powersgd_warm_start_approaches_the_best_approximation():
    matrix = gaussian(7, size=(40, 30))
    u, s, v = np.linalg.svd(matrix)
    best = np.sqrt((s[2:] ** 2).sum())
    layout = Layout.of([("m", (40, 30))])

    def error(warm_start, steps):
        simulation = Simulation(PowerSGD(2, warm_start), layout, 1)
        for _ in range(steps):
            approximation = simulation.reduce([matrix.reshape(-1)])[0].mean
        return np.linalg.norm(approximation.reshape(40, 30) - matrix)

    assert error(True, 60) < 1.01 * best
    assert error(True, 60) < error(True, 1)
    assert error(False, 3) > 1.02 * best
    assert u.shape == (40, 40)
    assert v.shape == (30, 30)


def test_powersgd_of_the_mean_is_that_of_one_worker_with_the_mean():
    layout = Layout.of([("m", (40, 30)), ("b", (9,))])
    vectors = [gaussian(8, rank, size=layout.size) for rank in range(4)]
    together = Simulation(PowerSGD(2), layout, 4).reduce(vectors)[0].mean
    alone = Simulation(PowerSGD(2), layout, 1).reduce([np.mean(vectors, axis=0)])[0].mean
    assert np.allclose(together, alone, atol=1e-4)
    assert np.allclose(together[-9:], np.mean(vectors, axis=0)[-9:], atol=1e-6)


@pytest.mark.parametrize("spec", ["topk(ratio=0.05)", "randomk(ratio=0.05)", "powersgd(rank=1)", "qsgd(bits=2)"])
def test_gradient_descent_converges_on_a_quadratic(spec):
    layout = Layout.of([("m", (20, 10))])
    targets = [gaussian(9, rank, size=200) for rank in range(4)]
    simulation, x = Simulation(parse(spec), layout, 4), np.zeros(200, np.float32)
    optimum = np.mean(targets, axis=0)
    for step in range(600):
        mean = simulation.reduce([x - target for target in targets])[0].mean
        x = x - 0.1 / (1 + step / 60) * mean
    assert np.linalg.norm(x - optimum) < 0.1 * np.linalg.norm(optimum)
