"""Each method against its own formula."""

import math

import numpy as np
import pytest
import torch

from hvd_compress import ErrorFeedback, Exponential, Layout, Linear, Simulation, parse
from hvd_compress.compressors.lowrank import PowerSGD
from hvd_compress.compressors.quantize import QSGD, BFloat16, Int8, LowPrecision, Natural, TernGrad
from hvd_compress.compressors.sign import EFSignSGD, OneBit
from hvd_compress.compressors.sparsify import RandomK, TopK


def gaussian(*seed, size=1000):
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def sent(compressor, vector, layout=None):
    result = Simulation(compressor, layout or vector.size, 1).reduce([vector])[0]
    return result.sent.add_to(np.zeros_like(vector))


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


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize(("value", "known"), [(1.0, True), (3e37, False), (math.nan, False)])
def test_powersgd_knows_when_its_mean_is_finite(value, known):
    layout = Layout.of([("m", (40, 30)), ("b", (9,))])
    for bad in (0, -1):  # in the matrix, and in what is dense
        vector = np.full(layout.size, 1.0 if math.isnan(value) else value, np.float32)
        vector[bad] = value
        result = Simulation(PowerSGD(2), layout, 1).reduce([vector])[0]
        assert result.finite == known
        assert np.isfinite(result.mean).all() != math.isnan(value)


def test_threshold_keeps_what_is_not_below_it():
    vector = gaussian(10)
    kept = sent(parse("threshold(threshold=1.5, feedback=none)"), vector)
    assert np.array_equal(kept, np.where(np.abs(vector) >= 1.5, vector, 0))


@pytest.mark.parametrize("ratio", [0.001, 0.01, 0.1])
@pytest.mark.parametrize("power", [1, 5])  # normal, and with heavy tails
def test_dgc_sends_about_k_of_the_largest(ratio, power):
    vector = gaussian(11, size=100_000) ** power
    kept = sent(parse(f"dgc(ratio={ratio}, feedback=none)"), vector)
    count = np.count_nonzero(kept)
    assert 0.8 * ratio * vector.size <= count <= 1.3 * ratio * vector.size
    assert np.abs(vector[kept != 0]).min() >= np.abs(vector[kept == 0]).max()
    assert np.array_equal(kept[kept != 0], vector[kept != 0])


def test_wangni_keeps_as_many_as_asked_on_average_and_the_largest_always():
    vector = gaussian(12) ** 3
    simulation = Simulation(parse("wangni(ratio=0.2)"), vector.size, 1)
    decoded = np.array([simulation.reduce([vector])[0].mean for _ in range(300)])
    counts = (decoded != 0).sum(axis=1)
    assert abs(counts.mean() - 200) < 5 * counts.std() / np.sqrt(300) + 2
    largest = np.argsort(-np.abs(vector))
    assert np.allclose(decoded[:, largest[:20]], vector[largest[:20]])  # with probability 1, as they are
    drawn = np.abs(decoded[:, largest[300:]])
    assert np.allclose(drawn[drawn > 0], drawn.max(), rtol=1e-4)  # v/p = sign(v) / lambda


def test_terngrad_clips_and_sends_three_values():
    layout = Layout.of([("a", (10, 50)), ("b", (500,))])
    vector = gaussian(13)
    vector[3] = 30.0
    for clip, part in ((2.5, slice(0, 500)), (2.5, slice(500, 1000)), (0, slice(0, 500))):
        values = sent(TernGrad(clip), vector, layout)[part]
        scale = np.abs(vector[part]).max()
        if clip:
            scale = min(scale, clip * np.sqrt(np.mean(vector[part] ** 2)))
        assert np.allclose(np.unique(np.abs(values)), [0, scale])
        assert not (values * vector[part] < 0).any()


def test_natural_rounds_to_a_neighbouring_power_of_two():
    vector = np.concatenate([gaussian(14), np.float32([0, 1, -2, 1e-42, 3e38, -1e-38])])
    values = sent(Natural(), vector)
    exponents = np.log2(np.abs(values[values != 0]))
    assert np.array_equal(exponents, np.round(exponents))
    low = np.exp2(np.floor(np.log2(np.abs(vector[:1000]))))
    assert ((np.abs(values[:1000]) == low) | (np.abs(values[:1000]) == 2 * low)).all()
    assert values[1000:1003].tolist() == [0, 1, -2]
    assert np.isfinite(values).all()


