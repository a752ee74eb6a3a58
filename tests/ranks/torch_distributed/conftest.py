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
def _together(_torch_distributed, request):
    """Begin each test on all ranks together, and leave no process groups, whose threads would become many.

    But PyTorch gives a group of some of the ranks the name of a former one if another was destroyed in between.
    """
    dist.barrier()
    yield
    if "fsdp" in request.path.name:
        return
    for group in [group for group in distributed_c10d._world.pg_map if group is not dist.group.WORLD]:
        dist.destroy_process_group(group)
