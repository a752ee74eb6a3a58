"""Ranks with fewer batches: `hvd.join`, then the model of the last rank, for each compressor that only sums."""

import warnings

import horovod.torch as hvd
import torch
from torch_ranks import flat, same_on_all_ranks, sgd, small_cnn, train

import hvd_compress.torch as hvdc
from hvd_compress import methods, parse

warnings.filterwarnings("ignore", message="rank . had the compressors' state")
hvd.init()
torch.set_num_threads(1)
for spec in methods():
    if "allgather" in parse(spec).collectives:
        continue
    model = small_cnn()
    optimizer = hvdc.DistributedOptimizer(sgd(model, spec), model.named_parameters(), compression=spec)
    train(model, optimizer, 2)
    if hvd.rank() == 0:
        train(model, optimizer, 2, start=2)
    last = hvd.join()
    hvd.broadcast_parameters(model.state_dict(), root_rank=last)
    hvd.broadcast_optimizer_state(optimizer, root_rank=last)
    train(model, optimizer, 3, start=4)
    assert same_on_all_ranks(flat(model)), spec
print("joined")
