"""Some of the random training scripts that `make fuzz` runs by the thousand."""

import fuzz_bound
import fuzz_ddp
import fuzz_optimizer
import horovod.torch as hvd
import pytest
import torch.distributed as dist
from fuzz_scripts import run
from torch_ranks import HALF

COUNTS = {fuzz_optimizer: 20, fuzz_bound: 10, fuzz_ddp: 10}


@pytest.mark.filterwarnings("ignore:the state was saved by another rank")
@pytest.mark.filterwarnings("ignore:rank . had the compressors' state")
@pytest.mark.filterwarnings("ignore:optimizer.step.. called without optimizer.skip_synchronize")
@pytest.mark.parametrize(
    ("kind", "number"),
    [
        (kind, number)
        for kind, count in ((fuzz_optimizer, 20), (fuzz_bound, 10), (fuzz_ddp, 10))
        for number in range(count)
    ],
)
def test_random_scripts(kind, number):
    if kind is fuzz_ddp and dist.is_initialized() and not fuzz_ddp.Script.begun:
        pytest.skip("the other tests' process groups would be lost")
    process_sets = {len(HALF.ranks): HALF, hvd.size(): hvd.global_process_set}
    run(kind.Script, 0, number, process_sets, print)
