"""The compiled kernels give the bits of the NumPy reference, whatever the SIMD, the threads and the payloads."""

import contextlib
import functools
import inspect
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvd_compress import CountSketch, Layout, State, parse
from hvd_compress.compressors.indices import decode_indices, encode_indices, index_bytes
from hvd_compress.compressors.sketches.invertible import InvertibleSketch
from hvd_compress.native.kernels import Kernels
from hvd_compress.ops import packed_bytes, random
from hvd_compress.ops.numpy import NumpyOps
from hvd_compress.ops.random import Stream

module = pytest.importorskip("hvd_compress.native.cpu._kernels", reason="the kernels are not built")

REFERENCE = NumpyOps(kernels=False)
STREAM = Stream(0x123456789ABCDEF0, 42)
SIZES = (1, 7, 63, 64, 65, 1000, 4097, 200_001)


@pytest.fixture(
    scope="module",
    params=[(level, threads) for level in module.simd_levels() for threads in (1, 2, 3)],
    ids=lambda param: "{}-{}".format(*param),
)
def kernels(request):
    before = module.simd(), module.threads()
    level, threads = request.param
    module.set_simd(level)
    module.set_threads(threads)
    assert (module.simd(), module.threads()) == request.param
    yield module
    module.set_simd(before[0])
    module.set_threads(before[1])


def same(got, expected):
    assert got.dtype == expected.dtype
    assert got.tobytes() == expected.tobytes()


def subset(size, count, seed=0):
    return np.sort(np.random.default_rng(seed).choice(size, count, replace=False)).astype(np.int64)


