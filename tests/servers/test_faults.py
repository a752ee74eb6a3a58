"""Ranks of the parameter servers that die, stall, are interrupted, or send nonsense, for real."""

import json
import os
import signal
import time

import pytest
from launch import LEAST_SQUARES, ended, least_squares, pid_of, start, wait_for

pytestmark = pytest.mark.jobs

ALGORITHM = {"batch": 8, "epoch_steps": 200}
SLOW = {"batch": 8, "epochs": 60, "target": 1e-8, "slow": 0.004}  # so that there is time to do something to it


def begin(ranks, settings, **more):
    return start(ranks, LEAST_SQUARES, json.dumps({"algorithm": ALGORITHM, "settings": settings, **more}))


@pytest.mark.parametrize("servers", [1, 2])
def test_a_killed_worker_is_done_without(servers):
    process = begin(servers + 3, {**SLOW, "servers": servers})
    wait_for(process, "epoch 1")
    time.sleep(0.1)  # in mid-epoch
    os.kill(pid_of(process, servers), signal.SIGKILL)
    result, said = ended(process)
    assert result is not None, said
    assert f"worker {servers} is gone" in said
    assert result["suboptimality"] <= 1e-8
    assert (result["workers"], result["workers_left"]) == (3, 2)


def test_a_stalled_worker_is_done_without():
    process = begin(4, {**SLOW, "timeout": 1.5})
    wait_for(process, "epoch 1")
    os.kill(pid_of(process, 1), signal.SIGSTOP)
    result, said = ended(process)
    assert result is not None, said
    assert "worker 1 was silent for" in said
    assert result["suboptimality"] <= 1e-8
    assert result["workers_left"] == 2


def test_without_workers_the_job_ends():
    process = begin(2, SLOW)
    wait_for(process, "epoch 1")
    os.kill(pid_of(process, 1), signal.SIGKILL)
    result, said = ended(process)
    assert result is None
    assert process.returncode
    assert "no worker is left" in said


@pytest.mark.parametrize("server", [0, 1])
def test_a_dead_server_ends_the_job_which_goes_on_from_its_checkpoint(tmp_path, server):
    settings = {**SLOW, "servers": 2, "checkpoint": str(tmp_path)}
    process = begin(5, settings)
    wait_for(process, "epoch 3")
    os.kill(pid_of(process, server), signal.SIGKILL)
    result, said = ended(process)
    assert result is None
    assert process.returncode
    assert f"server {server} is gone; start again with --resume" in said
    resumed = least_squares(5, ALGORITHM, {**settings, "slow": 0, "resume": True})
    assert resumed["suboptimality"] <= 1e-8
    assert len(resumed["curve"]) < resumed["epochs"]  # it did not begin anew


def test_interrupted_it_saves_and_goes_on(tmp_path):
    settings = {**SLOW, "checkpoint": str(tmp_path), "every": 1000}
    process = begin(4, settings)
    wait_for(process, "epoch 3")
    process.send_signal(signal.SIGINT)
    result, _ = ended(process, timeout=20)
    assert result is None
    assert process.returncode
    saved = sorted(int(path.name.removeprefix("epoch-")) for path in tmp_path.iterdir())
    assert saved[-1] >= 3
    resumed = least_squares(4, ALGORITHM, {**settings, "slow": 0, "resume": True})
    assert resumed["suboptimality"] <= 1e-8
    assert len(resumed["curve"]) <= resumed["epochs"] - 2


def test_another_algorithm_does_not_go_on_from_a_checkpoint(tmp_path):
    settings = {"batch": 8, "epochs": 2, "checkpoint": str(tmp_path)}
    least_squares(2, ALGORITHM, settings)
    other = {"algorithm": {**ALGORITHM, "bits": 4}, "settings": {**settings, "resume": True}}
    result, said = ended(start(2, LEAST_SQUARES, json.dumps(other)))
    assert result is None
    assert "the checkpoint is of DoubleQuantization" in said


@pytest.mark.parametrize("servers", [1, 2])
def test_a_worker_that_sends_nonsense_is_refused_and_harms_nothing(servers):
    given = {"algorithm": ALGORITHM, "settings": {**SLOW, "slow": 0, "servers": servers}, "nonsense": [servers]}
    result, said = ended(start(servers + 2, LEAST_SQUARES, json.dumps(given)))
    assert result is not None, said
    assert f"worker {servers} sent a message that was refused: " in said
    assert f"rank {servers}: a server has refused a message" in said
    assert result["suboptimality"] <= 1e-8
    assert result["workers_left"] == 1


def test_a_rank_that_raises_is_not_waited_for():
    given = {"algorithm": ALGORITHM, "settings": {**SLOW, "slow": 0}, "raising": [1]}
    result, said = ended(start(4, LEAST_SQUARES, json.dumps(given)))
    assert result is not None, said
    assert "RuntimeError: this worker has a bug" in said
    assert "worker 1 is gone" in said
    assert result["workers_left"] == 2
    alone = {**given, "settings": {**SLOW, "slow": 0, "servers": 1}}
    result, said = ended(start(2, LEAST_SQUARES, json.dumps(alone)))
    assert result is None
    assert "no worker is left" in said
