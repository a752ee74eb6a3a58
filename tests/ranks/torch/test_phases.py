"""Where the time of a step goes on real ranks: phases that add up, what overlaps, and the trace of every rank."""

import time

import horovod.torch as hvd
import pytest
import torch
from slow_training import NAP, Slow, SlowSGD, slow_model, step
from timelines import read, since, total
from torch import nn
from torch_ranks import same_on_all_ranks, sgd, small_cnn, train

import hvd_compress.torch as hvdc
from hvd_compress.advice.traced import traced
from hvd_compress.reduction.trace import trace_of

STEPS = 5
SPECS = ["none", "topk(ratio=0.1)", "powersgd"]


@pytest.mark.parametrize("spec", SPECS)
def test_the_phases_add_up_and_what_overlaps_is_hidden(spec):
    model = slow_model()
    optimizer = hvdc.DistributedOptimizer(
        SlowSGD(model.parameters(), lr=0.1), model.named_parameters(), spec, bucket_bytes=1
    )
    for number in range(2):  # the first of them plans
        step(model, optimizer, number)
    earlier, began = optimizer.compression_stats(phases=True), time.perf_counter()
    for number in range(STEPS):
        step(model, optimizer, number)
    wall, stats = time.perf_counter() - began, optimizer.compression_stats(phases=True)
    phases = since(stats["phases"], earlier["phases"])
    assert total(phases) == pytest.approx(wall, rel=0.1, abs=0.05)
    assert phases["seconds"] == pytest.approx(total(phases))
    assert phases["computing"] >= 2 * NAP * STEPS
    assert phases["optimizer"] >= NAP * STEPS
    assert phases["wire"]["hidden"] >= NAP * STEPS  # the last layers' buckets are under way during the backward pass
    for part in ("copy", "encode", "start"):
        assert 0 < phases[part]["in_backward"] <= phases[part]["exposed"]
    seconds = stats["compression_seconds"] - earlier["compression_seconds"]
    assert seconds == pytest.approx(phases["encode"]["exposed"] + phases["decode"]["exposed"])
    assert stats["communication_seconds"] == stats["phases"]["wire"]["exposed"]


def test_a_rank_that_comes_late_is_waited_for():
    model = slow_model()
    optimizer = hvdc.DistributedOptimizer(sgd(model), model.named_parameters())
    for number in range(4):
        if hvd.rank() == hvd.size() - 1:
            time.sleep(10 * NAP)
        step(model, optimizer, number)
    phases = optimizer.compression_stats(phases=True)["phases"]
    if hvd.rank() < hvd.size() - 1:
        assert phases["wire"]["exposed"] >= 3 * NAP  # of the three after the agreement, a part overlaps
    else:
        assert phases["computing"] >= 30 * NAP


def test_a_closure_s_passes_are_computing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 8), Slow())
    optimizer = hvdc.DistributedOptimizer(
        torch.optim.LBFGS(model.parameters(), max_iter=3), model.named_parameters(), "none"
    )
    images = torch.randn(8, 64)

    def closure():
        optimizer.zero_grad()
        loss = model(images).square().mean()
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    phases = optimizer.compression_stats(phases=True)["phases"]
    assert loss > 0
    assert phases["computing"] >= NAP
    assert phases["optimizer"] > 0


@pytest.mark.parametrize("spec", SPECS)
def test_each_rank_s_trace_has_all_buckets_and_rounds(spec, tmp_path, monkeypatch):
    monkeypatch.setenv("HVD_COMPRESS_TIMELINE", str(tmp_path / "%r.json"))
    model = small_cnn()
    optimizer = hvdc.DistributedOptimizer(sgd(model), model.named_parameters(), spec, bucket_bytes=1, dense_below=1)
    train(model, optimizer, 4)
    trace_of(hvd.rank()).write()
    lines = read(tmp_path / f"{hvd.rank()}.json")
    for exchange in optimizer._reducer.exchanges:
        assert exchange.line.split(": ")[0] == exchange.name
        for number in range(2, 5):
            names = [" ".join(map(str, event)) for event in lines[exchange.line][number]]
            assert [name for name in names if name.startswith("wire")] == rounds_of(exchange)
            assert names[:2] == ["encode", "start"]
            assert names[-1] == "decode"
    assert len(optimizer._reducer.exchanges) > 3
    gradients, computing = traced(tmp_path / f"{hvd.rank()}.json")
    assert {g.name: g.shape for g in gradients} == {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert min(computing.forward, computing.backward, computing.optimizer) > 0
    for number in range(2, 5):
        names = [name for (name,) in lines[f"{optimizer._reducer.prefix}: step"][number]]
        assert {"computing", "copy", "encode", "wire", "decode", "optimizer", "other"} <= set(names)
        assert names[-1] == "optimizer"


def rounds_of(exchange):
    return [f"wire {number}" for number in range(len(exchange.compressor.collectives))]


def test_nothing_is_traced_unless_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.delenv("HVD_COMPRESS_TIMELINE", raising=False)
    monkeypatch.chdir(tmp_path)
    model = small_cnn()
    optimizer = hvdc.DistributedOptimizer(sgd(model), model.named_parameters(), "topk(ratio=0.1)")
    train(model, optimizer, 3)
    assert optimizer._reducer.phases._trace is None
    assert not list(tmp_path.iterdir())
    assert "phases" not in optimizer.compression_stats()


def test_a_file_that_one_rank_cannot_write_is_an_error_on_all(monkeypatch):
    last = hvd.size() - 1
    if hvd.rank() == last:
        monkeypatch.setenv("HVD_COMPRESS_TIMELINE", "/no/such/folder/%r.json")
    model = small_cnn()
    optimizer = hvdc.DistributedOptimizer(sgd(model), model.named_parameters())
    said = f"rank {last} failed with OSError: HVD_COMPRESS_TIMELINE: /no/such/folder/{last}.json cannot be written"
    for _ in range(2):
        with pytest.raises(hvdc.WorkerFailed, match=said):
            train(model, optimizer, 1)
        optimizer.zero_grad()
    monkeypatch.delenv("HVD_COMPRESS_TIMELINE", raising=False)
    assert same_on_all_ranks(train(model, optimizer, 3))


def test_horovod_s_own_optimizer_has_phases_as_well(tmp_path, monkeypatch):
    monkeypatch.setenv("HVD_COMPRESS_TIMELINE", str(tmp_path / "%r.json"))
    model = small_cnn()
    bound = hvdc.Compression.topk(ratio=0.1).bind(model.named_parameters())
    optimizer = hvd.DistributedOptimizer(sgd(model), model.named_parameters(), compression=bound)
    train(model, optimizer, 2)
    earlier, began = bound.compression_stats(phases=True)["phases"], time.perf_counter()
    train(model, optimizer, 3)
    wall, report = time.perf_counter() - began, bound.compression_stats(phases=True)["phases"]
    phases = since(report, earlier)
    assert total(phases) == pytest.approx(wall, rel=0.1, abs=0.05)
    assert phases["optimizer"] > 0
    trace_of(hvd.rank()).write()
    lines = read(tmp_path / f"{hvd.rank()}.json")
    assert {exchange.line for exchange in bound.exchanges} <= set(lines)