def vectors(size):
    rng = np.random.default_rng(size)
    normal = rng.standard_normal(size).astype(np.float32)
    yield normal
    yield np.sort(normal)
    yield -np.sort(np.abs(normal))
    yield normal * np.where(np.arange(size) < size // 3, 1000, 1).astype(np.float32)
    yield (rng.standard_cauchy(size) ** 3).astype(np.float32)
    yield rng.integers(-3, 4, size).astype(np.float32)
    yield np.ones(size, np.float32)
    yield np.zeros(size, np.float32)
    yield normal * np.float32(1e-42)
    special = normal.copy()
    special[rng.integers(0, size, size // 5 + 1)] = np.nan
    special[rng.integers(0, size, size // 9 + 1)] = -np.inf
    special[rng.integers(0, size, size // 4)] = 0
    yield special
    yield rng.integers(-(2**31), 2**31, size).astype(np.int32).view(np.float32)  # any bits


# --- quantizers

QUANTIZERS = ["int8", "int8(block=3)", "qsgd", "qsgd(bits=2, block=100)", "qsgd(bits=3, norm=l2, block=24)", "natural"]
QUANTIZERS += ["qsgd(bits=8, block=100000)", "terngrad", "terngrad(clip=0)", "low_precision", "low_precision(bits=3)"]
QUANTIZERS += ["low_precision(bits=11)", "bf16", "signsgd", "ef_signsgd", "onebit"]
QUANTIZED = Layout.of([("a", (300, 250)), ("one", ()), ("none", (0, 4)), ("b", (17,)), ("c", (64, 1200))])


@functools.cache
def quantized(spec):
    """Return a vector and a residual, and the reference's payload and rest of their sum, and what payloads come to."""
    compressor, state = parse(spec, nested=True), State(QUANTIZED, seed=3)
    rng = np.random.default_rng(1)
    vector, residual = (rng.standard_normal(QUANTIZED.size).astype(np.float32) for _ in range(2))
    vector[rng.integers(0, QUANTIZED.size, 20000)] = 0
    vector *= np.exp(rng.standard_normal(QUANTIZED.size)).astype(np.float32)
    payload, sent = compressor.encode(REFERENCE, vector, state)
    coded, sent_with_residual, rest = compressor.encode_rest(REFERENCE, vector.copy(), residual, state)
    mean = compressor.combine(REFERENCE, [sent, sent_with_residual, sent], 3, QUANTIZED)
    return compressor, state, vector, residual, payload, coded, rest, mean


@pytest.mark.parametrize("spec", QUANTIZERS)
def test_quantizers(kernels, spec):
    compressor, state, vector, residual, payload, coded, rest, mean = quantized(spec)
    ops, before = NumpyOps(), vector.copy()
    same(compressor.encode(ops, vector, state)[0], payload)
    same(vector, before)
    got = compressor.encode_rest(ops, vector.copy(), residual, state)
    same(got[0], coded)
    assert np.array_equal(got[2], rest)
    sent = [compressor.read(ops, part, QUANTIZED) for part in (payload, coded, payload)]
    assert np.array_equal(compressor.combine(ops, sent, 3, QUANTIZED), mean)
    total = sent[0].add_to(vector.copy(), 0.5)
    assert np.array_equal(total, compressor.read(REFERENCE, payload, QUANTIZED).add_to(vector.copy(), 0.5))
    for wrong in (payload[:-1], np.append(payload, np.uint8(0)), payload[:0]):
        with pytest.raises(ValueError, match="expected"):
            compressor.decode(ops, wrong, QUANTIZED)


@given(data=st.data())
def test_quantizers_check_what_they_are_given(data):
    size = data.draw(st.integers(0, 40))
    vector = np.ones(data.draw(st.sampled_from([size, size, 0, 1, 41])), np.float32)
    kind = data.draw(st.sampled_from(["levels", "natural", "dynamic", "bfloat", "sign", "other"]))
    numbers = st.integers(-3, 40)
    code = (kind, data.draw(numbers), 1.0, data.draw(numbers), data.draw(numbers), data.draw(st.integers(-1, 3)))
    groups = data.draw(st.one_of(numbers, st.lists(numbers, max_size=4)))
    scales = data.draw(st.sampled_from([None, "max", "l2", "l3", np.ones(2, np.float32), np.ones(1, np.float32)]))
    residual = data.draw(st.sampled_from([None, np.ones(size, np.float32)]))
    try:
        payload = module.quantize(vector, residual, data.draw(st.booleans()), code, groups, scales, (1, 2))
    except (TypeError, ValueError, RuntimeError):
        payload = np.zeros(data.draw(st.integers(0, 60)), np.uint8)
    with contextlib.suppress(TypeError, ValueError):
        total = data.draw(st.sampled_from([None, np.ones(size, np.float32)]))
        got = module.dequantize([payload], code, groups, size, 1.0, data.draw(st.booleans()), total)
        assert got.shape == (size,)


# --- products of low rank


@pytest.mark.parametrize("rank", [1, 2, 4, 7, 70])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (64, 576), (200, 17), (5, 3000)])
def test_products_of_low_rank(kernels, shape, rank):
    rng = np.random.default_rng(0)
    (n, m), size = shape, shape[0] * shape[1]
    vector = rng.standard_normal(3 * size + 5).astype(np.float32)
    offsets = [2, 2 * size + 3]
    matrices = [vector[at : at + size].reshape(shape).astype(np.float64) for at in offsets]
    left, right = (rng.standard_normal((2, rows, rank)).astype(np.float32) for rows in shape)
    scale = np.sqrt(n * m * rank)
    got = kernels.times(vector, offsets, shape, right.reshape(-1), rank).reshape(2, n, rank)
    assert np.allclose(got, np.stack(matrices) @ right, atol=1e-6 * scale)
    got = kernels.times_transposed(vector, offsets, shape, left.reshape(-1), rank).reshape(2, m, rank)
    assert np.allclose(got, np.stack(matrices).swapaxes(1, 2) @ left, atol=1e-6 * scale)
    plus = rng.standard_normal(vector.shape[0]).astype(np.float32)
    summed, whole = vector.copy(), vector + plus
    got = kernels.times(summed, offsets, shape, right.reshape(-1), rank, plus)
    assert np.array_equal(got, kernels.times(whole, offsets, shape, right.reshape(-1), rank))
    for at in offsets:
        assert np.array_equal(summed[at : at + size], whole[at : at + size])
    assert np.array_equal(summed[: offsets[0]], vector[: offsets[0]])
    rest, expected = summed.copy(), summed.copy()
    got = kernels.times_transposed(rest, offsets, shape, left.reshape(-1), rank, True)
    assert np.array_equal(got, kernels.times_transposed(summed, offsets, shape, left.reshape(-1), rank))
    kernels.add_product(expected, offsets, shape, left.reshape(-1), got, rank, -1.0)
    assert np.array_equal(rest, expected)
    total, expected = vector.copy(), vector.astype(np.float64)
    kernels.add_product(total, offsets, shape, left.reshape(-1), right.reshape(-1), rank, -0.5)
    for at, p, q in zip(offsets, left, right, strict=True):
        expected[at : at + size] -= 0.5 * (p.astype(np.float64) @ q.T).reshape(-1)
    assert np.allclose(total, expected, atol=1e-6 * scale)
    zeros, fresh = np.zeros_like(vector), np.full_like(vector, np.nan)
    kernels.add_product(zeros, offsets, shape, left.reshape(-1), right.reshape(-1), rank, 1.0)
    kernels.add_product(fresh, offsets, shape, left.reshape(-1), right.reshape(-1), rank, 1.0, True)
    for at in offsets:
        assert np.array_equal(fresh[at : at + size], zeros[at : at + size])
    assert np.isnan(fresh[: offsets[0]]).all()


def test_products_of_low_rank_check_what_they_are_given():
    x = np.zeros(20, np.float32)
    for offsets, shape, factor, rank in (
        ([0], (4, 6), 6, 1),
        ([1], (4, 5), 5, 1),
        ([-1], (4, 5), 5, 1),
        ([0], (4, 5), 4, 1),
        ([0, 0], (4, 5), 5, 1),
        ([0], (4, 5), 0, 0),
        ([0], (2**33, 2**33), 5, 1),
        ([0], (-4, -5), 5, 1),
        ([2**63 - 1], (4, 5), 5, 1),
    ):
        with pytest.raises(ValueError, match=r"must|fit"):
            module.times(x, offsets, shape, np.zeros(factor, np.float32), rank)
    with pytest.raises(ValueError, match="one length"):
        module.times(x, [0], (4, 5), np.zeros(5, np.float32), 1, x[:19])
    x.flags.writeable = False
    module.times(x, [0], (4, 5), np.zeros(5, np.float32), 1)
    with pytest.raises(ValueError, match="writable"):
        module.times(x, [0], (4, 5), np.zeros(5, np.float32), 1, np.zeros_like(x))
    with pytest.raises(ValueError, match="writable"):
        module.times_transposed(x, [0], (4, 5), np.zeros(4, np.float32), 1, True)


# --- selection


@functools.cache
def selections(size):
    """Return pairs of a vector and its selections: of given counts, and above thresholds."""
    counts = {1, max(1, size // 1000), max(1, size // 100), size // 3 or 1, size - 1 or 1, size, size + 1}
    with np.errstate(over="ignore"):
        thresholds = {t: np.float32(t) for t in (0.0, -1.0, 1e-42, 1.0, 2.5, 1e300, np.inf, np.nan)}
    return [
        (
            vector,
            {count: REFERENCE.top_k(vector, count) for count in counts},
            {t: np.flatnonzero(~(np.abs(vector) < least)) for t, least in thresholds.items()},
        )
        for vector in vectors(size)
    ]


@pytest.mark.parametrize("size", SIZES)
def test_top_k_and_above(kernels, size):
    for vector, largest, above in selections(size):
        for count, expected in largest.items():
            same(kernels.top_k(vector, count), expected)
        for threshold, expected in above.items():
            same(kernels.above(vector, threshold), expected)
    assert kernels.top_k(np.zeros(size, np.float32), 0).shape == (0,)


@pytest.mark.parametrize("size", SIZES)
def test_top_k_of_each_place(kernels, size):
    """Places may leave gaps, be empty, and come in any order; more than there are is all."""
    places = [slice(size // 2, size), slice(0, size // 3), slice(7, 7), slice(size // 3, size // 2), slice(0, size)]
    counts = [max(1, size // 50), 1, 3, size, 0]
    for vector in vectors(size):
        found = [kernels.top_k(vector[place], count) + place.start for place, count in zip(places, counts, strict=True)]
        same(kernels.top_k_each(vector, places, counts), np.concatenate(found))
    assert kernels.top_k_each(np.zeros(size, np.float32), [], []).shape == (0,)


@pytest.mark.parametrize("shown", [0.0, 1.5, 9.0])
@pytest.mark.parametrize("values", [2, 1 << 24])
def test_top_k_where_the_sample_misleads(kernels, shown, values):
    size, step = 1 << 18, 64  # 4096 elements are sampled, one of each 64
    vector = np.random.default_rng(0).integers(1, values + 1, size).astype(np.float32) / np.float32(values) * 3
    vector[[step * i + (random.mix(i) * step >> 32) for i in range(size // step)]] = shown
    for count in (3, 2600, 100_000):
        same(kernels.top_k(vector, count), REFERENCE.top_k(vector, count))


@pytest.mark.parametrize("size", SIZES)
def test_take_and_scatter(kernels, size):
    vector, other = (np.random.default_rng(seed).standard_normal(size).astype(np.float32) for seed in (0, 1))
    indices = subset(size, size - size // 3)
    values = kernels.take(vector, indices)
    same(values, vector[indices])
    got, wanted = other.copy(), other.copy()
    kernels.scatter_add(got, indices, values)
    wanted[indices] += values
    same(got, wanted)
    left = other.copy()
    same(kernels.take_out(left, indices), other[indices])
    same(left, np.where(np.isin(np.arange(size), indices), 0, other).astype(np.float32))
    kernels.scatter_zero(got, indices)
    wanted[indices] = 0
    same(got, wanted)


# --- random numbers


@pytest.mark.parametrize("count", [0, 1, 15, 2049, 200_001])
def test_random_words(kernels, count):
    same(kernels.uniform(count, STREAM.words()), REFERENCE.uniform(count, STREAM))


@pytest.mark.parametrize(
    ("count", "size"),
    [(0, 0), (0, 5), (1, 1), (2, 2), (5, 17), (200, 201), (1000, 1 << 40), (40_000, 70_001), (200_000, 20_000_003)],
)
def test_distinct(kernels, count, size):
    expected = random.distinct(count, size, STREAM) if count else np.zeros(0, np.int64)
    same(kernels.distinct(count, size, STREAM.words()), expected)


# --- bytes and bits


@pytest.mark.parametrize("size", [0, *SIZES])
def test_pack(kernels, size):
    words = random.bits(size, STREAM)
    for bits in range(31) if size < 5000 else (0, 1, 4, 8, 21, 30):
        for dtype in (np.uint8, np.int32, np.int64):
            numbers = words.astype(dtype)  # of any bits: those above `bits` must not matter
            packed = REFERENCE.pack(numbers, bits)
            same(kernels.pack(numbers, bits), packed)
            same(kernels.unpack(packed, bits, size), REFERENCE.unpack(packed, bits, size))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("part", [0, 0.001, 0.01, 0.2, 0.5, 0.9, 1])
def test_indices(kernels, size, part):
    indices = subset(size, int(part * size))
    packed = REFERENCE.bitmap(indices, size)
    same(kernels.bitmap(indices, size), packed)
    same(kernels.set_bits(packed, size), indices)
    padded = np.concatenate([packed, np.full(3, 255, np.uint8)])
    padded[size // 8] |= 0xFF << size % 8 & 0xFF  # bits past the size, to be ignored
    same(kernels.set_bits(padded, size), indices)
    code = encode_indices(REFERENCE, indices, size)
    same(kernels.encode_indices(indices, size), code)
    same(kernels.decode_indices(code, size, len(indices)), indices)


@given(size=st.integers(1, 3000), data=st.data())
def test_hostile_indices_are_refused_as_by_the_reference(kernels, size, data):
    count = data.draw(st.integers(1, size))
    payload = encode_indices(REFERENCE, subset(size, count), size).copy()
    for at, byte in data.draw(st.lists(st.tuples(st.integers(0, len(payload) - 1), st.integers(0, 255)), max_size=6)):
        payload[at] = byte
    if data.draw(st.booleans()):  # keep the number of bits, so that order and range are what is wrong
        payload = np.random.default_rng(size).permutation(payload)
    try:
        expected = decode_indices(REFERENCE, payload, size, count)
    except ValueError as refused:
        with pytest.raises(ValueError, match=re.escape(str(refused))):
            kernels.decode_indices(payload, size, count)
    else:
        same(kernels.decode_indices(payload, size, count), expected)


def test_disorder_anywhere_is_refused(kernels):
    size, count = 1_000_000, 120_000
    indices = subset(size, count)
    rng = np.random.default_rng(1)
    for at in (0, 1, 2047, 2048, 40_000, 60_000, 80_000, count - 1, *rng.integers(0, count, 3)):
        for wrong in (-1, size, -(2**63), 2**63 - 1, indices[at - 1]):
            broken = indices.copy()
            broken[at] = wrong
            for encode in (kernels.encode_indices, kernels.bitmap):
                with pytest.raises(ValueError, match="ascending"):
                    encode(broken, size)
            total = np.zeros(size, np.float32)
            with pytest.raises(ValueError, match="ascending"):
                kernels.scatter_add(total, broken, np.ones(count, np.float32))
            assert not total.any()
            ones = np.ones(size, np.float32)
            for change in (kernels.scatter_zero, kernels.take_out):
                with pytest.raises(ValueError, match="ascending"):
                    change(ones, broken)
                assert ones.all()
            if not 0 <= wrong < size:
                with pytest.raises(ValueError, match="range"):
                    kernels.take(total, broken)


# --- whole vectors


@pytest.mark.parametrize("size", SIZES)
def test_whole_vectors(kernels, size):
    for vector in vectors(size):
        with np.errstate(over="ignore", invalid="ignore"):
            assert kernels.all_finite(vector) == np.isfinite(vector).all()
            expected = vector[::-1] + vector
        total = vector[::-1].copy()
        kernels.add_(total, vector)
        finite = np.isfinite(expected)
        same(total[finite], expected[finite])
        assert not np.isfinite(total[~finite]).any()
        kernels.copy(total, vector)
        same(total, vector)
        other = vector[::-1].copy()
        with np.errstate(over="ignore", invalid="ignore"):
            expected = vector * np.float32(0.9) + other * np.float32(-2)
        numbers = ~np.isnan(expected)
        for out in (None, np.empty_like(vector), vector.copy(), other):
            got = kernels.affine(vector, 0.9, other, -2, out)
            same(got[numbers], expected[numbers])
            assert np.isnan(got[~numbers]).all()
            assert out is None or got is out
        for nesterov in (False, True):
            with np.errstate(over="ignore", invalid="ignore"):
                momentum = other * np.float32(0.9) + vector
                expected = total + (momentum * np.float32(0.9) + vector if nesterov else momentum)
            gradient = vector.copy()
            got = kernels.accumulate(other, 0.9, gradient, total, nesterov)
            np.testing.assert_array_equal(gradient, momentum)
            np.testing.assert_array_equal(got, expected)
    for at in (0, size // 2, size - 1):
        vector = np.ones(size, np.float32)
        vector[at] = -np.inf
        assert not kernels.all_finite(vector)
    same(kernels.zeros(size), np.zeros(size, np.float32))
    assert kernels.empty(size).shape == (size,)


@pytest.mark.parametrize("size", SIZES)
def test_halves(kernels, size):
    exponents = np.ldexp(np.float32(1), np.random.default_rng(1).integers(-27, 18, size))
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = [vector * exponents for vector in vectors(size)]
    for vector in (*vectors(size), *scaled):
        for residual in (None, np.roll(vector, 1)):
            with np.errstate(over="ignore", invalid="ignore"):
                whole = vector if residual is None else vector + residual
                half = whole.astype(np.float16)
                expected = whole - half.astype(np.float32)
            rest = vector.copy()
            got = kernels.half_rest(rest, residual).view(np.float16)
            numbers = ~np.isnan(whole)
            same(got[numbers], half[numbers])
            assert np.isnan(got[~numbers]).all()
            finite = np.isfinite(expected)
            same(rest[finite], expected[finite])
            assert not np.isfinite(rest[~finite]).any()
        with np.errstate(over="ignore"):
            half = vector.astype(np.float16)
        numbers = ~np.isnan(vector)
        same(kernels.to_half(vector).view(np.float16)[numbers], half[numbers])
        assert np.isnan(kernels.to_half(vector).view(np.float16)[~numbers]).all()


def test_every_half_as_a_float(kernels):
    halves = np.arange(1 << 16, dtype=np.uint16)
    expected, got = halves.view(np.float16).astype(np.float32), kernels.from_half(halves)
    numbers = ~np.isnan(expected)
    same(got[numbers], expected[numbers])
    assert np.isnan(got[~numbers]).all()
    same(kernels.from_half(halves[:13]), expected[:13])


def group_sum(vector, lengths):
    """The order of sums that `Kernels` promises."""
    sums = []
    for group in np.split(vector.astype(np.float64), np.cumsum(lengths)[:-1]):
        total = 0.0
        for begin in range(0, len(group), 4096):
            piece = group[begin : begin + 4096]
            rows = np.concatenate([piece, np.zeros(-len(piece) % 16)]).reshape(-1, 16)
            lanes = np.zeros(16)
            for row in rows:
                lanes += row
            while len(lanes) > 1:
                lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
            total += lanes[0]
        sums.append(total)
    return np.array(sums, np.float64)


@pytest.mark.parametrize(
    "lengths", [[5], [0], [0, 0, 3, 0], [4096, 4097, 1, 0, 4095], [1] * 1000, [100_000, 0, 7, 33, 90_000], [16] * 6000]
)
def test_groups(kernels, lengths):
    lengths = np.array(lengths, np.int64)
    vector = np.random.default_rng(0).standard_normal(lengths.sum()).astype(np.float32)
    plus = np.random.default_rng(1).standard_normal(lengths.sum()).astype(np.float32)
    for residual, total in ((None, vector), (plus, vector + plus)):
        groups = np.split(total, np.cumsum(lengths)[:-1])
        largest = np.array([np.abs(group).max(initial=0) for group in groups], np.float32)
        same(kernels.group_max_abs(vector, lengths, residual), largest)
        both = kernels.group_max_square(vector, lengths, residual)
        same(both[0], largest)
        same(both[1], group_sum(total.astype(np.float64) ** 2, lengths))
        up, down, count = kernels.group_sides(vector, lengths, residual).reshape(-1, 3).T
        assert np.allclose(up, [group[group >= 0].sum(dtype=np.float64) for group in groups])
        assert np.allclose(down, [group[group < 0].sum(dtype=np.float64) for group in groups])
        assert count.tolist() == [(group >= 0).sum() for group in groups]
    if len(vector):
        vector[-1] = np.nan
        assert np.isnan(kernels.group_max_abs(vector, lengths, None)).sum() == 1
        assert np.isnan(kernels.group_max_square(vector, lengths, None)[1]).sum() == 1


# --- count sketches


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [
        (1, 1, 1),
        (63, 3, 63),
        (5000, 5, 33),
        (200_003, 5, 40_000),
        (200_003, 7, 1111),
        (70_000, 15, 64),
        (100_001, 9, 100_001),
    ],
)
def test_sketches(kernels, size, rows, columns):
    reference, fast = NumpyOps(kernels=False), NumpyOps()
    for vector in (v for v in vectors(size) if np.isfinite(v).all() and np.abs(v).max() < 1e30):
        expected = CountSketch(size, rows, columns, 5, ops=reference).sketch(vector)
        got = CountSketch(size, rows, columns, 5, ops=fast).sketch(vector)
        assert np.array_equal(got.table, expected.table)
        estimates = expected.estimate()
        assert np.array_equal(got.estimate(), estimates)
        for count in (0, 1, size // 100, size // 2, size):
            same(got.heavy_hitters(count), REFERENCE.top_k(estimates, count) if count else np.arange(0))
        indices = subset(size, size // 3)
        parts = [CountSketch(size, rows, columns, 5, ops=ops) for ops in (reference, fast)]
        for part in parts:
            part.add_sparse(indices, vector[indices])
        assert np.array_equal(parts[0].table, parts[1].table)
        assert np.array_equal(got.estimate(indices), estimates[indices])
    got.add(np.full(size, np.nan, np.float32))
    assert np.isnan(got.estimate()).all()
    same(got.heavy_hitters(size // 2), np.arange(size // 2))


def test_sketches_check_what_they_are_given():
    size, rows, columns = 100, 3, 40
    sketch = CountSketch(size, rows, columns)
    table, (shifts, flips, signs) = sketch.table, sketch._hashing
    x, i = np.zeros(size, np.float32), np.arange(4)

    def refused(message, function, *args, table=table, size=size, rows=rows, hashing=sketch._hashing):
        with pytest.raises(ValueError, match=message):
            function(table, size, rows, hashing, *args)

    for wrong in (np.where(shifts == shifts[0], columns, shifts), np.where(shifts == shifts[0], -1, shifts)):
        refused("out of range", module.estimate, None, hashing=(wrong, flips, signs))
    refused("out of range", module.estimate, None, hashing=(shifts, flips + np.uint8(2), signs))
    for hashing in ((shifts[1:], flips, signs), (shifts, flips[1:], signs), (shifts, flips, signs[1:])):
        refused("do not fit", module.sketch, x, 0, hashing=hashing)
    for wrong in (0, 2, 17, -1):
        refused("rows must be odd", module.heavy, 1, rows=wrong)
    for wrong in (0, -1, 2**41):
        refused("size must be", module.heavy, 1, size=wrong)
    refused("do not fit", module.heavy, 1, size=200)
    refused("sums in each row", module.heavy, 1, table=table[1:])
    refused("2\\^40", module.heavy, -1)
    for offset in (-1, 1, 2**62):
        refused("lie in the size", module.sketch, x, offset)
    for wrong in (np.array([0, 1, 1, 2]), np.array([0, 1, 2, size]), np.array([-1, 0, 1, 2]), np.array([3, 2, 1, 0])):
        refused("ascending, distinct and in range", module.sketch_sparse, wrong, x[:4])
    refused("one length", module.sketch_sparse, i, x)
    for wrong in (np.array([-1]), np.array([size]), np.array([2**62])):
        refused("in range", module.estimate, wrong)
    frozen = table.copy()
    frozen.flags.writeable = False
    refused("writable", module.sketch, x, 0, table=frozen)


def test_inversion_checks_what_it_is_given():
    size, rows, columns = 100, 3, 40
    sketch = InvertibleSketch(size, rows, columns)
    multiples, owners = np.array([-5, 3], np.int32), np.array([2, 0])
    sound = {"table": sketch.table, "size": size, "rows": rows, "shifts": sketch._shifts}
    sound |= {"multiples": multiples, "owners": owners, "passes": 9}
    assert module.recover(**sound)[0].shape == (0,)
    for name, value, message in (
        ("table", sketch.table[1:], "sums in each row"),
        ("rows", 0, "rows must be in 1 to 15"),
        ("rows", 16, "rows must be in 1 to 15"),
        ("size", 0, "size must be"),
        ("size", 200, "do not fit"),
        ("shifts", sketch._shifts[1:], "do not fit"),
        ("shifts", np.full_like(sketch._shifts, columns), "shift is out of range"),
        ("shifts", np.full_like(sketch._shifts, -1), "shift is out of range"),
        ("owners", owners[1:], "one length"),
        ("owners", np.array([0, 3]), "owner is out of range"),
        ("owners", np.array([-1, 2]), "owner is out of range"),
        ("passes", -1, "passes must be"),
    ):
        with pytest.raises(ValueError, match=message):
            module.recover(**sound | {name: value})
    with pytest.raises(TypeError, match="table must be of dtype int32"):
        module.recover(**sound | {"table": sketch.table.astype(np.float32)})


# --- what is refused


def test_wrong_arguments_are_refused():
    x, i, b = np.zeros(10, np.float32), np.arange(4), np.zeros(9, np.uint8)
    unaligned = np.zeros(41, np.uint8)[1:].view(np.float32)
    frozen = np.zeros(10, np.float32)
    frozen.flags.writeable = False
    words = STREAM.words()
    for wrong in (x.astype(np.float64), x.astype(">f4"), x.view(np.int32)):
        with pytest.raises(TypeError, match="dtype float32"):
            module.top_k(wrong, 1)
    for wrong in (x[::2], x.reshape(2, 5), unaligned, np.zeros((), np.float32)):
        with pytest.raises(ValueError, match="one-dimensional, contiguous and aligned"):
            module.all_finite(wrong)
    for wrong in ([1.0, 2.0], None, "x"):
        with pytest.raises(TypeError):
            module.all_finite(wrong)
    with pytest.raises(TypeError, match="dtype int64"):
        module.take(x, i.astype(np.int32))
    with pytest.raises(TypeError, match="dtype int64"):
        module.pack(x, 3)
    refused = {
        "writable": [lambda: module.add_(frozen, x), lambda: module.scatter_add(frozen, i, x[:4])],
        "one length": [
            lambda: module.add_(x, x[1:]),
            lambda: module.copy(x, x[1:]),
            lambda: module.scatter_add(x, i, x),
            lambda: module.scatter_add(x, i, x),
        ],
        "2\\^40": [
            lambda: module.zeros(-1),
            lambda: module.uniform(2**41, words),
            lambda: module.top_k(x, -1),
            lambda: module.top_k_each(x, [slice(0, 1)], [-1]),
            lambda: module.unpack(b, 3, -8),
            lambda: module.unpack(b, 0, 2**62),
            lambda: module.set_bits(b, -1),
            lambda: module.decode_indices(b, 2**62, 1),
        ],
        "as many": [lambda: module.top_k_each(x, [slice(0, 1)], [])],
        "step 1": [lambda: module.top_k_each(x, [slice(0, 2, 2)], [1])],
        "bits must": [lambda: module.pack(i, 31), lambda: module.unpack(b, -1, 3)],
        "wrong length": [
            lambda: module.unpack(b, 8, 8),
            lambda: module.decode_indices(b, 100, 3),
            lambda: module.decode_indices(b, 0, 0),
        ],
        "too short": [lambda: module.set_bits(b, 73)],
        "count must": [
            lambda: module.decode_indices(b, 3, 4),
            lambda: module.decode_indices(b, 3, -1),
            lambda: module.encode_indices(i, 3),
            lambda: module.distinct(4, 3, words),
        ],
        "no code": [lambda: module.encode_indices(i[:1], 2**31)],
        "add up": [
            lambda: module.group_max_square(x, np.array([9]), None),
            lambda: module.group_sides(x, np.array([11, -1]), None),
            lambda: module.group_max_abs(x, np.array([2**62, 2**62, 2**63 - 1]), None),
            lambda: module.group_max_abs(x, i[:0], None),
        ],
        "threads": [lambda: module.set_threads(0)],
        "no such level": [lambda: module.set_simd("sse9")],
    }
    for message, calls in refused.items():
        for call in calls:
            with pytest.raises(ValueError, match=message):
                call()
    for stream in ((1,), (1, 2**32), (-1, 2), (0.5, 1)):
        with pytest.raises((TypeError, ValueError)):
            module.uniform(3, stream)


def test_operations_fall_back_for_arrays_that_fit_no_kernel():
    ops = NumpyOps()
    x = np.arange(20, dtype=np.float32)
    assert ops.top_k(x[::2], 2).tolist() == REFERENCE.top_k(x[::2].copy(), 2).tolist() == [8, 9]
    assert ops.take(x.astype(np.float64), np.arange(3)).dtype == np.float64
    assert ops.all_finite(x.astype(np.float64))
    same(ops.pack(np.arange(8, dtype=np.int16), 3), REFERENCE.pack(np.arange(8), 3))
    assert ops.scatter_add(x[::2], np.arange(2), x[:2])[1] == 3


# --- memory


def test_large_arrays_are_used_again_once_free_and_never_shared():
    size = 3_456_789
    arrays = [module.empty(size) for _ in range(12)]
    pointers = [array.ctypes.data for array in arrays]
    assert len(set(pointers)) == 12
    for number, array in enumerate(arrays):
        array.fill(number)
    for number, array in enumerate(arrays):
        assert (array == number).all()
    view = arrays[-1][5:]
    del array, arrays
    assert (view == 11).all()  # a view keeps the whole
    again = module.zeros(size)
    assert again.ctypes.data in pointers
    assert not again.any()
    assert (view == 11).all()


def test_a_forked_child_can_use_the_kernels():
    code = (
        "import os; from hvd_compress.native.cpu import _kernels as k; k.set_threads(2); k.zeros(10**6)\n"
        "child = os.fork()\n"
        "if child: print(os.waitpid(child, 0)[1])\n"
        "else: os._exit(int(k.all_finite(k.zeros(10**6))))"
    )
    assert run(code).stdout.strip() == str(1 << 8)


def test_several_threads_can_use_the_kernels():
    vector = np.random.default_rng(0).standard_normal(500_000).astype(np.float32)
    expected = REFERENCE.top_k(vector, 5000)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: module.top_k(vector, 5000), range(100)):
            same(got, expected)


# --- the module in the package


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )


def test_a_missing_extension_gives_one_warning_and_the_same_results():
    code = (
        "import sys; {} import numpy as np; from hvd_compress import Simulation, parse; "
        "from hvd_compress.ops.numpy import NumpyOps; NumpyOps(); "
        "x = np.random.default_rng(0).standard_normal(5000).astype(np.float32); "
        "print([Simulation(parse(s), 5000, 2).reduce([x, -x * x])[0].mean.tobytes() "
        "for s in ('topk', 'qsgd', 'randomk')])"
    )
    here = run(code.format(""))
    without = run(code.format("sys.modules['hvd_compress.native.cpu._kernels'] = None;"))
    assert here.stdout == without.stdout
    assert here.stderr == ""
    assert without.stderr.count("runs without its compiled kernels") == 1
    assert "HVD_COMPRESS_NATIVE=0" in without.stderr
    off = run(code.format(""), HVD_COMPRESS_NATIVE="0")
    assert (off.stdout, off.stderr) == (here.stdout, "")


def test_the_environment_chooses_the_level():
    code = "from hvd_compress import native; k = native.load(); print(k and k.simd())"
    for level in module.simd_levels():
        assert run(code, HVD_COMPRESS_SIMD=level).stdout.strip() == level
    wrong = run(code, HVD_COMPRESS_SIMD="sse9")
    assert wrong.stdout.strip() == "None"
    assert "HVD_COMPRESS_SIMD: no such level of SIMD on this processor: sse9" in wrong.stderr


def test_the_protocol_has_every_function_with_its_arguments():
    def documented(function):
        return [name for name in inspect.signature(function).parameters if name != "self"]

    def compiled(function):
        return re.findall(r"(\w+): ", function.__doc__.split(") ->")[0])

    protocol = {name: documented(f) for name, f in vars(Kernels).items() if not name.startswith("_")}
    functions = {name: compiled(getattr(module, name)) for name in dir(module) if not name.startswith("_")}
    assert protocol == functions


def test_kernels_on_tensors():
    torch = pytest.importorskip("torch")
    from hvd_compress.ops.torch import TorchOps

    kernels = TorchOps().kernels
    total = torch.zeros(5)
    assert kernels.scatter_add(total, torch.tensor([1, 3]), torch.ones(2)) is None
    assert total.tolist() == [0, 1, 0, 1, 0]
    indices = kernels.top_k(total, 2)
    assert indices.tolist() == [1, 3]
    assert indices.dtype == torch.int64
    assert kernels.uniform(3, STREAM.words()).tolist() == REFERENCE.uniform(3, STREAM).tolist()
    assert TorchOps(kernels=False).kernels is None


def test_packed_bytes_agree():
    for bits in range(31):
        for count in (0, 1, 8, 9, 1000):
            assert len(module.pack(np.zeros(count, np.int64), bits)) == packed_bytes(count, bits)
    for size in (1, 10, 999, 100_000):
        for count in {0, 1, size // 50, size // 2, size}:
            assert len(module.encode_indices(np.arange(count), size)) == index_bytes(size, count)


def test_small_numbers_are_numbers_where_a_thread_takes_them_for_zeros():
    code = (
        "import numpy as np, tensorflow as tf; from hvd_compress.native import default_floats\n"
        "half = lambda x: x * np.float32(0.5)\n"
        "def as_it_is(x): return half(x)\n"
        "def by_default(x):\n"
        "    with default_floats(): return half(x)\n"
        "for f in (as_it_is, by_default, as_it_is):\n"
        "    g = tf.function(lambda x: tf.numpy_function(f, [x], tf.float32))\n"
        "    print(np.asarray(g(tf.constant([1e-40]))).view(np.int32)[0] > 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "False"]
