"""Data that are damaged, or missing on one rank: one line names the file, and all ranks end."""

import bz2
import gzip

import numpy as np
import pytest
from data import load
from launch import ROOT, ended, job, start, start_several
from mnist_files import write_mnist
from sklearn.datasets import dump_svmlight_file

from hvd_compress.parameter_server import Regularizer

ASYLPG = ROOT / "mpi" / "asylpg.py"
SGD = ROOT / "mpi" / "sgd.py"


def write_rows(folder):
    random = np.random.default_rng(0)
    features = random.standard_normal((60, 20))
    dump_svmlight_file(features, np.where(features[:, 0] > 0, 1, -1), str(folder / "rows"))
    text = (folder / "rows").read_bytes()
    (folder / "rows.gz").write_bytes(gzip.compress(text))
    (folder / "rows.bz2").write_bytes(bz2.compress(text))


def damaged(data, random):
    data = bytearray(data)
    place = int(random.integers(len(data)))
    how = random.choice(["cut off", "flipped", "inserted", "empty", "longer"])
    if how == "cut off":
        return data[:place]
    if how == "flipped":
        data[place] ^= 1 << random.integers(8)
        return data
    if how == "inserted":
        return data[:place] + random.bytes(20) + data[place:]
    return b"" if how == "empty" else data + b"junk"


@pytest.mark.parametrize("name", ["rows", "rows.gz", "rows.bz2", "mnist", "mnist.gz"])
def test_damaged_files_are_named_or_read(name, tmp_path):
    """Where a file has no checksum, damage can leave a file that is right."""
    if name.startswith("rows"):
        write_rows(tmp_path)
        files, task, where = [tmp_path / name], "logistic", tmp_path / name
    else:
        write_mnist(tmp_path, compress=name.endswith(".gz"))
        files, task, where = sorted(tmp_path.iterdir()), "softmax", tmp_path
    random, refusals = np.random.default_rng(1), []
    for _ in range(80):
        path = files[random.integers(len(files))]
        sound = path.read_bytes()
        path.write_bytes(damaged(sound, random))
        try:
            load(task, str(where), 5, Regularizer())
        except ValueError as error:
            refusals.append(str(error))
        path.write_bytes(sound)
    assert len(refusals) >= 50
    assert all(str(where) in text and "\n" not in text for text in refusals)
    load(task, str(where), 5, Regularizer())


@pytest.mark.jobs
@pytest.mark.parametrize("name", ["rows.gz", pytest.param("train-images-idx3-ubyte.gz", marks=pytest.mark.slow)])
def test_a_job_on_a_file_that_is_cut_off_ends_with_one_line(name, tmp_path):
    if name == "rows.gz":
        write_rows(tmp_path)
        line = ["--data", tmp_path / name]
    else:
        write_mnist(tmp_path, compress=True)
        line = ["--data", tmp_path, "--task", "mlp"]
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-20])
    process = start(3, SGD, *line)
    result, said = ended(process)
    assert result is None
    assert process.returncode == 2
    assert said.count(str(path)) == 1
    assert said.count("error: ") == 1
    assert "Traceback" not in said


def test_an_index_that_no_file_has_is_refused(tmp_path):
    path = tmp_path / "rows"
    path.write_text("1 1:0.5 3:1\n-1 2:0.5 2000000000:1\n")
    with pytest.raises(ValueError, match=f"{path} has feature 2000000000; more are taken for damage unless"):
        load("logistic", str(path), 5, Regularizer())
    with pytest.raises(ValueError, match="has feature 2000000000; it has --features 7, at most 7"):
        load("logistic", str(path), 5, Regularizer(), 7)


@pytest.mark.jobs
@pytest.mark.slow
def test_features_may_be_more_than_the_file_names(tmp_path):
    write_rows(tmp_path)
    line = ["--data", tmp_path / "rows", "--batch", 8, "--max-epochs", 1, "--optimum", tmp_path / "optimum.json"]
    result, said = job(2, ASYLPG, *line, "--features", 25, "--output", tmp_path / "model.npz", "--quiet")
    assert result is not None, said
    with np.load(tmp_path / "model.npz") as model:
        assert model["weights"].shape == (25,)


@pytest.mark.jobs
def test_a_rank_that_lacks_the_data_says_so(tmp_path):
    write_rows(tmp_path)
    sound, lacking = (ASYLPG, "--data", tmp_path / "rows"), (ASYLPG, "--data", tmp_path / "nothing")
    process = start_several((2, *sound), (1, *lacking), (1, *sound))
    result, said = ended(process)
    assert result is None
    assert process.returncode == 2
    lines = [line for line in said.splitlines() if "error: " in line]
    assert len(lines) == 1, said
    assert ",2]<stderr>" in lines[0]
    assert f"{tmp_path / 'nothing'} does not exist" in lines[0]
    assert lines[0].endswith("(rank 2)")
