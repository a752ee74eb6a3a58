"""Libraries that wrap a model in DDP for their users: one more line compresses, and the ranks stay together."""

import json
import os
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.jobs, pytest.mark.slow]

PROGRAMS = Path(__file__).parent / "programs"


@pytest.mark.parametrize("library", ["lightning", "accelerate"])
def test_the_ranks_have_the_same_weights_and_have_sent_less(library):
    command = ["torchrun", "--standalone", "--nproc-per-node", "2", str(PROGRAMS / f"{library}_ddp.py")]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ranks = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(ranks) == 2
    assert ranks[0]["digest"] == ranks[1]["digest"]
    assert all(rank["steps"] == 16 and rank["ratio"] > 2 for rank in ranks)
