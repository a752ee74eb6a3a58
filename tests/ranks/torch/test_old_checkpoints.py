"""Checkpoints that were written before the reduction core was one: they resume bit for bit."""

from pathlib import Path

import horovod.torch as hvd
import pytest
import torch
from torch_training import RANKS

import hvd_compress.torch as hvdc
from hvd_compress import parse

CHECKPOINTS = Path(__file__).parents[2] / "data" / "checkpoints"
SPECS = {
    "topk": "topk(ratio=0.05, values=fp16)",
    "powersgd": "powersgd(rank=2)",
    "sketched_sgd": "sketched_sgd(budget=0.2)",
    "dgc": "dgc(ratio=0.05)",
}


def train(model, optimizer, steps):
    """Take steps with gradients that are the same on every machine."""
    for step in steps:
        generator = torch.Generator().manual_seed(1000 * step + hvd.rank())
        optimizer.zero_grad()
        sum((p * torch.randn(p.shape, generator=generator)).sum() for p in model.values()).backward()
        optimizer.step()


@pytest.mark.skipif(RANKS != 2, reason="two ranks wrote them")
@pytest.mark.parametrize("name", SPECS)
def test_it_resumes(name):
    saved = torch.load(CHECKPOINTS / f"torch-{name}-rank{hvd.rank()}.pt", weights_only=True)
    model = torch.nn.ParameterDict({"matrix": torch.zeros(36, 30), "bias": torch.zeros(20)})
    momentum = 0.0 if parse(SPECS[name]).has_momentum else 0.9
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=momentum)
    optimizer = hvdc.DistributedOptimizer(sgd, model.named_parameters(), compression=SPECS[name])
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    train(model, optimizer, range(4, 8))
    for key, expected in saved["after"].items():
        if name == "powersgd":  # whose products and bases are the machine's linear algebra
            assert torch.allclose(model[key], expected, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(model[key], expected)
    assert optimizer.compression_stats()["steps"] == 8
