"""Stochastic gradient descent with a server, synchronous and asynchronous, through any compressor of one payload."""

import dataclasses
import json
import os
import shutil
import signal

import numpy as np
import pytest
from launch import (
    LEAST_SQUARES,
    ROOT,
    ended,
    given,
    job,
    least_squares,
    least_squares_in_one_start,
    pid_of,
    start,
    wait_for,
)
from least_squares import problem
from mnist_files import write_mnist

from hvd_compress import Simulation, methods, parse
from hvd_compress.ops.random import make_key
from hvd_compress.parameter_server.codecs import Changes, one_payload
from hvd_compress.parameter_server.runtime.checkpoints import Checkpoints, begin_run
from hvd_compress.parameter_server.runtime.messages import Malformed
from hvd_compress.parameter_server.runtime.roles import rows_of

pytestmark = pytest.mark.jobs

SETTINGS = {"batch": 8, "epochs": 3, "seed": 3}
PROBLEM = {"l2": 0.0}


def given_sgd(algorithm, settings=None):
    algorithm = {"batch": 8, "lr": 0.5, "seed": 3, **algorithm}
    return given(algorithm, {**SETTINGS, **(settings or {})}, kind="SGD", problem=PROBLEM)


def sgd(ranks, *arguments):
    return least_squares(ranks, **given_sgd(*arguments))


SYNCHRONOUS = ["topk(ratio=0.2)", "dgc(ratio=0.2)", "qsgd(bits=4)", "onebit", "none"]


@pytest.fixture(scope="module")
def synchronous():
    jobs = {spec: given_sgd({"compression": spec, "epoch_steps": 20}) for spec in SYNCHRONOUS}
    return least_squares_in_one_start(4, jobs)


@pytest.mark.parametrize("spec", SYNCHRONOUS)
def test_synchronously_it_is_what_simulated_workers_do(spec, synchronous):
    """The same compressors in lock step, their mean applied: the server has decoded and summed the same payloads."""
    result = synchronous[spec]
    whole = problem(**PROBLEM)
    parts = {rank: whole.take(rows) for rank, rows in rows_of(whole.rows, 3, [1, 2, 3]).items()}
    simulation = Simulation(parse(spec), whole.layout, 3, seed=3)
    simulation.states = [type(s)(s.layout, rank=r, workers=3, seed=3) for r, s in enumerate(simulation.states, 1)]
    for place, state in enumerate(simulation.states):
        state.rank = place  # the random numbers stay those of ranks 1 to 3
    x = np.zeros(40, np.float32)
    for epoch in range(3):
        randoms = {r: np.random.Generator(np.random.Philox(make_key(3, "batches", r, epoch))) for r in parts}
        for _ in range(20):
            rows = {r: randoms[r].integers(parts[r].rows, size=8) for r in parts}
            gradients = [parts[r].gradient(x, rows[r])[1] * np.float32(1 / 8) for r in parts]
            x = x - np.float32(0.5) * simulation.reduce(gradients)[0].mean
    assert np.allclose(x, result["model"], rtol=1e-4, atol=1e-5)
    assert result["delays"] == {"0": 180}


OF_ONE_PAYLOAD = sorted(set(methods()) - {"powersgd", "sketched_sgd", "fetchsgd"})


@pytest.fixture(scope="module")
def asynchronous():
    jobs = {}
    for name in OF_ONE_PAYLOAD:
        spec = {
            "threshold": "threshold(threshold=0.01)",
            "randomk": "randomk(ratio=0.3)",
            "wangni": "wangni(ratio=0.3)",
        }.get(name, name)
        lr = {"signsgd": 0.01, "signum": 0.01, "dgc": 0.05}.get(name, 0.3)
        jobs[name] = given_sgd({"compression": spec, "asynchronous": True, "lr": lr, "epoch_steps": 100})
    return least_squares_in_one_start(3, jobs)


@pytest.mark.parametrize("name", OF_ONE_PAYLOAD)
def test_every_method_of_one_payload_goes_up(name, asynchronous):
    result = asynchronous[name]
    assert result["suboptimality"] < 0.5 * result["curve"][0]


@pytest.mark.parametrize("downlink", ["changes", "difference"])
@pytest.mark.parametrize("servers", [1, 2])
def test_models_come_down_as_changes_or_as_quantized_differences(downlink, servers):
    algorithm = {"compression": "topk(ratio=0.05)", "downlink": downlink, "asynchronous": True, "epoch_steps": 200}
    result = sgd(servers + 2, algorithm, {"servers": servers})
    assert result["suboptimality"] < 0.2 * result["curve"][0]
    assert result["bits_down"] < (0.8 if servers == 1 else 1.4) * 32 * 40 * result["steps"]


