import horovod.torch as hvd
import pytest
import torch
from torch_ranks import HALF, LAST


@pytest.fixture(scope="session", autouse=True)
def _horovod():
    torch.set_num_threads(1)
    hvd.init(process_sets=[HALF, LAST])
    yield
    hvd.shutdown()


@pytest.fixture(autouse=True)
def _together(_horovod):
    """Begin each test on all ranks together, after all have ended the one before."""
    hvd.barrier()
