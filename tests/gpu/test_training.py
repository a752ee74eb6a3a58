"""Training under DDP on a GPU: two processes over gloo share it, one uses NCCL."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from hvd_compress import Layout, Simulation, methods, parse
from hvd_compress.ops.torch import TorchOps
from hvd_compress.reduction.exchange import Exchange
from hvd_compress.transports.torch_distributed import ProcessGroupTransport

pytestmark = [pytest.mark.jobs, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]
LAYOUT = Layout.of([("a", (300, 200)), ("b", (70,)), ("c", (16, 3, 3, 3))])


def trained(*arguments: str) -> dict:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    program = str(Path(__file__).with_name("train_pair.py"))
    done = subprocess.run([*command, program, *arguments], capture_output=True, text=True, timeout=100, env=os.environ)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("spec", ["none", "topk(ratio=0.05)", "qsgd(bits=4)", "powersgd", "sketched_sgd(budget=0.2)"])
def test_two_processes_on_one_gpu(spec):
    result = trained(spec, "gloo")
    assert result["same"]
    assert result["steps"] == 60
    assert result["last"] < 0.9 * result["first"]


@pytest.mark.parametrize("spec", ["none", "topk(ratio=0.05)", "qsgd(bits=4)", "ef_signsgd"])
def test_a_gpu_and_a_cpu_together(spec):
    result = trained(spec, "gloo", "mixed")
    assert result["same"]


@pytest.fixture(scope="module")
def nccl():
    torch.cuda.set_device(0)
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", methods())
def test_every_method_over_nccl(name, nccl):
    """Of one process, for there is one GPU."""
    ops = TorchOps("cuda:0")
    exchange = Exchange(parse(name), LAYOUT, ops, ProcessGroupTransport(), name=name)
    simulation = Simulation(parse(name), LAYOUT, 1, ops=ops)
    generator = torch.Generator("cuda").manual_seed(1)
    for _ in range(3):
        vector = torch.randn(LAYOUT.size, device="cuda", generator=generator)
        expected = simulation.reduce([vector.clone()])[0].mean
        assert torch.equal(exchange.reduce(vector.clone()), expected)
