"""FSDP2 with compressed means between its replicas."""

import time

import pytest
import torch
import torch.distributed as dist
from timelines import read, total
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch_training import RANK, RANKS

from hvd_compress.reduction.trace import trace_of
from hvd_compress.torch import fsdp

REPLICAS = 2


def sharded():
    """Two replicas, each on half of the ranks."""
    mesh = init_device_mesh("cpu", (REPLICAS, RANKS // REPLICAS), mesh_dim_names=("replicate", "shard"))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 10))
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh["shard"])
    return model, mesh["replicate"].get_group()


def train(model, steps, start=0):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(start, start + steps):
        optimizer.zero_grad()
        x = torch.randn(8, 40, generator=torch.Generator().manual_seed(100 * step + RANK))
        model(x).square().mean().backward()
        optimizer.step()
    weights = torch.cat([p.full_tensor().detach().reshape(-1) for p in model.parameters()])
    everyone = [torch.empty_like(weights) for _ in range(RANKS)]
    dist.all_gather(everyone, weights)
    assert all(torch.equal(everyone[0], other) for other in everyone)
    return weights


def test_none_is_a_plain_mean_over_the_replicas():
    model, group = sharded()

    def average(shard):
        dist.all_reduce(shard, group=group)
        shard.div_(REPLICAS)

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_all_reduce_hook(average)
    expected = train(model, 5)
    model, group = sharded()
    fsdp.register(model, "none", group)
    assert torch.equal(train(model, 5), expected)


@pytest.mark.parametrize("spec", ["topk(ratio=0.1)", "qsgd", "threshold(0.01)", "ef_signsgd"])
def test_the_replicas_stay_together_and_send_less(spec):
    model, group = sharded()
    compression = fsdp.register(model, spec, group)
    train(model, 5)
    stats = compression.compression_stats()
    assert stats["steps"] == 5
    assert stats["ratio"] > 2


def test_its_phases_add_up(tmp_path, monkeypatch):
    monkeypatch.setenv("HVD_COMPRESS_TIMELINE", str(tmp_path / "%r.json"))
    model, group = sharded()
    compression = fsdp.register(model, "topk(ratio=0.1)", group)
    began = time.perf_counter()
    train(model, 6)
    wall, phases = time.perf_counter() - began, compression.compression_stats(phases=True)["phases"]
    assert 0 < total(phases) <= wall
    assert phases["optimizer"] > 0
    assert phases["wire"]["in_backward"] == phases["wire"]["exposed"] > 0
    trace_of(RANK).write()
    lines = read(tmp_path / f"{RANK}.json")
    assert {exchange.line for exchange in compression.exchanges.values()} | {"fsdp: step"} == set(lines)
    assert all(set(lines[e.line]) == set(range(1, 7)) for e in compression.exchanges.values())


def test_a_run_resumes_exactly():
    model, group = sharded()
    compression = fsdp.register(model, "topk(ratio=0.1)", group)
    train(model, 4)
    saved, state = {k: v.clone() for k, v in model.state_dict().items()}, compression.state_dict()
    expected = train(model, 4, start=4)
    model, group = sharded()
    model.load_state_dict(saved)
    compression = fsdp.register(model, "topk(ratio=0.1)", group)
    compression.load_state_dict(state)
    assert torch.equal(train(model, 4, start=4), expected)


def test_a_state_that_comes_late_or_is_of_another_model():
    model, group = sharded()
    compression = fsdp.register(model, "topk(ratio=0.1)", group)
    with pytest.raises(ValueError, match=r"modules that are not sharded here: \['other'\]"):
        compression.load_state_dict({"other": {}})
    train(model, 1)
    with pytest.raises(RuntimeError, match="must be called before the first backward pass"):
        compression.load_state_dict(compression.state_dict())


def test_what_cannot_be_used():
    model, group = sharded()
    for spec in ("powersgd", "topk(ratio=0.1, scope=model)", "sketched_sgd"):
        with pytest.raises(ValueError, match="cannot be used with FSDP"):
            fsdp.register(model, spec, group)
    with pytest.raises(TypeError, match="no module of the model is sharded"):
        fsdp.register(nn.Linear(3, 3), "topk", group)
