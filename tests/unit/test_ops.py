"""NumPy's, PyTorch's and TensorFlow's operations do the same, with kernels and without, and what they say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvd_compress.ops import packed_bytes, random
from hvd_compress.ops.by_kernel import by_kernel
from hvd_compress.ops.numpy import NumpyOps
from hvd_compress.ops.random import Stream, make_key
from hvd_compress.ops.tensorflow import TensorFlowOps
from hvd_compress.ops.torch import TorchOps

ALL = [NumpyOps(kernels=False), NumpyOps(), TorchOps(kernels=False), TorchOps(), TensorFlowOps()]
every = pytest.mark.parametrize("ops", ALL, ids=lambda ops: ops.name + ("-kernels" if ops.kernels else ""))
REFERENCE = ALL[0]


@every
@given(data=st.data(), bits=st.integers(0, 30), count=st.integers(0, 50))
def test_pack_and_unpack(ops, data, bits, count):
    numbers = np.array(data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count)), np.int64)
    packed = ops.pack(ops.from_numpy(numbers), bits)
    assert packed.shape == (packed_bytes(count, bits),)
    assert np.array_equal(ops.to_numpy(packed), REFERENCE.pack(numbers, bits))
    assert np.array_equal(ops.to_numpy(ops.unpack(packed, bits, count)), numbers)


@every
@given(size=st.integers(1, 300), data=st.data())
def test_bitmap(ops, size, data):
    indices = np.array(sorted(data.draw(st.sets(st.integers(0, size - 1)))), np.int64)
    packed = ops.bitmap(ops.from_numpy(indices), size)
    assert packed.shape == (packed_bytes(size, 1),)
    assert np.array_equal(ops.to_numpy(ops.set_bits(packed, size)), indices)


@every
@given(
    values=st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, np.nan, np.inf, -np.inf, 1e-40]), min_size=1),
    data=st.data(),
)
def test_top_k_with_ties_and_non_finite_values(ops, values, data):
    vector = np.array(values, np.float32)
    count = data.draw(st.integers(1, len(values)))
    magnitude = np.where(np.isnan(vector), np.inf, np.abs(vector))
    ranked = sorted(range(len(values)), key=lambda i: (not np.isnan(vector[i]), -magnitude[i], i))
    got = ops.to_numpy(ops.top_k(ops.from_numpy(vector), count))
    assert got.tolist() == sorted(ranked[:count])


@every
@given(
    values=st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, np.nan, np.inf, -np.inf, 1e-40]), min_size=1),
    threshold=st.sampled_from([0.0, 1e-40, 1.0, 2.5, 1e30, np.inf]),
)
def test_above(ops, values, threshold):
    got = ops.to_numpy(ops.above(ops.from_numpy(np.array(values, np.float32)), threshold))
    assert got.tolist() == [i for i, value in enumerate(values) if not abs(value) < np.float32(threshold)]


@every
@given(size=st.integers(1, 300), data=st.data())
def test_take_and_scatter_add(ops, size, data):
    indices = np.array(sorted(data.draw(st.sets(st.integers(0, size - 1)))), np.int64)
    vector = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    values = ops.take(ops.from_numpy(vector), ops.from_numpy(indices))
    assert np.array_equal(ops.to_numpy(values), vector[indices])
    expected = vector.copy()
    expected[indices] += vector[indices]
    got = ops.scatter_add(ops.from_numpy(vector.copy()), ops.from_numpy(indices), values)
    assert np.array_equal(ops.to_numpy(got), expected)


@every
@given(size=st.integers(1, 5000), data=st.data(), key=st.integers(0, 2**64 - 1), step=st.integers(0, 2**33))
def test_distinct(ops, size, data, key, step):
    count = data.draw(st.integers(1, size))
    indices = ops.to_numpy(ops.distinct(count, size, Stream(key, step)))
    assert len(indices) == count
    assert (np.diff(indices) > 0).all()
    assert indices[0] >= 0
    assert indices[-1] < size


def test_distinct_draws_each_index_and_each_pair_equally_often():
    draws = np.array([random.distinct(5, 20, Stream(make_key("a"), step)) for step in range(8000)])
    often = np.bincount(draws.reshape(-1), minlength=20)
    assert np.abs(often - 2000).max() < 5 * np.sqrt(2000 * 0.75)
    pairs = np.zeros((20, 20))
    for i in range(5):
        for j in range(i + 1, 5):
            np.add.at(pairs, (draws[:, i], draws[:, j]), 1)
    expected = 8000 * 10 / 190
    assert np.abs(pairs[np.triu_indices(20, 1)] - expected).max() < 5 * np.sqrt(expected)


@given(key=st.integers(0, 2**64 - 1), step=st.integers(0, 2**40))
def test_uniform_is_the_same_everywhere_and_in_range(key, step):
    draws = [ops.to_numpy(ops.uniform(1000, Stream(key, step))) for ops in ALL]
    for draw in draws[1:]:
        assert np.array_equal(draw, draws[0])
    assert draws[0].dtype == np.float32
    assert (draws[0] >= 0).all()
    assert (draws[0] < 1).all()


def test_uniform_is_uniform_and_streams_are_independent():
    n = 1 << 17
    a, b = (NumpyOps().uniform(n, Stream(make_key(0, "x", rank), 3)).astype(np.float64) for rank in range(2))
    c = NumpyOps().uniform(n, Stream(make_key(0, "x", 0), 4)).astype(np.float64)
    for draw in (a, b, c):
        counts = np.histogram(draw, bins=256, range=(0, 1))[0]
        chi2 = ((counts - n / 256) ** 2 / (n / 256)).sum()
        assert chi2 < 255 + 5 * np.sqrt(2 * 255)
    for one, other in ((a, b), (a, c), (a[1:], a[:-1])):
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(n)


@every
def test_scalar_and_vectorized_mixing_agree(ops):
    stream = Stream(make_key("mix"), 12345678901)
    first, second = stream.words()
    expected = [random.mix(random.mix(i + first & random.MASK) ^ second) >> 8 for i in range(100)]
    assert np.array_equal(ops.to_numpy(ops.uniform(100, stream)) * 2**24, expected)


@every
def test_bytes(ops):
    for dtype in ("float32", "float16", "int64", "uint8"):
        array = np.arange(7).astype(dtype)
        data = ops.to_bytes(ops.from_numpy(array))
        assert ops.to_numpy(data).tobytes() == array.tobytes()
        shifted = ops.concat([ops.from_numpy(np.zeros(1, np.uint8)), data])
        assert np.array_equal(ops.to_numpy(ops.from_bytes(shifted[1:], dtype)), array)


@every
def test_finiteness(ops):
    huge = ops.from_numpy(np.full(100, 3e38, np.float32))
    assert ops.all_finite(huge)
    assert ops.poison(huge)[0] is huge
    for bad in (np.nan, np.inf):
        vector = ops.from_numpy(np.array([1, bad, 2], np.float32))
        assert not ops.all_finite(vector)
        assert np.isnan(ops.to_numpy(ops.poison(vector)[0])).all()
        assert bool(ops.poison(vector)[1])


@every
def test_orthogonalize(ops):
    matrix = ops.from_numpy(np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32))
    q = ops.to_numpy(ops.orthogonalize(matrix))
    assert np.allclose(q.T @ q, np.eye(4), atol=1e-5)
    m = ops.to_numpy(matrix)
    assert np.allclose(q @ (q.T @ m), m, atol=1e-5)
    assert np.isnan(ops.to_numpy(ops.orthogonalize(matrix * np.nan))).all()
    assert np.isfinite(ops.to_numpy(ops.orthogonalize(matrix * 0))).all()


@every
@pytest.mark.parametrize("offset", range(9))
def test_from_bytes_of_any_place_in_a_payload(ops, offset):
    payload = np.arange(40, dtype=np.uint8)
    values = ops.from_bytes(ops.from_numpy(payload)[offset : offset + 16], "float32")
    assert np.array_equal(ops.to_numpy(values), np.frombuffer(payload.tobytes(), np.float32, 4, offset))
    indices = ops.from_numpy(np.array([0, 2, 3, 7]))
    assert ops.to_numpy(ops.scatter(8, [(indices, values)], 1.0))[7] == ops.to_numpy(values)[3]


@every
def test_row_sum_and_nonzero(ops):
    rows = np.array([[2.0**40, 1.0, -(2.0**40)], [0.5, 0.25, 0.0]], np.float32)
    assert ops.to_numpy(ops.row_sum(ops.from_numpy(rows))).tolist() == [1.0, 0.75]
    large = np.array([[2**53, 1]])
    assert ops.to_numpy(ops.row_sum(ops.from_numpy(large))).tolist() == [2**53 + 1]
    assert ops.to_numpy(ops.nonzero(ops.from_numpy(rows.reshape(-1)) > 0.25)).tolist() == [0, 1, 3]


def test_a_kernel_does_what_fits_it_and_the_body_all_else():
    pytest.importorskip("hvd_compress.native.cpu._kernels", reason="the kernels are not built")

    @by_kernel(vector="float32")
    def all_finite(ops, vector):
        return "body"

    x = np.ones(20, np.float32)
    for ops in (NumpyOps(), TorchOps()):
        assert all_finite(ops, ops.from_numpy(x)) is True
        for other in (x.astype(np.float64), x[::2], x.reshape(4, 5)):
            assert all_finite(ops, ops.from_numpy(other)) == "body"
    assert all_finite(NumpyOps(kernels=False), x) == "body"
    assert NumpyOps.top_k.__wrapped__(NumpyOps(), x, 3).tolist() == [0, 1, 2]  # declared in `Ops`, overridden here
