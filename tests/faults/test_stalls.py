"""Ranks that do not come to a step: the others say which, and end with an error after the time that is set."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.jobs

PROGRAMS = Path(__file__).parent / "programs"


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        ("torch", 0),
        ("mpi", 2),
        ("graph", 2),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("torch", 2), ("eager", 2), ("graph", 0))),
    ],
)
def test_the_others_end_with_an_error(kind, step):
    done = run(PROGRAMS / "stalled.py", kind, str(step))
    assert done.returncode != 0
    whom = f"rank 1 has ended step {step}" if step else "begins with an agreement"
    assert "rank 0 has waited" in done.stderr
    assert whom in done.stderr, done.stderr
    if (kind, step) == ("torch", 2):  # it can raise by itself
        assert "WorkersStalled" in done.stderr
    else:
        assert "this process ends" in done.stderr, done.stderr


def run(program, *arguments):
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HVD_COMPRESS_STALL_SECONDS": "0.5",
        "HVD_COMPRESS_STALL_ERROR_SECONDS": "3",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    command = ["mpirun", "-np", "2", sys.executable, str(program), *arguments]
    return subprocess.run(command, env=env, timeout=100, capture_output=True, text=True, check=False)