def test_int8_errs_by_half_a_cell():
    vector = (gaussian(15, size=4096) ** 5).astype(np.float32)
    values = sent(Int8(), vector)
    for block in (slice(0, 2048), slice(2048, 4096)):
        m = np.abs(vector[block]).max()
        relative, error = np.abs(vector[block]) / m, np.abs(values[block] - vector[block]) / m
        decade = np.clip(np.floor(np.log10(np.maximum(relative, 1e-30))) + 7, 0, 6)
        bound = np.where(relative < 1e-7, relative, 0.45 * 10 ** (decade - 6) / 2**decade)
        assert (error <= bound * 1.001 + 1e-7).all()
        assert not (values[block] * vector[block] < 0).any()


def test_bf16_is_that_of_pytorch():
    vector = np.concatenate([gaussian(16), np.float32([1e-42, 3.3e38, 0, -0.0, 1.00390625, 1.01171875])])
    assert np.array_equal(sent(BFloat16(), vector), torch.from_numpy(vector).bfloat16().float().numpy())


@pytest.mark.parametrize("bits", [2, 3, 8, 12])
def test_low_precision_rounds_to_a_neighbour_on_its_grid(bits):
    vector = gaussian(17)
    delta = np.abs(vector).max() / (2 ** (bits - 1) - 1)
    grid = sent(LowPrecision(bits), vector) / delta
    assert np.abs(grid - np.round(grid)).max() < 1e-3
    assert np.abs(grid - vector / delta).max() < 1.001
    # Yu, Wu, Huang 2019: E|Q(v) - v|^2 <= d delta^2 / 4
    assert np.mean((grid - vector / delta) ** 2) <= 0.25


def test_sign_methods():
    layout = Layout.of([("a", (10, 50)), ("b", (500,))])
    vector = gaussian(18) + np.float32(0.3)
    for part in (slice(0, 500), slice(500, 1000)):
        own, signs = vector[part], np.where(vector[part] >= 0, 1, -1)
        assert np.allclose(sent(EFSignSGD(), vector, layout)[part], signs * np.abs(own).mean(), rtol=1e-5)
        means = np.where(own >= 0, own[own >= 0].mean(), own[own < 0].mean())
        assert np.allclose(sent(OneBit(), vector, layout)[part], means, rtol=1e-5)


def test_signs_vote():
    vectors = [np.float32([1, -1, 1, 5, 0]), np.float32([2, -3, -1, 5, 0]), np.float32([-9, -1, 1, 5, -1])]
    assert Simulation(parse("signsgd"), 5, 3).reduce(vectors)[0].mean.tolist() == [1, -1, 1, 1, 1]
    assert Simulation(parse("signsgd"), 5, 2).reduce(vectors[:2])[0].mean.tolist() == [1, -1, 0, 1, 1]


def test_signum_is_the_sign_of_the_momentum():
    simulation, m = Simulation(parse("signum(momentum=0.8)"), 1000, 1), 0
    for step in range(6):
        vector = gaussian(19, step)
        m = 0.8 * m + 0.2 * vector.astype(np.float64)
        signs = simulation.reduce([vector])[0].mean
        assert (signs == np.sign(m))[np.abs(m) > 1e-6].all()


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("masking", [False, True])
def test_momentum_correction_is_that_of_deep_gradient_compression(nesterov, masking):
    spec = f"topk(ratio=0.05, feedback=momentum(momentum=0.8, nesterov={nesterov}, masking={masking}, clip=10.0))"
    simulation = Simulation(parse(spec), 1000, 4)
    u, v = np.zeros((4, 1000)), np.zeros((4, 1000))
    for step in range(8):
        vectors = [gaussian(20, step, rank) for rank in range(4)]
        mean = np.zeros(1000)
        for worker, vector in enumerate(vectors):
            g = vector * min(1, 10.0 / np.sqrt(4) / np.linalg.norm(vector))
            u[worker] = 0.8 * u[worker] + g
            v[worker] += 0.8 * u[worker] + g if nesterov else u[worker]
            chosen = np.argsort(-np.abs(v[worker]))[:50]
            mean[chosen] += v[worker, chosen] / 4
            v[worker, chosen] = 0
            if masking:
                u[worker, chosen] = 0
        assert np.allclose(simulation.reduce(vectors)[0].mean, mean, atol=1e-5)


