"""Files that cannot be written: one line names them, and the result reaches the user."""

import json
from pathlib import Path

import numpy as np
import pytest
from launch import ROOT, ended, job, start
from sklearn.datasets import dump_svmlight_file

pytestmark = pytest.mark.jobs

PROGRAM = Path(__file__).parent / "programs" / "servers.py"
ASYLPG = ROOT / "mpi" / "asylpg.py"
SGD = {"kind": "SGD", "algorithm": {"batch": 8, "epoch_steps": 10}}


@pytest.fixture
def rows(tmp_path):
    random = np.random.default_rng(0)
    features = random.standard_normal((60, 20))
    dump_svmlight_file(features, np.where(features[:, 0] > 0, 1, -1), str(tmp_path / "rows"))
    return tmp_path / "rows"


def test_the_result_is_shown_although_no_other_file_can_be_written(rows, tmp_path):
    """The files are links to /dev/full, on which every write fails as on a full disk."""
    line = ["--data", rows, "--batch", 8, "--max-epochs", 3, "--optimum", rows / "below a file"]
    files = {"--output": tmp_path / "model.npz", "--log": tmp_path / "log.json", "--plot": tmp_path / "plot.png"}
    for option, path in files.items():
        path.symlink_to("/dev/full")
        line += [option, path]
    process = start(2, ASYLPG, *line)
    result, said = ended(process, timeout=60)
    assert result is not None, said
    assert result["epochs"] == 3
    assert process.returncode == 1
    for option, path in files.items():
        assert said.count(f"{option} {path} cannot be written: No space left on device") == 1
        assert path.is_symlink()
    assert said.count(f"the optimum cannot be kept in {rows / 'below a file'}, and the job goes on: ") == 1
    assert "Traceback" not in said


@pytest.mark.parametrize("how", ["without fault tolerance", "a damaged optimum", "a plot of another kind"])
@pytest.mark.slow
def test_more_that_ends_with_a_line(how, rows, tmp_path):
    line = ["--data", rows, "--batch", 8, "--max-epochs", 2, "--optimum", tmp_path / "optimum.json", "--quiet"]
    if how == "a damaged optimum":
        (tmp_path / "optimum.json").write_text("[")
        _, said = job(2, ASYLPG, *line)
        assert said.count(f"{tmp_path / 'optimum.json'} holds no optimum") == 1
        return
    if how == "a plot of another kind":
        _, said = job(2, ASYLPG, *line, "--plot", tmp_path / "plot.gif")
        assert said.count("--plot must end in .png, .pdf or .svg; got") == 1
        return
    (tmp_path / "model.npz").symlink_to("/dev/full")
    process = start(2, ASYLPG, *line, "--output", tmp_path / "model.npz", ulfm=False)
    result, said = ended(process, timeout=60)
    assert result is not None, said
    assert process.returncode == 1
    assert said.count("--output") == 1


@pytest.mark.slow
@pytest.mark.parametrize("rank", range(3))
def test_a_checkpoint_that_cannot_be_written_is_named(rank, tmp_path):
    """A server's ends the job, a worker's the worker."""
    settings = {"batch": 8, "epochs": 6, "servers": 2, "checkpoint": str(tmp_path)}
    fault = {"kind": "PART", "after": 4, "full": True}  # there is a PART for each server in an epoch
    if rank < 2:
        fault = {"kind": "MODEL", "to": 2, "after": 15, "full": True}
    process = start(4, PROGRAM, json.dumps({**SGD, "settings": settings, "faults": {str(rank): fault}}))
    result, said = ended(process, timeout=60)
    assert said.count(f"the checkpoint cannot be written to {tmp_path}: ") == 1
    assert "File too large" in said
    assert "Traceback" not in said
    if rank == 2:
        assert (result["epochs"], result["workers_left"]) == (6, 1)
        assert "worker 2 has ended" in said
        return
    assert result is None
    assert process.returncode == 1
    more = {**settings, "resume": True}
    resumed, said = ended(start(4, PROGRAM, json.dumps({**SGD, "settings": more, "faults": {}})))
    assert resumed is not None, said
    assert resumed["epochs"] == 6
    assert len(resumed["curve"]) < 7
    assert not list(tmp_path.glob("*/*.part"))
