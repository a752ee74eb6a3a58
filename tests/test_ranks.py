"""Starts the tests in tests/ranks and tests/ranks_tensorflow on real ranks, under MPI and under Gloo."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
LAUNCHERS = {
    "mpi": ["mpirun", "--allow-run-as-root", "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none", "-np"],
    "gloo": ["horovodrun", "--gloo", "-np"],
}
assert all(shutil.which(command[0]) for command in LAUNCHERS.values()), "run the tests with `make test`"


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("folder", "launcher", "ranks"),
    [
        ("ranks", "gloo", 2),
        ("ranks", "mpi", 4),
        pytest.param("ranks", "mpi", 2, marks=pytest.mark.slow),
        pytest.param("ranks", "gloo", 4, marks=pytest.mark.slow),
        ("ranks_tensorflow", "mpi", 2),
        pytest.param("ranks_tensorflow", "gloo", 4, marks=pytest.mark.slow),
    ],
)
def test_on_ranks(folder, launcher, ranks):
    command = [*LAUNCHERS[launcher], str(ranks), sys.executable, "-m", "pytest", str(TESTS / folder)]
    command += ["-q", "--tb=short", "--color=no", "-p", "no:cacheprovider", "--timeout=120", "--timeout-method=thread"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HOROVOD_LOG_LEVEL": "fatal"}
    if ranks == 4 and (launcher == "mpi" or folder == "ranks_tensorflow"):
        env["HOROVOD_FUSION_THRESHOLD"] = "0"  # for what must repeat bit for bit
    done = subprocess.run(command, capture_output=True, text=True, timeout=550, check=False, env=env)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert len(re.findall(r"\d+ passed", done.stdout)) == ranks, done.stdout[-6000:]
