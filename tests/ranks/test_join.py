"""`hvd.join`, in a job of its own: Horovod's own hangs in about one of eight jobs, also without this package."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.jobs

PROGRAM = Path(__file__).parent / "programs" / "join.py"
HELPERS = Path(__file__).parents[1] / "helpers"


def test_all_ranks_have_the_same_weights_after_a_join():
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HELPERS), os.environ.get("PYTHONPATH", "")])}
    command = ["mpirun", "-np", "2", sys.executable, str(PROGRAM)]
    for _ in range(6):
        try:
            done = subprocess.run(
                command, env={**env, "OMP_NUM_THREADS": "1"}, timeout=60, capture_output=True, text=True, check=False
            )
        except subprocess.TimeoutExpired:
            continue
        assert done.stdout.count("joined") == 2, done.stderr
        return
    pytest.fail("it hung six times")
