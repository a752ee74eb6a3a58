"""Checkpoints that are damaged, or of something else, as a job on real ranks resumes: one line names the file."""

import json
import shutil
import zlib

import numpy as np
import pytest
from launch import LEAST_SQUARES, ROOT, ended, given, job, least_squares, start

pytestmark = pytest.mark.jobs

PROGRAM = ROOT / "tests" / "faults" / "programs" / "servers.py"
ALGORITHM = {"compression": "topk(ratio=0.2)", "batch": 8, "epoch_steps": 10}


def with_bytes(change):
    def damage(path):
        path.write_bytes(change(bytearray(path.read_bytes())))

    return damage


def flip(data):
    data[len(data) // 2] ^= 16
    return data


def with_array(name, change):
    """Write a file whose checksums are right, with another array in it."""

    def damage(path):
        arrays = dict(np.load(path))
        arrays[name] = change(arrays[name])
        np.savez(path, **arrays)

    return damage


def with_job(**changes):
    def damage(path):
        written = json.loads(path.read_text())
        del written["checksum"]
        written = {**written, **changes}
        checksum = zlib.crc32(json.dumps(written, sort_keys=True).encode())
        path.write_text(json.dumps({**written, "checksum": checksum}))

    return damage


def poisoned(array):
    array = array.copy()
    array[3] = np.nan
    return array


DAMAGE = {
    "flipped": ("server-0.npz", with_bytes(flip), "server-0.npz: "),
    "no epoch": ("job.json", with_job(epoch={"epoch": "three"}), "epoch-2/job.json describes no epoch: "),
    "NaN of a worker": (
        "worker-1.npz",
        with_array("0/local/residual", poisoned),
        "0/local/residual has values that are",
    ),
    "truncated": ("server-0.npz", with_bytes(lambda data: data[: len(data) // 2]), "server-0.npz: "),
    "empty": ("worker-1.npz", with_bytes(lambda data: b""), "worker-1.npz: "),
    "shape": (
        "server-0.npz",
        with_array("snapshot", lambda x: x[1:]),
        "snapshot must be of shape (40,) and float32; it is",
    ),
    "dtype": ("server-0.npz", with_array("snapshot", lambda x: x.astype("f8")), "it is of shape (40,) and float64"),
    "NaN": ("server-0.npz", with_array("snapshot", poisoned), "snapshot has values that are not finite"),
    "answers": ("server-0.npz", with_array("answers", lambda x: x[0]), "server-0.npz does not hold what server-0"),
    "worker's shape": ("worker-1.npz", with_array("0/local/residual", lambda x: x[:1]), "0/local/residual must be of"),
    "worker's step": ("worker-1.npz", with_array("0/step", lambda x: np.array("x")), "worker-1.npz does not hold what"),
    "no JSON": ("job.json", with_bytes(lambda data: b"{"), "epoch-2: job.json: "),
    "a list": ("job.json", with_bytes(lambda data: b"[1]"), "job.json does not hold what a job saves"),
    "another run": ("job.json", with_job(run=["x"]), "job.json does not hold what a job saves"),
    "names": ("job.json", with_job(names=5), "job.json does not hold what a job saves"),
    "algorithm": ("job.json", with_job(algorithm=None), "job.json does not hold what a job saves"),
    "another epoch": ("job.json", with_job(epoch={"epoch": 1}), "epoch-2/job.json describes no epoch: "),
}
FAST = ["flipped", "no epoch", "NaN of a worker"]


def settings(folder, **more):
    return {"batch": 8, "epochs": 2, "checkpoint": str(folder), **more}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Return a folder with the epoch 2 alone."""
    folder = tmp_path_factory.mktemp("sound") / "kept"
    least_squares(2, ALGORITHM, settings(folder), kind="SGD")
    for path in folder.iterdir():
        if path.name != "epoch-2":
            shutil.rmtree(path)
    return folder


def refused(folder):
    line = json.dumps(given(ALGORITHM, settings(folder, resume=True), kind="SGD"))
    process = start(2, LEAST_SQUARES, line)
    result, said = ended(process)
    assert result is None
    assert process.returncode == 2
    assert said.count("error: ") == len(said.splitlines()) == 1, said
    return said


@pytest.mark.parametrize(
    "how", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in DAMAGE]
)
def test_a_file_that_is_not_sound_is_named(how, sound, tmp_path):
    name, damage, reason = DAMAGE[how]
    folder = tmp_path / "kept"
    shutil.copytree(sound, folder)
    damage(folder / "epoch-2" / name)
    assert reason in refused(folder)


def test_a_folder_that_is_a_file_is_named(tmp_path):
    path = tmp_path / "kept"
    path.write_text("no folder")
    assert f"the folder for checkpoints, {path}, is a file" in refused(path)


@pytest.mark.slow
def test_it_goes_on_for_more_epochs(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "kept")
    more = {**ALGORITHM, "epochs": 5}
    result = least_squares(2, more, settings(tmp_path / "kept", epochs=5, resume=True), kind="SGD")
    assert (result["epochs"], result["steps"], len(result["curve"])) == (5, 50, 4)
    other = {**ALGORITHM, "epoch_steps": 11}
    _, said = job(2, LEAST_SQUARES, json.dumps(given(other, settings(tmp_path / "kept", resume=True), kind="SGD")))
    assert "the checkpoint is of SGD(" in said


@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [
        ("SGD", {**ALGORITHM, "compression": "topk(ratio=exponential(0.5, 0.1, steps=20))"}),
        pytest.param("SGD", {**ALGORITHM, "asynchronous": True, "epoch_steps": 30}, marks=pytest.mark.slow),
        pytest.param(
            "SketchedSGDServer", {**ALGORITHM, "compression": "sketched_sgd(budget=0.9)"}, marks=pytest.mark.slow
        ),
    ],
)
def test_epochs_after_a_worker_died_are_checkpoints_too(kind, algorithm, tmp_path):
    """The worker that has no state there begins with what all workers share, as far as another one was."""
    job = {"kind": kind, "algorithm": algorithm, "problem": {"l2": 0.0}}
    faults = {"2": {"kind": "MODEL", "after": 15, "tag": 77}}
    kept = settings(tmp_path, epochs=4)
    process = start(4, PROGRAM, json.dumps({**job, "settings": kept, "faults": faults}))
    result, said = ended(process)
    assert result is not None, said
    assert (result["epochs"], result["workers_left"]) == (4, 2)
    assert (tmp_path / "epoch-4" / "job.json").is_file()
    assert not (tmp_path / "epoch-4" / "worker-2.npz").is_file()
    more = {**kept, "epochs": 6, "resume": True}
    process = start(4, PROGRAM, json.dumps({**job, "settings": more, "faults": {}}))
    resumed, said = ended(process)
    assert resumed is not None, said
    assert "without epoch" not in said
    assert (resumed["epochs"], resumed["workers_left"], len(resumed["curve"])) == (6, 3, 3)
    assert resumed["curve"][-1] < resumed["curve"][0]
    assert (tmp_path / "epoch-6" / "worker-2.npz").is_file()
