"""Faults in jobs of torch.distributed: every rank ends, within a minute, and those that can say why."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.jobs

PROGRAM = Path(__file__).parent / "programs" / "ddp.py"
STALLS = {"HVD_COMPRESS_STALL_SECONDS": "1", "HVD_COMPRESS_STALL_ERROR_SECONDS": "2"}
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
SAID = {  # by rank 0, of rank 1
    "kill": "another worker is gone, or has not come in time, to the collective hvd_compress.group.0.",
    "early": "another worker is gone, or has not come in time, to the collective in which all workers meet first",
    "raise": "rank 1 failed in step 4 with ZeroDivisionError: division by zero",
    "disagree": "the workers disagree on compression: rank 0: topk(ratio=0.1); rank 1: topk(ratio=0.2)",
    "change": "not all called set_compression()",
    "stop": "rank 1 has ended step 3, ",
}
SHOWN_BY_DDP = ["disagree", "change"]  # in tests of its own, where the ranks go on


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize(
    "fault", ["kill", "early", "raise", "stop", *(pytest.param(f, marks=pytest.mark.slow) for f in SHOWN_BY_DDP)]
)
def test_the_other_rank_says_what_has_happened_and_ends(fault):
    """With no launcher to end it."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    more = STALLS if fault == "stop" else {}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), fault],
            env={**ENV, **where, **more, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        _, said = ranks[0].communicate(timeout=60)
        if fault == "stop":
            ranks[1].kill()
        ranks[1].communicate(timeout=60)
    finally:
        for rank in ranks:
            rank.kill()
    assert all(rank.returncode for rank in ranks)
    assert SAID[fault] in said
    assert ("rank 1: no answer; the process has ended" in said) == (fault == "kill")


@pytest.mark.parametrize(
    "fault", ["none", "kill", *(pytest.param(f, marks=pytest.mark.slow) for f in ("raise", "disagree"))]
)
def test_under_torchrun_the_job_ends(fault):
    command = ["torchrun", "--standalone", "--nproc-per-node", "2", str(PROGRAM), fault]
    began = time.monotonic()
    done = subprocess.run(command, env=ENV, timeout=100, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (fault == "none"), done.stderr
    assert time.monotonic() - began < 60
