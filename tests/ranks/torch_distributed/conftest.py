import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d


@pytest.fixture(scope="session", autouse=True)
def _torch_distributed():
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    yield
    dist.destroy_process_group()


@pytest.fixture(autouse=True)
def _together(_torch_distributed):
    """Begin each test on all ranks together, and leave no process groups, whose threads would become many."""
    dist.barrier()
    yield
    for group in [group for group in distributed_c10d._world.pg_map if group is not dist.group.WORLD]:
        dist.destroy_process_group(group)
