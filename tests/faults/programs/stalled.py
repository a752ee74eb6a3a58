"""A job whose rank 1 does not come to a step: `stalled.py KIND STEP`. The others must end with an error."""

import logging
import sys
import time

KIND, STEP = sys.argv[1], int(sys.argv[2])
logging.basicConfig()


def torch_step():
    import horovod.torch as hvd
    import torch

    import hvd_compress.torch as hvdc

    hvd.init()
    torch.manual_seed(0)
    model = torch.nn.Linear(40, 40)
    transport = None
    if KIND == "mpi":
        from hvd_compress.ops.torch import TorchOps
        from hvd_compress.transports.mpi import MPITransport

        transport = MPITransport(ops=TorchOps())
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = hvdc.DistributedOptimizer(sgd, model.named_parameters(), "topk", transport=transport)

    def step():
        optimizer.zero_grad()
        model(torch.ones(4, 40)).square().mean().backward()
        optimizer.step()

    return hvd.rank(), step


def tensorflow_step():
    import horovod.tensorflow as hvd
    import tensorflow as tf

    import hvd_compress.tensorflow as hvdc

    hvd.init()
    weight = tf.Variable(tf.ones((40, 40)))

    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(weight))
        tape = hvdc.DistributedGradientTape(tape, compression="topk")
        weight.assign_sub(tape.gradient(loss, [weight])[0])

    return hvd.rank(), tf.function(step) if KIND == "graph" else step


rank, step = tensorflow_step() if KIND in ("eager", "graph") else torch_step()
for _ in range(STEP):
    step()
if rank == 1:
    time.sleep(300)
step()
