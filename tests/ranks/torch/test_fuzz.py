"""Some of the random training scripts that `make fuzz` runs by the thousand."""

import fuzz_training
import horovod.torch as hvd
import pytest
from torch_ranks import HALF


@pytest.mark.filterwarnings("ignore:the state was saved by another rank")
@pytest.mark.filterwarnings("ignore:rank . had the compressors' state")
@pytest.mark.filterwarnings("ignore:optimizer.step.. called without optimizer.skip_synchronize")
@pytest.mark.parametrize("number", range(20))
def test_random_scripts(number):
    fuzz_training.run(0, number, {len(HALF.ranks): HALF, hvd.size(): hvd.global_process_set}, print)
