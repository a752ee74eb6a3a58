"""A rank raises an exception where the others do not wait for an exchange: they learn of it, and the job ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.jobs

PROGRAM = Path(__file__).parent / "programs" / "failing.py"


def run(kind):
    command = ["mpirun", "-np", "2", sys.executable, str(PROGRAM), kind]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, timeout=100, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    return done.stderr


def test_after_the_last_collective_of_a_step():
    assert "ERROR:hvd_compress:rank 1 failed in step 3 with ZeroDivisionError: a bug" in run("late")


@pytest.mark.parametrize(("kind", "step"), [("script", 3), ("keras", 4)])
def test_in_a_script_of_its_own(kind, step):
    said = run(kind)
    assert said.count(f"ERROR:hvd_compress:rank 1 failed in step {step} with ZeroDivisionError: a bug") == 1, said


def test_outside_of_an_exchange_over_mpi():
    assert "ZeroDivisionError: a bug" in run("mpi")
