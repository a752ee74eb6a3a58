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


def train(steps, compression, transport=None, fails=False):
    torch.manual_seed(0)
    model = torch.nn.Linear(40, 40)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = hvdc.DistributedOptimizer(sgd, model.named_parameters(), compression, transport=transport)
    for step in range(steps):
        if fails and step == 2 and hvd.rank() == 1:
            raise ZeroDivisionError("a bug")
        optimizer.zero_grad()
        model(torch.ones(4, 40)).square().mean().backward()
        optimizer.step()


def fit():
    """Train with Keras; rank 1 fails in a callback."""
    import horovod.tensorflow as hvd_tensorflow
    import keras
    import numpy as np

    import hvd_compress.tensorflow.keras as hvdk

    hvd_tensorflow.init()

    class Failing(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2 and hvd.rank() == 1:
                raise ZeroDivisionError("a bug")

    model = keras.Sequential([keras.Input((40,)), keras.layers.Dense(40)])
    model.compile(hvdk.DistributedOptimizer(keras.optimizers.SGD(0.1), compression="topk(ratio=0.1)"), "mse")
    model.fit(np.ones((40, 40)), np.ones((40, 40)), batch_size=4, verbose=0, callbacks=[Failing()])


if KIND == "late":
    train(3, Late())
    hvd.allreduce(torch.zeros(1), name="a metric of the script's own")
    time.sleep(300)
elif KIND == "script":
    train(3, "topk", fails=True)
elif KIND == "keras":
    fit()
else:
    with abort_on_error():
        transport = MPITransport(ops=TorchOps())
        train(2, "topk", transport)
        if transport.rank == 1:
            raise ZeroDivisionError("a bug")
        train(1, "topk", transport)
