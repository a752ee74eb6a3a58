"""Random training scripts over process groups of torch.distributed, and those of this package's optimizers."""

import functools
from typing import Any

import fuzz_optimizer
import horovod.torch as hvd
import torch.distributed as dist
from fuzz_optimizer import OptimizerSetup
from fuzz_scripts import RandomScript

from hvd_compress.transports.torch_distributed import ProcessGroupTransport


@functools.cache
def store() -> dist.Store:
    """Return where the ranks of this job find each other."""
    own = dist.TCPStore("localhost", 0, hvd.size(), True, wait_for_workers=False) if hvd.rank() == 0 else None
    port = hvd.broadcast_object(own.port if own is not None else None, name="port of the store")
    return own or dist.TCPStore("localhost", port, hvd.size())


class GroupsScript(RandomScript):
    """A script that is carried by process groups; Horovod only compares what came of it.

    Attributes:
        groups: for each number of workers that it may train with, that of the lowest ranks.
    """

    begun = 0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        if dist.is_initialized():
            dist.destroy_process_group()  # each script makes dozens, and a process can have fewer than 2,000
        GroupsScript.begun += 1
        dist.init_process_group(
            "gloo", store=dist.PrefixStore(f"{self.begun}", store()), rank=self.rank, world_size=self.ranks
        )
        self.groups = {count: dist.new_group(list(range(count))) for count in self.process_sets}


class Script(GroupsScript, fuzz_optimizer.Script):
    """A script with this package's optimizers."""

    def carried(self, setup: OptimizerSetup) -> dict[str, Any]:
        if setup.members == 1:
            return super().carried(setup)
        return {"transport": ProcessGroupTransport(self.groups[setup.members])}
