"""Sketched-SGD with a server: the steps of the collectives' form, in other messages."""

import json
import os
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

from hvd_compress import Simulation, parse
from hvd_compress.ops.random import make_key
from hvd_compress.parameter_server.runtime.roles import rows_of

pytestmark = pytest.mark.jobs

PROBLEM = {"l2": 0.0, "size": 400}
STEPS = 20
SPECS = {
    "invertible": "sketched_sgd(budget=0.3)",
    "published": "sketched_sgd(k=20, rows=3, columns=50, p1=2, p2=4, momentum=0.9)",
    "heavymix": "sketched_sgd(k=30, rows=3, columns=50, heavymix=True)",
    "scheduled": "sketched_sgd(budget=exponential(0.5, 0.1, steps=50))",
}


def given_sketched(spec, settings=None, algorithm=None, problem=PROBLEM):
    algorithm = {"compression": spec, "batch": 8, "lr": 0.2, "seed": 3, "epoch_steps": STEPS, **(algorithm or {})}
    settings = {"batch": 8, "epochs": 3, "seed": 3, **(settings or {})}
    return given(algorithm, settings, kind="SketchedSGDServer", problem=problem)


def sketched(ranks, *arguments, **more):
    return least_squares(ranks, **given_sketched(*arguments, **more))


@pytest.fixture(scope="module")
def each_spec():
    return least_squares_in_one_start(4, {name: given_sketched(spec) for name, spec in SPECS.items()})


@pytest.mark.parametrize("name", SPECS)
def test_it_is_what_simulated_workers_do(name, each_spec):
    result = each_spec[name]
    whole = problem(**PROBLEM)
    parts = {rank: whole.take(rows) for rank, rows in rows_of(whole.rows, 3, [1, 2, 3]).items()}
    simulation = Simulation(parse(SPECS[name]), whole.layout, 3, seed=3)
    x = np.zeros(400, np.float32)
    for epoch in range(3):
        randoms = {r: np.random.Generator(np.random.Philox(make_key(3, "batches", r, epoch))) for r in parts}
        for _ in range(STEPS):
            rows = {r: randoms[r].integers(parts[r].rows, size=8) for r in parts}
            gradients = [parts[r].gradient(x, rows[r])[1] * np.float32(1 / 8) for r in parts]
            x = x - np.float32(0.2) * simulation.reduce(gradients)[0].mean
    assert np.array_equal(x, np.array(result["model"], np.float32))
    assert result["suboptimality"] < 0.97 * result["curve"][0]


def test_nothing_is_dense_after_the_start():
    """Up: a sketch and its candidates' values. Down: candidates' indices, and the coordinates that have changed."""
    few, more = (sketched(3, SPECS["published"], {"epochs": epochs}) for epochs in (1, 3))
    steps = 2 * 2 * STEPS  # of both workers in two epochs
    split = parse(SPECS["published"]).bare.split(400)
    up, down = ((more[way] - few[way]) / 8 / steps for way in ("bits_up", "bits_down"))
    headers = 80  # of three messages each way, and the epochs' ends
    assert 4 * split.numbers <= up <= 4 * split.numbers + headers
    bitmap = 400 / 8
    assert 4 * split.k <= down <= 4 * split.k + 2 * bitmap + headers
    assert few["bits_down"] / 8 < 2 * (4 * 400 + STEPS * 300)


@pytest.mark.parametrize("name", ["invertible", "published"])
def test_resumed_it_is_the_same_to_the_bit(tmp_path, name):
    algorithm = {"decay": True, "epochs": 4}
    whole = sketched(3, SPECS[name], {"epochs": 4}, algorithm)
    kept = {"checkpoint": str(tmp_path)}
    sketched(3, SPECS[name], {"epochs": 2, **kept}, algorithm)
    resumed = sketched(3, SPECS[name], {"epochs": 4, "resume": True, **kept}, algorithm)
    assert len(resumed["curve"]) == 3
    assert resumed["model"] == whole["model"]


def test_several_servers_sketch_their_shards():
    result = sketched(5, SPECS["invertible"], {"servers": 2, "epochs": 6})
    assert result["suboptimality"] < 0.9 * result["curve"][0]


def test_weight_decay_is_part_of_the_gradient():
    result = sketched(3, "sketched_sgd(budget=0.5)", {"epochs": 20}, problem={"l2": 0.05, "size": 400})
    assert result["suboptimality"] < 0.1 * result["curve"][0]


def test_a_lost_worker_does_not_stop_it():
    algorithm = {"compression": SPECS["invertible"], "batch": 8, "lr": 0.2, "epoch_steps": 60}
    job_of_four = given(algorithm, {"batch": 8, "epochs": 6, "slow": 0.005}, kind="SketchedSGDServer", problem=PROBLEM)
    process = start(4, LEAST_SQUARES, json.dumps(job_of_four))
    wait_for(process, "epoch 1")
    os.kill(pid_of(process, 2), signal.SIGKILL)
    result, said = ended(process)
    assert result is not None, said
    assert (result["epochs"], result["workers_left"]) == (6, 2)
    assert result["suboptimality"] < 0.9 * result["curve"][0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("topk", "compression must be sketched_sgd"),
        ("sketched_sgd(p2=0, p1=0)", "compression must have a second round"),
        ("sketched_sgd(feedback=ef21)", "compression must be sketched_sgd, without feedback=ef21"),
    ],
)
def test_what_has_no_form_with_a_server_is_refused(spec, message):
    from hvd_compress.parameter_server import SketchedSGDServer

    with pytest.raises(ValueError, match=message):
        SketchedSGDServer(compression=spec)


def test_the_job_trains_a_network(tmp_path):
    write_mnist(tmp_path, True)
    line = ["--data", tmp_path, "--task", "mlp", "--hidden", 16, "--batch", 16, "--max-epochs", 10, "--lr", 0.2]
    result, said = job(3, ROOT / "mpi" / "sketched_sgd.py", *line, "--compression", "sketched_sgd(budget=0.2)")
    assert result is not None, said
    assert result["accuracy"] > 0.9
    assert result["bits_up"] < 0.25 * 2 * result["steps"] * 32 * 12730
