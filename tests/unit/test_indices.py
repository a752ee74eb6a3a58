"""The compact code of indices."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvd_compress.compressors.indices import decode_indices, encode_indices, index_bytes
from hvd_compress.ops.numpy import NumpyOps
from hvd_compress.ops.torch import TorchOps

every = pytest.mark.parametrize(
    "ops",
    [NumpyOps(kernels=False), NumpyOps(), TorchOps(kernels=False), TorchOps()],
    ids=lambda ops: ops.name + ("-kernels" if ops.kernels else ""),
)


@every
@given(size=st.integers(1, 2000), data=st.data())
def test_round_trip(ops, size, data):
    count = data.draw(st.integers(0, size))
    seed = data.draw(st.integers(0, 2**32 - 1))
    indices = np.sort(np.random.default_rng(seed).choice(size, count, replace=False)).astype(np.int64)
    payload = encode_indices(ops, ops.from_numpy(indices), size)
    assert payload.shape == (index_bytes(size, count),)
    assert np.array_equal(ops.to_numpy(decode_indices(ops, payload, size, count)), indices)


@every
@pytest.mark.parametrize("indices", [[0, 1, 2], [997, 998, 999], [0, 999], [999], [0]])
def test_extremes(ops, indices):
    payload = encode_indices(ops, ops.from_numpy(np.array(indices)), 1000)
    assert decode_indices(ops, payload, 1000, len(indices)).tolist() == indices


@given(size=st.integers(8, 10**8), data=st.data())
def test_size(size, data):
    count = data.draw(st.integers(1, size))
    bits = 8 * index_bytes(size, count)
    # Elias-Fano's bound with its two parts rounded up to eights of numbers, or the bitmap.
    assert bits <= min(count * (2 + math.log2(size / count)) + 8 * 32, size + 7)
    assert bits <= 32 * count + 8 * 32


def test_one_percent_of_25_million():
    assert 8 * index_bytes(25_000_000, 250_000) / 250_000 < 8.6  # bits an index; the entropy is 8.08


@every
@given(size=st.integers(1, 500), data=st.data())
def test_hostile_bytes(ops, size, data):
    count = data.draw(st.integers(1, size))
    length = index_bytes(size, count)
    payload = np.frombuffer(bytearray(data.draw(st.binary(min_size=length, max_size=length))), np.uint8)
    try:
        indices = ops.to_numpy(decode_indices(ops, ops.from_numpy(payload), size, count))
    except ValueError:
        return
    assert len(indices) == count
    assert (np.diff(indices) > 0).all()
    assert indices[0] >= 0
    assert indices[-1] < size
