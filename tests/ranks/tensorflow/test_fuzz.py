"""Some of the random training scripts that `make fuzz` runs by the thousand."""

import fuzz_keras
import fuzz_tape
import horovod.tensorflow as hvd
import pytest
from fuzz_scripts import run


@pytest.mark.filterwarnings("ignore:the state was saved by another rank")
@pytest.mark.filterwarnings("ignore:rank . had the compressors' state")
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("kind", [fuzz_tape, fuzz_keras])
@pytest.mark.parametrize("number", range(2, 6))  # 0 and 1 take longer
def test_random_scripts(kind, number):
    run(kind.Script, 0, number, {hvd.size(): hvd.global_process_set}, print)
