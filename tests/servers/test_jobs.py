"""The jobs in mpi/ as people start them."""

import json
import os
import signal
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from launch import LEAST_SQUARES, ROOT, ended, job, pid_of, start, wait_for
from sklearn.datasets import dump_svmlight_file

pytestmark = pytest.mark.jobs

ASYLPG = ROOT / "mpi" / "asylpg.py"
JOBS = [ASYLPG, ROOT / "mpi" / "sgd.py", ROOT / "mpi" / "sketched_sgd.py"]


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    features = random.standard_normal((300, 50)) * (random.random((300, 50)) < 0.2)
    features[:, 0] = 1
    labels = np.where(features @ random.standard_normal(50) + random.standard_normal(300) > 0, 3, 1)
    dump_svmlight_file(features, labels, str(tmp_path / "rows.svm"))
    return tmp_path / "rows.svm"


def test_a_job_on_a_libsvm_file(rows, tmp_path):
    line = ["--data", rows, "--bits", 4, "--l2", 0.01, "--target", 1e-7, "--batch", 16, "--seed", 7]
    line += ["--optimum", tmp_path / "optimum.json", "--log", tmp_path / "log.json", "--plot", tmp_path / "plot.png"]
    result, said = job(4, ASYLPG, *line, "--output", tmp_path / "model.npz", "--checkpoint", tmp_path / "kept")
    assert result is not None, said
    assert {"algorithm", "objective", "suboptimality", "bits_up", "bits_down", "seconds"} <= result.keys()
    assert {"epochs", "workers", "servers", "max_delay"} <= result.keys()
    assert result["suboptimality"] <= 1e-7
    assert (result["algorithm"], result["workers"], result["servers"]) == ("asylpg", 3, 1)
    optimum = json.loads((tmp_path / "optimum.json").read_text())["objective"]
    assert result["objective"] - optimum == pytest.approx(result["suboptimality"])
    curve = [json.loads(text) for text in (tmp_path / "log.json").read_text().splitlines()]
    assert [row["epoch"] for row in curve] == list(range(result["epochs"] + 1))
    assert curve[-1]["bits_down"] == result["bits_down"]
    assert all(a["bits_up"] < b["bits_up"] and a["seconds"] < b["seconds"] for a, b in pairwise(curve))
    with np.load(tmp_path / "model.npz") as model:
        assert next(iter(model.values())).shape == (50,)
    assert (tmp_path / "plot.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "suboptimality" in said
    assert f"{result['max_delay']:>5} " in said

    line = [*line[:-4], "--checkpoint", tmp_path / "kept", "--resume", "--target", 1e-9]
    resumed, said = job(4, ASYLPG, *line)
    assert resumed is not None, said
    assert resumed["epochs"] >= result["epochs"]
    assert resumed["bits_up"] >= result["bits_up"]
    assert "computing the optimum" not in said  # it was kept


def test_another_optimum_is_refused(rows, tmp_path):
    (tmp_path / "optimum.json").write_text(json.dumps({"objective": 0.1, "of": "other data"}))
    result, said = job(2, ASYLPG, "--data", rows, "--optimum", tmp_path / "optimum.json")
    assert result is None
    assert "optimum.json is that of other data or another task" in said


@pytest.mark.parametrize("program", JOBS, ids=lambda path: path.stem)
def test_without_mpirun_it_says_how_to_start_it(program, rows):
    done = subprocess.run([sys.executable, program, "--data", rows], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"mpirun --with-ft ulfm -np 5 python {program} --data {rows}" in done.stderr
    shown = subprocess.run([sys.executable, program, "--help"], capture_output=True, text=True, check=False)
    assert shown.returncode == 0
    assert "(default: 120.0)" in " ".join(shown.stdout.split())


@pytest.mark.parametrize(
    ("program", "line", "message"),
    [
        (JOBS[0], ["--bits", 1], "low_precision: bits must be in [2, 12]; got 1"),
        (JOBS[0], ["--theta", 2], "theta must be in [0, 1]; got 2.0"),
        (JOBS[0], ["--batch", 0], "--batch must be at least 1; got 0"),
        (JOBS[0], ["--resume"], "--resume needs --checkpoint DIR"),
        (JOBS[0], ["--servers", 3], "servers must be in 1 to 2"),
        (JOBS[0], ["--variant", "fast"], "invalid choice: 'fast'"),
        (JOBS[1], ["--compression", "powersgd"], "powersgd cannot be sent to a server"),
        (JOBS[2], ["--compression", "topk"], "compression must be sketched_sgd"),
    ],
)
def test_bad_arguments_are_refused_by_one_rank(program, line, message, rows):
    process = start(3, program, "--data", rows, *line)
    result, said = ended(process)
    assert result is None
    assert process.returncode == 2
    assert said.count(message) == 1


def test_missing_data_are_named(tmp_path):
    result, said = job(3, ASYLPG, "--data", tmp_path / "nothing")
    assert result is None
    assert said.count(str(tmp_path / "nothing")) == 1


def test_without_fault_tolerance_a_death_ends_everything_and_the_checkpoint_stands(rows, tmp_path):
    line = ["--data", rows, "--batch", 8, "--slow", 0.01, "--checkpoint", tmp_path / "kept", "--max-epochs", 200]
    process = subprocess.Popen(
        ["mpirun", "-np", "3", sys.executable, str(ASYLPG), *map(str, line)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    wait_for(process, "without `mpirun --with-ft ulfm` the job ends when a rank dies")
    wait_for(process, "            2 ")
    os.kill(pid_of(process, 1), signal.SIGKILL)
    result, said = ended(process)
    assert result is None
    assert process.returncode
    assert "signal 9" in said
    result, said = job(3, ASYLPG, *line[:4], *line[6:8], "--resume", "--max-epochs", 4)
    assert result is not None, said
    assert result["epochs"] == 4


TORCH = """
import torch
from torch import nn
from hvd_compress.parameter_server import SGD, Settings, TorchObjective, leave, run
from least_squares import Silent

def load():
    torch.manual_seed(0)
    inputs = torch.randn(400, 6)
    targets = (inputs[:, 0] * inputs[:, 1] > 0).long()
    model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 2))
    return TorchObjective(model, nn.functional.cross_entropy, inputs, targets)

result = run(
    SGD("topk(ratio=0.1)", lr=0.5, batch=16),
    load, Settings(batch=16, epochs=12), Silent(), lambda objective: 0.0,
)
if result is not None:
    import json
    print(json.dumps(result.record | {"parameters": [p.name for p in result.layout.parameters]}))
leave()
"""


def test_any_module_of_pytorch_can_be_trained(tmp_path, monkeypatch):
    program = tmp_path / "program.py"
    program.write_text(TORCH)
    monkeypatch.setenv("PYTHONPATH", str(LEAST_SQUARES.parent), prepend=os.pathsep)
    result, said = job(3, program)
    assert result is not None, said
    assert result["objective"] < 0.45
    assert result["parameters"] == ["0.weight", "0.bias", "2.weight", "2.bias"]
