"""A job whose rank 1 raises an exception: `failing.py KIND`. The others must end, and soon."""

import logging
import sys
import time
from dataclasses import dataclass
from typing import ClassVar

import horovod.torch as hvd
import torch

import hvd_compress.torch as hvdc
from hvd_compress.compressors.sparsify import TopK
from hvd_compress.ops.torch import TorchOps
from hvd_compress.transports.mpi import MPITransport, abort_on_error

KIND = sys.argv[1]
logging.basicConfig()
hvd.init()


@dataclass(frozen=True)
class Late(TopK):
    """Fails on rank 1, in its third step, when nothing is left to exchange."""

    name: ClassVar[str] = "late"

    def reduce(self, ops, vector, state):
        reduced = yield from super().reduce(ops, vector, state)
        if state.rank == 1 and state.step == 2:
            raise ZeroDivisionError("a bug")
        return reduced


def train(steps, compression, transport=None):
    torch.manual_seed(0)
    model = torch.nn.Linear(40, 40)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = hvdc.DistributedOptimizer(sgd, model.named_parameters(), compression, transport=transport)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(4, 40)).square().mean().backward()
        optimizer.step()


if KIND == "late":
    train(3, Late())
    hvd.allreduce(torch.zeros(1), name="a metric of the script's own")
    time.sleep(300)
else:
    with abort_on_error():
        transport = MPITransport(ops=TorchOps())
        train(2, "topk", transport)
        if transport.rank == 1:
            raise ZeroDivisionError("a bug")
        train(1, "topk", transport)