@pytest.mark.parametrize(
    ("spec", "downlink"),
    [
        ("topk(ratio=0.1)", "changes"),
        ("qsgd(bits=3)", "difference"),
        ("dgc(ratio=exponential(0.5, 0.1, steps=60))", "changes"),
    ],
)
def test_resumed_synchronously_it_is_the_same_to_the_bit(tmp_path, spec, downlink):
    algorithm = {"compression": spec, "downlink": downlink, "epoch_steps": 20, "decay": True, "epochs": 6}
    whole = sgd(3, algorithm, {"epochs": 6})
    kept = {"checkpoint": str(tmp_path), "every": 2}
    sgd(3, algorithm, {"epochs": 4, **kept})
    resumed = sgd(3, algorithm, {"epochs": 6, "resume": True, **kept})
    assert len(resumed["curve"]) == 3
    assert resumed["model"] == whole["model"]
    assert resumed["bits_up"] >= whole["bits_up"]


def test_a_checkpoint_of_format_1_goes_on_to_the_bit(tmp_path):
    """It was written by an earlier version: it goes on as the same arrays do in today's format."""
    algorithm = {"compression": "topk(ratio=0.2)", "epoch_steps": 20, "epochs": 6}
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(LEAST_SQUARES.parents[1] / "data" / "checkpoints" / "servers-format-1", old)
    names = ["server-0", "server-1", "worker-2", "worker-3"]
    written = Checkpoints(new, names, 1, begin_run(new))
    for name in names:
        with np.load(old / "epoch-3" / f"{name}.npz") as arrays:
            written.save(3, name, dict(arrays))
    written.save_job(3, json.loads((old / "epoch-3" / "job.json").read_text()))
    settings = {"servers": 2, "epochs": 6}
    resumed = [sgd(4, algorithm, {**settings, "resume": True, "checkpoint": str(kept)}) for kept in (old, new)]
    assert resumed[0]["model"] == resumed[1]["model"]
    assert [len(result["curve"]) for result in resumed] == [4, 4]
    whole = sgd(4, algorithm, settings)  # from the start: another processor may round the first three epochs otherwise
    assert np.allclose(resumed[0]["model"], whole["model"], atol=1e-2)


def test_what_goes_in_rounds_among_workers_is_refused():
    for spec, why in (
        ("powersgd", "takes rounds among the workers"),
        ("sketched_sgd", "takes rounds among the workers"),
        ("topk(feedback=ef21)", "a server keeps no estimate of each worker, as feedback=ef21 asks for"),
    ):
        with pytest.raises(ValueError, match=why):
            one_payload(parse(spec))


def test_a_lost_worker_does_not_stop_synchronous_steps():
    algorithm = {"batch": 8, "lr": 0.3, "compression": "topk(ratio=0.2)", "epoch_steps": 100, "seed": 3}
    settings = {**SETTINGS, "epochs": 8, "slow": 0.003}
    process = start(4, LEAST_SQUARES, json.dumps(given(algorithm, settings, kind="SGD", problem=PROBLEM)))
    wait_for(process, "epoch 1")

    os.kill(pid_of(process, 2), signal.SIGKILL)
    result, said = ended(process)
    assert result is not None, said
    assert result["workers_left"] == 2
    assert result["epochs"] == 8


def test_changes_are_what_they_say():
    changes, x = Changes(1000), np.arange(1000, dtype=np.float32)
    for indices in (np.array([3, 500, 999]), np.arange(0, 1000, 7), np.arange(1000), np.zeros(0, np.int64)):
        payload = changes.encode(x, indices)
        y = np.zeros(1000, np.float32)
        changes.apply(y, payload)
        assert np.array_equal(np.flatnonzero(y), indices[indices > 0])
        assert payload.nbytes <= 8 + 4 * len(indices) + (1000 / 8 if len(indices) < 1000 else 0)
        for bad in (payload[:-1], payload[:3], np.concatenate([payload, payload[:1]])):
            before = y.copy()
            with pytest.raises(Malformed):
                changes.apply(y, bad)
            assert np.array_equal(y, before)


def test_the_job_trains_a_network_and_keeps_it(tmp_path):
    write_mnist(tmp_path, True)
    line = ["--data", tmp_path, "--task", "mlp", "--hidden", 16, "--batch", 16, "--max-epochs", 14, "--lr", 0.2]
    line += ["--compression", "topk(ratio=0.1)", "--asynchronous", "--log", tmp_path / "log.csv"]
    line += ["--plot", tmp_path / "plot.png", "--output", tmp_path / "model.npz"]
    result, said = job(3, ROOT / "mpi" / "sgd.py", *line)
    assert result is not None, said
    assert result["accuracy"] > 0.9
    with np.load(tmp_path / "model.npz") as model:
        assert model["hidden.weight"].shape == (16, 784)
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 16
    assert (tmp_path / "plot.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "delay     steps" in said


def test_settings_are_checked():
    from hvd_compress.parameter_server import SGD

    for bad, match in (
        ({"lr": 0.0}, r"lr must be in \(0, inf\); got 0.0"),
        ({"downlink": "floats"}, "downlink must be one of changes, difference; got 'floats'"),
        ({"epoch_steps": 0}, "epoch_steps must be at least 1; got 0"),
        ({"compression": "nothing"}, "unknown compressor 'nothing'"),
    ):
        with pytest.raises(ValueError, match=match):
            dataclasses.replace(SGD(), **bad)
