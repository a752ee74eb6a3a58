"""Starts the tests in the folders here on real ranks: under MPI, under Horovod's Gloo, and under torchrun.

Those of torch/ run with Horovod's optimizers, and again with the same carried by torch.distributed's process groups.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.jobs

HERE = Path(__file__).parent
LAUNCHERS = {
    "mpi": ["mpirun", "-np"],
    "gloo": ["horovodrun", "--gloo", "-np"],
    "groups": ["mpirun", "-np"],
    "torchrun": ["torchrun", "--standalone", "--no-python", "--nproc-per-node"],
}
assert all(shutil.which(command[0]) for command in LAUNCHERS.values()), "run the tests with `make test`"


# What depends on the number of ranks, or on MPI: a failure reaches several others, process sets have several members,
# sums have an order.
DEPENDS = "test_bad_input or test_sparse or test_training or test_transports"
# What errors may mix up where collectives have no names. test_transports has no optimizers, and would make so many
# process groups in one process, of three threads each, that PyTorch stands still: at some 1,800, whoever makes them.
GROUPS = "test_bad_input or test_set_compression"


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("framework", "launcher", "ranks", "only"),
    [
        ("torch", "gloo", 2, ""),
        ("torch", "mpi", 4, DEPENDS),
        pytest.param("torch", "mpi", 4, f"not ({DEPENDS})", marks=pytest.mark.slow),
        pytest.param("torch", "mpi", 2, "", marks=pytest.mark.slow),
        pytest.param("torch", "gloo", 4, "", marks=pytest.mark.slow),
        ("torch", "groups", 2, f"{GROUPS} or test_fuzz"),
        pytest.param("torch", "groups", 2, f"not ({GROUPS} or test_transports)", marks=pytest.mark.slow),
        ("torch_distributed", "torchrun", 2, ""),
        pytest.param("torch_distributed", "torchrun", 4, "", marks=pytest.mark.slow),
        ("tensorflow", "mpi", 2, ""),
        pytest.param("tensorflow", "mpi", 2, "", marks=pytest.mark.slow, id="tensorflow-mpi-2-all"),
        pytest.param("tensorflow", "gloo", 4, "", marks=pytest.mark.slow),
    ],
)
def test_on_ranks(framework, launcher, ranks, only, tmp_path, request):
    command = [*LAUNCHERS[launcher], str(ranks), sys.executable, "-m", "pytest", str(HERE / framework), "-k", only]
    command += [] if request.node.get_closest_marker("slow") else ["-m", "not slow"]
    command += ["-q", "--tb=short", "--color=no", "-p", "no:cacheprovider", "--timeout=120", "--timeout-method=thread"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HOROVOD_LOG_LEVEL": "fatal"}
    if launcher == "groups":
        env["TORCH_DISTRIBUTED_STORE"] = str(tmp_path / "store")
    if ranks == 4 and (launcher == "mpi" or framework == "tensorflow"):
        env["HOROVOD_FUSION_THRESHOLD"] = "0"  # for what must repeat bit for bit
    done = subprocess.run(command, capture_output=True, text=True, timeout=550, check=False, env=env)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert len(re.findall(r"\d+ passed", done.stdout)) == ranks, done.stdout[-6000:]
