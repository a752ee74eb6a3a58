"""Gradients and models as bytes: what is sent is what is meant, on average, and what is not sound is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvd_compress import Layout, methods, parse
from hvd_compress.parameter_server.codecs import (
    Changes,
    Codec,
    DifferenceModel,
    FloatModel,
    Floats,
    GridModel,
    one_payload,
    vector_bytes,
)
from hvd_compress.parameter_server.runtime.messages import Malformed
from hvd_compress.parameter_server.runtime.roles import shards

D = 300
LAYOUT = Layout.of([("weights", (29, 10)), ("bias", (10,))])
UPLINKS = {
    "full-precision": Floats(),
    **{f"{bits} bits": parse(f"low_precision(bits={bits})") for bits in (2, 3, 4, 8, 12)},
    **{f"sparse, {bits} bits": parse(f"wangni(ratio=0.1, values=low_precision(bits={bits}))") for bits in (2, 8)},
    "qsgd": parse("qsgd(bits=3)"),
}


def vector(seed=0, zeros=0.0, size=D):
    random = np.random.default_rng(seed)
    x = random.standard_normal(size) * np.exp(random.standard_normal(size))
    return (x * (random.random(size) >= zeros)).astype(np.float32)


def decoded(codec, payload):
    total = np.zeros(codec.layout.size, np.float32)
    codec.decode(payload).add_to(total, 1.0)
    return total


@pytest.mark.parametrize("layout", [LAYOUT, Layout.flat(D)], ids=["tensors", "flat"])
@pytest.mark.parametrize("zeros", [0.0, 0.97])
@pytest.mark.parametrize("name", UPLINKS)
def test_every_uplink_is_unbiased(name, zeros, layout):
    v, codec, times = vector(zeros=zeros), Codec(UPLINKS[name], layout, (1,)), 3000
    sent = np.stack([decoded(codec, codec.encode(v)) for _ in range(times)]).astype(np.float64)
    error, magnitude = np.abs(sent.mean(axis=0) - v), np.abs(v).astype(np.float64)
    rare = np.sqrt(magnitude * max(magnitude.max(), magnitude.sum() / 30))  # at most, for what is seldom sent at all
    assert (error <= 6 * np.maximum(sent.std(axis=0), rare) / np.sqrt(times)).all()
    assert abs(error.mean()) < 0.2 * magnitude.mean()
    assert not sent[:, v == 0].any()


def test_zeros_cost_next_to_nothing_and_change_nothing():
    v = vector(zeros=0.97)
    for compressor in (Floats(), parse("low_precision(bits=8)")):
        codec = Codec(compressor, Layout.flat(D), (1,))
        payload = codec.encode(v)
        assert payload.nbytes < compressor.payload_bits(codec.layout) / 8 / 4
        assert np.abs(decoded(codec, payload) - v).max() <= np.abs(v).max() / 127


@pytest.mark.parametrize("name", UPLINKS)
@given(payload=st.binary(max_size=400))
def test_hostile_payloads_are_refused_or_finite(name, payload):
    codec = Codec(UPLINKS[name], LAYOUT)
    total = np.zeros(D, np.float32)
    try:
        codec.decode(np.frombuffer(payload, np.uint8)).add_to(total, 1.0)
    except Malformed:
        assert not total.any()
    assert np.isfinite(total).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", UPLINKS)
def test_what_is_not_finite_is_refused(name, value):
    codec, v = Codec(UPLINKS[name], Layout.flat(D)), vector()
    v[7] = value
    with pytest.raises(Malformed):
        codec.decode(codec.encode(v))


def test_what_needs_several_rounds_is_refused():
    refused = set()
    for name in methods():
        try:
            Codec(parse(name).bare, LAYOUT)
        except ValueError as error:
            assert "cannot be sent to a server" in str(error)  # noqa: PT017
            refused.add(name)
    assert refused >= {"powersgd", "sketched_sgd", "fetchsgd"}
    assert not refused & {"none", "topk", "qsgd", "onebit", "dgc", "low_precision"}


@pytest.mark.parametrize("mu", [1e-1, 1e-3])
@pytest.mark.parametrize("distance", [1.0, 1e-3])
def test_the_grid_has_the_fewest_bits_that_meet_the_precision_condition(mu, distance):
    snapshot = vector()
    x = snapshot + np.float32(distance) * vector(1)
    model = GridModel(LAYOUT, mu, (1,))
    payloads = [model.encode(x, snapshot) for _ in range(200)]
    (bits,) = model.used
    errors = [np.square(model.decode(p, snapshot).astype(np.float64) - x).sum() for p in payloads]
    allowed = mu * np.square((x - snapshot).astype(np.float64)).sum()
    assert np.mean(errors) <= 1.1 * allowed
    assert model._error(x, bits - 1) > allowed
    mean = np.mean([model.decode(p, snapshot) for p in payloads], axis=0)
    assert np.abs(mean - x).max() < 6 * np.sqrt(max(errors) / 200)


def test_the_grid_sends_floats_where_the_model_is_the_snapshot():
    x, model = vector(), GridModel(LAYOUT, 0.1)
    assert np.array_equal(model.decode(model.encode(x, x), x), x)
    assert model.used == {32: 1}


@pytest.mark.parametrize("bits", [3, 8])
def test_a_difference_errs_by_a_part_of_itself(bits):
    snapshot, step = vector(), vector(1)
    model = DifferenceModel(Codec(parse(f"low_precision(bits={bits})"), LAYOUT, (1,)))
    for distance in (1.0, 1e-2, 1e-4):
        x = snapshot + np.float32(distance) * step
        error = np.linalg.norm(model.decode(model.encode(x, snapshot), snapshot) - x)
        assert 0 < error < 20 / 2**bits * np.linalg.norm(x - snapshot)


@pytest.mark.parametrize("model", [GridModel(LAYOUT, 0.1), FloatModel()], ids=["grid", "floats"])
@given(payload=st.binary(max_size=400))
def test_hostile_models_are_refused_or_finite(model, payload):
    try:
        x = model.decode(np.frombuffer(payload, np.uint8), np.zeros(D, np.float32))
    except Malformed:
        return
    assert np.isfinite(x).all()


LONGEST = [
    "topk(ratio=1)",
    "topk(ratio=1, values=qsgd(block=1))",
    "qsgd(block=1)",
    "low_precision(bits=12)",
    "wangni(ratio=1)",
    "randomk(ratio=1)",
]


@pytest.mark.parametrize("size", [1, 7, D])
def test_no_payload_is_longer_than_a_vector_may_be(size):
    v, layout = vector(size=size), Layout.of([(f"p{i}", (1,)) for i in range(size)])
    for spec in [*sorted(set(methods()) - {"powersgd", "sketched_sgd", "fetchsgd"}), *LONGEST]:
        codec = Codec(one_payload(parse(spec)).bare, layout)
        assert codec.encode(v).nbytes <= vector_bytes(size), spec
    for indices in (np.arange(size), np.arange(size - 1)):
        assert Changes(size).encode(v, indices).nbytes <= vector_bytes(size)
    assert GridModel(layout, 0.1, ()).encode(v, 0 * v).nbytes <= vector_bytes(size)


def test_a_shard_that_fits_no_message_is_refused():
    with pytest.raises(ValueError, match="servers must be at least 2 for a model of 600000000 coordinates; got 1"):
        shards(Layout.flat(600_000_000), 1)
    assert len(shards(Layout.flat(600_000_000), 2)) == 2
