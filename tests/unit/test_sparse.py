"""Sparse rows on the wire: the same in all frameworks, and what comes in is what was sent, or refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvd_compress import Layout, State, methods, parse
from hvd_compress.ops.numpy import NumpyOps
from hvd_compress.ops.tensorflow import TensorFlowOps
from hvd_compress.ops.torch import TorchOps
from hvd_compress.reduction.rows import Rows, SparseRows

HEIGHT, WIDTH = 42, 3
SPECS = ["none", "fp16", "qsgd(bits=8)", "topk(ratio=1, feedback=none)", "topk(ratio=1, values=fp16, feedback=none)"]
FRAMEWORKS = [NumpyOps(), NumpyOps(kernels=False), TorchOps(), TorchOps(kernels=False), TensorFlowOps()]
REFERENCE = FRAMEWORKS[0]


def rows_of(indices, seed=0, ops=REFERENCE, height=HEIGHT, width=WIDTH):
    values = np.random.default_rng(seed).standard_normal((len(indices), width)).astype(np.float32)
    return Rows(ops.from_numpy(np.array(indices, np.int64)), ops.from_numpy(values), height)


def dense(rows, ops=REFERENCE):
    matrix = np.zeros((rows.height, rows.values.shape[1]), np.float32)
    np.add.at(matrix, ops.to_numpy(rows.indices), ops.to_numpy(rows.values))
    return matrix


def fresh(workers, height=HEIGHT, width=WIDTH):
    return [State(Layout.of([("w", (height, width))]), rank=rank, workers=workers) for rank in range(workers)]


def exchange(spec, vectors, ops=REFERENCE, broken=None, states=None):
    """Do one step of some workers; `broken` replaces the payload of the last."""
    states = states or fresh(len(vectors))
    workers = [SparseRows(parse(spec)).reduce(ops, *both) for both in zip(vectors, states, strict=True)]
    payloads = [next(worker).payload for worker in workers]
    if broken is not None:
        payloads[-1] = broken
    results = []
    for worker in workers:
        with pytest.raises(StopIteration) as stopped:
            worker.send(payloads)
        results.append(stopped.value.value)
    return payloads, results


@pytest.mark.parametrize("spec", SPECS)
@given(sets=st.lists(st.sets(st.integers(0, HEIGHT - 1)), min_size=1, max_size=4))
def test_every_worker_ends_up_with_the_mean(spec, sets):
    vectors = [rows_of(sorted(rows), seed) for seed, rows in enumerate(sets)]
    _, results = exchange(spec, vectors)
    expected = np.mean([dense(vector) for vector in vectors], axis=0)
    for result in results:
        assert np.array_equal(dense(result.mean), dense(results[0].mean))
        tolerance = {"none": 1e-6, "qsgd(bits=8)": 0.05}.get(spec, 5e-3)
        assert np.allclose(dense(result.mean), expected, atol=tolerance)
        assert result.mean.indices.tolist() == sorted(set().union(*sets))


@pytest.mark.parametrize("ops", FRAMEWORKS, ids=lambda ops: ops.name + ("-kernels" if ops.kernels else ""))
@pytest.mark.parametrize("spec", [*methods(), "qsgd(bits=3, feedback=ef)", "topk(ratio=0.3, values=fp16)"])
def test_all_frameworks_send_and_keep_the_same(spec, ops):
    states, expected_states = fresh(2), fresh(2)
    for step, indices in enumerate(([5, 1, 5, 40], [7, 40, 1], [])):
        sides = []
        for this, kept in ((ops, states), (REFERENCE, expected_states)):
            vectors = [rows_of([*indices, rank], [step, rank], this) for rank in range(2)]
            payloads, results = exchange(spec, vectors, this, states=kept)
            for state in kept:
                state.commit()
            mean = results[0].mean
            arrays = [mean.indices, mean.values, *(s.local[name] for s in kept for name in sorted(s.local))]
            sides.append([this.to_numpy(p).tobytes() for p in payloads] + [this.to_numpy(a) for a in arrays])
        for got, expected in zip(*sides, strict=True):
            assert np.array_equal(got, expected) if isinstance(got, np.ndarray) else got == expected


@pytest.mark.parametrize("spec", SPECS)
@given(data=st.data())
def test_hostile_payloads_are_refused_or_decoded_within_bounds(spec, data):
    good = rows_of([1, 5, 40])
    [payload], _ = exchange(spec, [good])
    broken = payload.copy()
    for _ in range(data.draw(st.integers(0, 3))):
        broken[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    broken = broken[: data.draw(st.sampled_from([len(payload)] * 3 + [0, 7, 8, len(payload) - 1]))]
    if data.draw(st.integers(0, 4)) == 0:
        broken = np.concatenate([broken, broken[:1]])
    try:
        _, [result, _] = exchange(spec, [good, good], broken=broken)
    except ValueError:
        return
    assert len(broken) >= 8
    assert result.mean.values.shape == (len(result.mean.indices), WIDTH)
    assert ((result.mean.indices >= 0) & (result.mean.indices < HEIGHT)).all()


@pytest.mark.parametrize("count", [-1, HEIGHT + 1, 2**62, 2**63 - 1])
def test_numbers_of_rows_that_cannot_be(count):
    payload = np.array([count]).view(np.uint8)
    with pytest.raises(ValueError, match=f"8 bytes came in, for {count} of {HEIGHT} rows"):
        exchange("none", [rows_of([]), rows_of([])], broken=payload)


@pytest.mark.parametrize("ops", FRAMEWORKS, ids=lambda ops: ops.name + ("-kernels" if ops.kernels else ""))
@pytest.mark.parametrize("indices", [[-1, 3], [3, HEIGHT]])
def test_rows_that_there_are_not(indices, ops):
    message = rf"must be in \[0, {HEIGHT}\); got {indices[0]} to {indices[1]}"
    with pytest.raises(ValueError, match=message):
        next(SparseRows(parse("topk")).reduce(ops, rows_of(indices, 0, ops), fresh(1)[0]))


@pytest.mark.parametrize("ops", FRAMEWORKS, ids=lambda ops: ops.name + ("-kernels" if ops.kernels else ""))
def test_embeddings_without_columns(ops):
    vectors = [rows_of([1, 3], 0, ops, height=5, width=0)]
    for spec in [*SPECS, "topk(ratio=0.5)"]:
        states = fresh(1, 5, 0)
        for _ in range(2):
            _, [result] = exchange(spec, vectors, ops, states=states)
            states[0].commit()
            assert tuple(result.mean.values.shape)[1:] == (0,)
