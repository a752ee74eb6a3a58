"""What the tests of PyTorch on real ranks of Horovod share."""

import os

import horovod.torch as hvd
import torch
from torch_training import RANKS, SPECS, batch, flat, sgd, small_cnn, train

__all__ = ["HALF", "LAST", "SPECS", "batch", "flat", "repeats", "same_on_all_ranks", "sgd", "small_cnn", "train"]

# Passed to hvd.init: process sets that are added and removed later can slow Horovod down by 0.1 s a step.
HALF, LAST = hvd.ProcessSet(list(range(RANKS // 2))), hvd.ProcessSet([RANKS - 1])


def repeats(got, expected):
    """Whether two runs agree: bit for bit where Horovod is deterministic, else within a tolerance.

    Horovod fuses tensors that are ready at the same time. With more than two ranks, the order of summation depends on
    a tensor's place in the fused buffer, so that runs agree bit for bit only with fusion turned off.
    """
    if hvd.size() == 2 or os.environ.get("HOROVOD_FUSION_THRESHOLD") == "0":
        return torch.equal(got, expected)
    return torch.allclose(got, expected, rtol=1e-2, atol=1e-2)


def same_on_all_ranks(vector):
    gathered = hvd.allgather(vector[None].contiguous(), name="same_on_all_ranks")
    return all(torch.equal(row, gathered[0]) for row in gathered)
