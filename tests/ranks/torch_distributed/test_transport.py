"""Collectives over process groups give what simulated workers give, in one order whatever the ranks' delays."""

import random
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch_training import RANK, RANKS, batch, flat, sgd, small_cnn

import hvd_compress.torch as hvdc
from hvd_compress import AllGather, AllReduce, Exchange, Layout, Simulation, methods, parse
from hvd_compress.ops.torch import TorchOps
from hvd_compress.reduction.agreement import WorkersDisagree
from hvd_compress.transports.torch_distributed import ProcessGroupTransport

LAYOUT = Layout.of([("a", (30, 20)), ("b", (7,)), ("c", (16, 3, 3, 3))])
SPECS = [*methods(), "topk(ratio=0.1, values=fp16)", "topk(ratio=0.02, scope=model)", "qsgd(bits=3, norm=l2)"]


@pytest.mark.parametrize("spec", SPECS)
def test_real_ranks_give_what_simulated_ones_give(spec):
    compressor = parse(spec)
    simulation = Simulation(compressor, LAYOUT, RANKS, ops=TorchOps())
    exchange = Exchange(compressor, LAYOUT, TorchOps(), ProcessGroupTransport(), seed=0)
    handed = 0
    for step in range(3):
        vectors = [
            torch.from_numpy(np.random.default_rng([step, rank]).standard_normal(LAYOUT.size).astype(np.float32))
            for rank in range(RANKS)
        ]
        expected = simulation.reduce(vectors)[RANK].mean
        if compressor.varying:  # filled up to the longest, behind eight bytes
            handed += sum(8 + max(payload.nbytes for payload in payloads) for payloads in simulation.payloads)
        else:
            handed += sum(payloads[RANK].nbytes for payloads in simulation.payloads)
        tolerance = 2e-3 if spec == "fp16" else 1e-5
        assert torch.allclose(exchange.reduce(vectors[RANK]), expected, rtol=tolerance, atol=tolerance)
    counted = {kind: e["sent"] for kind, e in exchange.transport.traffic.collectives.items() if kind != "agreement"}
    assert sum(counted.values()) == handed


def test_collectives():
    transport = ProcessGroupTransport()

    def run(collective):
        return transport.wait(transport.start(collective, "x"))

    x = torch.arange(5.0) * (RANK + 1)
    total = sum(range(1, RANKS + 1))
    assert torch.equal(run(AllReduce(x, "sum")), torch.arange(5.0) * total)
    assert torch.allclose(run(AllReduce(x, "mean")), torch.arange(5.0) * total / RANKS)
    assert torch.equal(run(AllReduce(x, "max")), torch.arange(5.0) * RANKS)
    assert torch.equal(x, torch.arange(5.0) * (RANK + 1))
    for dtype in (torch.float16, torch.float64, torch.int32, torch.int64):
        assert run(AllReduce(torch.ones(3, dtype=dtype), "sum")).tolist() == [RANKS] * 3
    payload = torch.full((3,), RANK, dtype=torch.uint8)
    assert [part.tolist() for part in run(AllGather(payload))] == [[rank] * 3 for rank in range(RANKS)]
    varying = torch.full((RANK,), RANK, dtype=torch.uint8)
    assert [part.tolist() for part in run(AllGather(varying, varying=True))] == [[rank] * rank for rank in range(RANKS)]
    assert [len(part) for part in run(AllGather(varying[:0]))] == [0] * RANKS
    assert transport.gather_object({"rank": RANK}, "y") == [{"rank": rank} for rank in range(RANKS)]


def test_several_are_under_way():
    transport = ProcessGroupTransport()
    handles = [transport.start(AllReduce(torch.full((1000,), float(n))), str(n)) for n in range(20)]
    for n, handle in enumerate(handles):
        assert torch.equal(transport.wait(handle), torch.full((1000,), float(n)))
        assert transport.done(handle)


@pytest.mark.parametrize("spec", ["powersgd", "sketched_sgd(scope=tensor)", "threshold(0.001)", "topk(ratio=0.1)"])
def test_many_buckets_on_ranks_with_random_delays(spec):
    """Every rank begins the rounds of all buckets in one order, or a process group would mix them up."""
    torch.manual_seed(0)
    model = nn.Sequential(*[layer for _ in range(12) for layer in (nn.Linear(40, 40), nn.Tanh())])
    if "scope=tensor" in spec:
        spec = "sketched_sgd"
    optimizer = hvdc.DistributedOptimizer(
        sgd(model, spec), model.named_parameters(), spec, transport="torch.distributed", bucket_bytes=1, dense_below=0
    )
    delays = random.Random(RANK)
    for layer in model:
        layer.register_full_backward_hook(lambda *_: time.sleep(delays.choice([0, 0, 0.002, 0.01])))
    for step in range(10):
        optimizer.zero_grad()
        x = torch.randn(8, 40, generator=torch.Generator().manual_seed(100 * step + RANK))
        model(x).square().mean().backward()
        optimizer.step()
    weights = [torch.empty_like(flat(model)) for _ in range(RANKS)]
    dist.all_gather(weights, flat(model))
    assert all(torch.equal(weights[0], other) for other in weights)
    assert optimizer.compression_stats()["steps"] == 10


def test_workers_that_disagree():
    exchange = Exchange(parse("topk"), Layout.flat(10 + RANK), TorchOps(), ProcessGroupTransport())
    with pytest.raises(WorkersDisagree, match="parameters, number 1: rank 0: vector \\(10,\\)"):
        exchange.reduce(torch.ones(10 + RANK))


def test_a_part_of_the_processes():
    members = list(range(max(1, RANKS // 2)))
    half = dist.new_group(members)
    if RANK == 0:  # PyTorch counts its groups, and a worker in more of them than another must not wait for ever
        dist.new_group([0], use_local_synchronization=True)
    if RANK not in members:
        with pytest.raises(ValueError, match="not in the process group"):
            ProcessGroupTransport(half)
        return
    model = small_cnn()
    optimizer = hvdc.DistributedOptimizer(
        sgd(model), model.named_parameters(), "topk", transport=ProcessGroupTransport(half)
    )
    images, labels = batch(0)
    nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()
    assert (optimizer.compression_stats()["bytes_sent"] > 0) == (dist.get_world_size(half) > 1)


def test_an_unknown_transport():
    model = small_cnn()
    with pytest.raises(ValueError, match=r"transport must be 'torch.distributed' or .*; got 'nccl'"):
        hvdc.DistributedOptimizer(sgd(model), model.named_parameters(), transport="nccl")
