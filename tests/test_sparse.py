"""Sparse rows on the wire: what comes in is what was sent, or refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hvd_compress import Layout, State, parse
from hvd_compress.torch.sparse import RowOps, SparseRows

OPS = RowOps()
SHAPE = (6, 7, 3)
SPECS = ["none", "fp16", "qsgd(bits=8)", "topk(ratio=1, feedback=none)", "topk(ratio=1, values=fp16, feedback=none)"]


def rows_of(indices, seed=0):
    values = torch.randn(len(indices), SHAPE[2], generator=torch.Generator().manual_seed(seed))
    places = torch.tensor([[i // SHAPE[1], i % SHAPE[1]] for i in indices], dtype=torch.int64).reshape(-1, 2)
    return torch.sparse_coo_tensor(places.T, values, SHAPE, check_invariants=True).coalesce()


def exchange(spec, vectors, broken=None):
    """Do one step of some workers; `broken` replaces the payload of the last."""
    states = [State(Layout.of([("w", SHAPE)]), rank=rank, workers=len(vectors)) for rank in range(len(vectors))]
    workers = [SparseRows(parse(spec)).reduce(OPS, *both) for both in zip(vectors, states, strict=True)]
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
@given(sets=st.lists(st.sets(st.integers(0, 41)), min_size=1, max_size=4))
def test_every_worker_ends_up_with_the_mean(spec, sets):
    vectors = [rows_of(sorted(rows), seed) for seed, rows in enumerate(sets)]
    _, results = exchange(spec, vectors)
    expected = torch.stack([vector.to_dense() for vector in vectors]).mean(dim=0)
    for result in results:
        assert result.mean.is_coalesced()
        assert torch.equal(result.mean.to_dense(), results[0].mean.to_dense())
        tolerance = {"none": 1e-6, "qsgd(bits=8)": 0.05}.get(spec, 5e-3)
        assert torch.allclose(result.mean.to_dense(), expected, atol=tolerance)
        touched = sorted(set().union(*sets))
        assert (result.mean.indices()[0] * SHAPE[1] + result.mean.indices()[1]).tolist() == touched


@pytest.mark.parametrize("spec", SPECS)
@given(data=st.data())
def test_hostile_payloads_are_refused_or_decoded_within_bounds(spec, data):
    good = rows_of([1, 5, 40])
    [payload], _ = exchange(spec, [good])
    broken = payload.clone()
    for _ in range(data.draw(st.integers(0, 3))):
        broken[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    broken = broken[: data.draw(st.sampled_from([len(payload)] * 3 + [0, 7, 8, len(payload) - 1]))]
    if data.draw(st.integers(0, 4)) == 0:
        broken = torch.cat([broken, broken[:1]])
    try:
        _, [result, _] = exchange(spec, [good, good], broken)
    except ValueError:
        return
    assert len(broken) >= 8
    assert result.mean.shape == SHAPE
    assert result.mean.indices().numel() == 2 * result.mean._nnz()


@pytest.mark.parametrize("count", [-1, 43, 2**62, 2**63 - 1])
def test_numbers_of_rows_that_cannot_be(count):
    payload = torch.tensor([count]).view(torch.uint8)
    with pytest.raises(ValueError, match=f"8 bytes came in, for {count} of 42 rows"):
        exchange("none", [rows_of([]), rows_of([])], payload)


def test_embeddings_without_columns():
    vector = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.zeros(1, 0), (5, 0), check_invariants=True).coalesce()
    for spec in SPECS:
        state = State(Layout.of([("w", (5, 0))]))
        worker = SparseRows(parse(spec)).reduce(OPS, vector, state)
        payload = next(worker).payload
        with pytest.raises(StopIteration) as stopped:
            worker.send([payload])
        assert stopped.value.value.mean.shape == (5, 0)
