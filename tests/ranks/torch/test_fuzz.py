"""Some of the random training scripts that `make fuzz` runs by the thousand."""

import fuzz_bound
import fuzz_optimizer
import horovod.torch as hvd
import pytest
from fuzz_scripts import run
from torch_ranks import HALF


@pytest.mark.filterwarnings("ignore:the state was saved by another rank")
@pytest.mark.filterwarnings("ignore:rank . had the compressors' state")
@pytest.mark.filterwarnings("ignore:optimizer.step.. called without optimizer.skip_synchronize")
@pytest.mark.parametrize(
    ("kind", "number"),
    [*((fuzz_optimizer, number) for number in range(20)), *((fuzz_bound, number) for number in range(10))],
)
def test_random_scripts(kind, number):
    process_sets = {len(HALF.ranks): HALF, hvd.size(): hvd.global_process_set}
    run(kind.Script, 0, number, process_sets, print)
