"""Libraries that wrap a model in DDP for their users: one more line compresses, and the ranks stay together."""

import json
import os
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.jobs, pytest.mark.slow]

EXAMPLES = Path(__file__).parents[2] / "examples" / "torch"


@pytest.mark.parametrize("library", ["lightning", "accelerate"])
def test_the_ranks_have_the_same_weights_and_have_sent_less(library):
    command = ["torchrun", "--standalone", "--nproc-per-node", "2", str(EXAMPLES / f"train_{library}.py")]
    command += ["--compression", "topk(ratio=0.05)", "--rule", "*.bias=none", "--epochs", "3"]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same_weights"]
    assert found["steps"] == 66
    assert 10 < found["dense_bytes"] / found["bytes_sent"] < 20
    assert found["accuracy"] > 0.85
    assert "66/66" in done.stderr
