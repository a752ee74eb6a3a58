import os

import horovod.torch as hvd
import pytest
import torch
import torch.distributed as dist
from torch_ranks import HALF, LAST

import hvd_compress.torch.adam
import hvd_compress.torch.optimizer
from hvd_compress.torch.carrier import carrier

STORE = os.environ.get("TORCH_DISTRIBUTED_STORE")  # a file: optimizers are then carried by torch.distributed


@pytest.fixture(scope="session", autouse=True)
def _horovod():
    torch.set_num_threads(1)
    hvd.init(process_sets=[HALF, LAST])
    if STORE:
        dist.init_process_group("gloo", init_method=f"file://{STORE}", rank=hvd.rank(), world_size=hvd.size())
    yield
    hvd.shutdown()


def _by_torch_distributed(transport, process_set):
    usual = transport is None and process_set in (None, hvd.global_process_set) and hvd.size() > 1
    return carrier("torch.distributed" if usual else transport, process_set)


@pytest.fixture(autouse=True)
def _together(_horovod, monkeypatch):
    """Begin each test on all ranks together, after all have ended the one before."""
    hvd.barrier()
    if STORE:
        for module in (hvd_compress.torch.optimizer, hvd_compress.torch.adam):
            monkeypatch.setattr(module, "carrier", _by_torch_distributed)
