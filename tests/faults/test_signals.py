"""Servers' jobs that are interrupted at random moments: there is always an epoch to go on from, and none is lost."""

import json
import os
import re
import signal
import time

import numpy as np
import pytest
from launch import LEAST_SQUARES, ended, pid_of, start

from hvd_compress.parameter_server.runtime.checkpoints import Checkpoints, begin_run

pytestmark = pytest.mark.jobs

WORKERS = 2
EPOCH = re.compile(r"epoch (\d+)")


def interrupted(folder, servers, number, random):
    """Go on with a job, interrupt it in one of its next epochs, and return the last epoch that it showed."""
    settings = {"batch": 8, "epochs": 1_000_000, "slow": 0.0005, "servers": servers, "checkpoint": str(folder)}
    given = {"algorithm": {"batch": 8, "epoch_steps": 40}, "settings": {**settings, "resume": folder.exists()}}
    process = start(servers + WORKERS, LEAST_SQUARES, json.dumps(given))
    shown, said = [], ""
    until = time.monotonic() + 60
    while len(shown) < 2:
        line = process.stderr.readline()
        assert line, f"it ended: {said}"
        assert time.monotonic() < until, said
        said += line
        shown += map(int, EPOCH.findall(line))
    time.sleep(random.uniform(0, 0.2))
    if number == signal.SIGKILL:
        os.kill(pid_of(process, int(random.integers(servers))), number)
    else:
        process.send_signal(number)
    result, rest = ended(process, timeout=60)
    assert result is None
    assert process.returncode
    return max(shown + [int(epoch) for epoch in re.findall(r"^.*?epoch (\d+)", rest, re.M)][-1:])


def check(folder, rounds):
    random = np.random.default_rng(0)
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]
    for turn in range(rounds):
        servers = 1 + turn % 3
        job = folder / f"{servers} servers"
        last = interrupted(job, servers, numbers[(turn + turn // 3) % 3], random)
        names = [f"server-{rank}" for rank in range(servers)]
        found = Checkpoints(job, names, 1, begin_run(job)).latest()
        assert found.epoch >= last, f"round {turn}: epoch {last} was shown, and {found.epoch} is what there is"


def test_a_job_that_is_interrupted_goes_on(tmp_path):
    check(tmp_path, 3)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_job_that_is_interrupted_200_times_goes_on(tmp_path):
    check(tmp_path, 200)