def test_ef21_follows_a_gradient_that_stays():
    target = gaussian(21)
    simulation = Simulation(parse("topk(ratio=0.1, feedback=ef21)"), 1000, 2)
    for step in range(10):
        mean = simulation.reduce([target, 3 * target])[0].mean
        assert np.count_nonzero(mean) <= 200 * (step + 1)
    assert np.allclose(mean, 2 * target, atol=1e-5)  # ten times a tenth of the coordinates


def test_values_of_what_is_selected_are_quantized():
    vector = gaussian(22)
    plain, coded = sent(TopK(0.1), vector), sent(TopK(0.1, values=QSGD(8, block=100)), vector)
    assert np.array_equal(plain != 0, coded != 0)
    assert np.abs(plain - coded).max() <= np.abs(vector).max() / 127 * 1.001
    bits = TopK(0.1, values=QSGD(8, block=100)).payload_bits(Layout.flat(1000))
    assert TopK(0.1).payload_bits(Layout.flat(1000)) - bits == 100 * 32 - (100 * 8 + 32)


def test_schedules():
    warm_up = Exponential(0.25, 0.001, steps=400, every=100)
    assert [round(warm_up.at(step), 4) for step in (0, 99, 100, 200, 300, 400, 10**9)] == [
        *(0.25, 0.25, 0.0629, 0.0158, 0.004, 0.001, 0.001)
    ]
    assert [Linear(10, 2, steps=4).at(step) for step in range(6)] == [10, 8, 6, 4, 2, 2]
    simulation = Simulation(parse("topk(ratio=linear(0.5, 0.1, steps=4), feedback=none)"), 1000, 1)
    counts = [np.count_nonzero(simulation.reduce([gaussian(23)])[0].mean) for _ in range(6)]
    assert counts == [500, 400, 300, 200, 100, 100]
    simulation = Simulation(parse("powersgd(rank=linear(4, 1, steps=3))"), Layout.of([("m", (30, 20))]), 2)
    ranks = [
        np.linalg.matrix_rank(simulation.reduce([gaussian(24, size=600)] * 2)[0].mean.reshape(30, 20)) for _ in range(5)
    ]
    assert ranks == [4, 3, 2, 1, 1]


def test_powersgd_starts_dense():
    layout = Layout.of([("m", (30, 20))])
    simulation, vector = Simulation(parse("powersgd(rank=1, start=2)"), layout, 2), gaussian(25, size=600)
    exact = [np.allclose(simulation.reduce([vector, vector])[0].mean, vector) for _ in range(3)]
    assert exact == [True, True, False]


@pytest.mark.parametrize(
    "spec",
    [
        *("topk(ratio=0.05)", "randomk(ratio=0.05)", "powersgd(rank=1)", "qsgd(bits=2)", "ef_signsgd", "onebit"),
        *("natural", "int8(feedback=ef)", "terngrad(clip=0)", "topk(ratio=0.05, feedback=ef21)", "wangni(ratio=0.3)"),
        *("qsgd(bits=4, feedback=ef21)", "topk(ratio=0.05, values=qsgd(bits=4))", "threshold(threshold=0.1)"),
        "dgc(ratio=0.05, feedback=momentum(momentum=0.5))",
    ],
)
def test_gradient_descent_converges_on_a_quadratic(spec):
    layout = Layout.of([("m", (20, 10))])
    targets = [gaussian(9, rank, size=200) for rank in range(4)]
    simulation, x = Simulation(parse(spec), layout, 4), np.zeros(200, np.float32)
    optimum = np.mean(targets, axis=0)
    for step in range(600):
        mean = simulation.reduce([x - target for target in targets])[0].mean
        x = x - 0.1 / (1 + step / 60) * mean
    assert np.linalg.norm(x - optimum) < 0.1 * np.linalg.norm(optimum)
