"""Where the time of a step goes under DDP: phases that add up, what overlaps, and the trace of every rank."""

import time

import pytest
import torch
from slow_training import NAP, SlowSGD, slow_model, step
from timelines import read, since, total
from torch.nn.parallel import DistributedDataParallel
from torch_training import RANK, RANKS, sgd, small_cnn, train

import hvd_compress.torch as hvdc
from hvd_compress.reduction.trace import trace_of
from hvd_compress.torch import ddp

STEPS = 5
SPECS = ["none", "topk(ratio=0.1)", "powersgd"]


@pytest.mark.parametrize("spec", SPECS)
def test_the_phases_add_up_and_what_overlaps_is_hidden(spec):
    model = DistributedDataParallel(slow_model(), bucket_cap_mb=0.001)
    compression = ddp.register(model, spec, bucket_bytes=1)
    optimizer = SlowSGD(model.parameters(), lr=0.1)
    for number in range(3):  # in which DDP and the hook find their buckets
        step(model, optimizer, number)
    earlier, began = compression.compression_stats(phases=True)["phases"], time.perf_counter()
    for number in range(STEPS):
        step(model, optimizer, number)
    wall = time.perf_counter() - began
    phases = since(compression.compression_stats(phases=True)["phases"], earlier)
    assert total(phases) == pytest.approx(wall, rel=0.1, abs=0.05)
    assert phases["computing"] >= 2 * NAP * STEPS
    assert phases["optimizer"] >= NAP * STEPS
    assert phases["wire"]["hidden"] >= NAP * STEPS  # the last layers' buckets are under way during the backward pass
    assert 0 < phases["encode"]["in_backward"] <= phases["encode"]["exposed"]


@pytest.mark.parametrize("spec", SPECS)
def test_each_rank_s_trace_has_all_buckets_and_rounds(spec, tmp_path, monkeypatch):
    monkeypatch.setenv("HVD_COMPRESS_TIMELINE", str(tmp_path / "%r.json"))
    model = DistributedDataParallel(small_cnn())
    compression = ddp.register(model, spec, bucket_bytes=1, dense_below=1)
    train(model, sgd(model), 5)
    trace_of(RANK).write()
    lines = read(tmp_path / f"{RANK}.json")
    exchanges = compression._reducer.exchanges
    assert sum(len(exchange.layout.parameters) for exchange in exchanges) == 6
    for exchange in exchanges:
        for number in (4, 5):
            wires = [event[1] for event in lines[exchange.line][number] if event[0] == "wire"]
            assert wires == [*range(len(exchange.compressor.collectives))]
            assert {"encode", "decode"} <= {event[0] for event in lines[exchange.line][number]}


def test_a_file_that_one_rank_cannot_write_is_an_error_on_all(monkeypatch):
    if RANK == RANKS - 1:
        monkeypatch.setenv("HVD_COMPRESS_TIMELINE", "/no/such/folder/%r.json")
    model = DistributedDataParallel(small_cnn())
    ddp.register(model, "topk(ratio=0.1)")
    said = f"rank {RANKS - 1} failed with OSError: HVD_COMPRESS_TIMELINE: /no/such/folder/{RANKS - 1}.json cannot be"
    with pytest.raises(hvdc.WorkerFailed, match=said):
        train(model, sgd(model), 1)
    monkeypatch.delenv("HVD_COMPRESS_TIMELINE", raising=False)
    model = DistributedDataParallel(small_cnn())
    ddp.register(model, "topk(ratio=0.1)")
    assert torch.isfinite(train(model, sgd(model), 2)).all()
