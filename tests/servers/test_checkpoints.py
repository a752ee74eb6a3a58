"""Checkpoints of the parameter servers, whatever happens to the processes that write them and to their files."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hvd_compress.parameter_server.algorithms.common import vector_of
from hvd_compress.parameter_server.runtime.checkpoints import Checkpoints, begin_run

NAMES = ["server-0", "server-1", "worker-2"]


def begin(folder, every=1, names=NAMES):
    return Checkpoints(folder, names, every, begin_run(folder))


def save(checkpoints, epoch, names=NAMES):
    for name in names:
        checkpoints.save(epoch, name, {"snapshot": np.full(1000, epoch, np.float32), "of": name})
    checkpoints.save_job(epoch, {"algorithm": "SGD()", "epoch": {"epoch": epoch}})


def there(folder):
    return sorted(int(path.name.removeprefix("epoch-")) for path in folder.iterdir())


WRITER = """
import itertools, signal, sys
from pathlib import Path
from test_checkpoints import begin, save

def interrupted(number, frame):
    raise SystemExit

signal.signal(signal.SIGTERM, interrupted)
checkpoints = begin(Path(sys.argv[1]), every=1000)
for epoch in itertools.count(int(sys.argv[2])):
    save(checkpoints, epoch)
    print(epoch, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_at_any_moment_it_has_the_last_epoch_that_was_shown(tmp_path, number):
    first = 0
    for moment in np.random.default_rng(0).uniform(0, 0.03, 5):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, tmp_path, str(first)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        )
        process.stdout.readline()
        time.sleep(moment)
        process.send_signal(number)
        shown = first + len(process.communicate()[0].split())
        found = begin(tmp_path).latest()
        assert found.epoch in (shown, shown + 1)
        assert np.array_equal(begin(tmp_path).load(found.epoch, "server-1")["snapshot"], np.full(1000, found.epoch))
        first = found.epoch + 1
    assert len(there(tmp_path)) <= 5  # the first, two complete ones, one before and one that was being written
    assert not list(tmp_path.glob("*/*.part"))


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[len(data) // 2] ^= 16
    path.write_bytes({"empty": b"", "truncated": data[: len(data) // 2], "flipped": data}[how])


@pytest.mark.parametrize("file", ["job.json", "server-1.npz"])
@pytest.mark.parametrize("how", ["empty", "truncated", "flipped", "missing"])
def test_a_damaged_epoch_is_passed_over_with_its_reason(tmp_path, file, how):
    checkpoints = begin(tmp_path)
    for epoch in range(3):
        save(checkpoints, epoch)
    path = tmp_path / "epoch-2" / file
    if how == "missing":
        path.unlink()
    else:
        damage(path, how)
    checkpoints = begin(tmp_path)
    found = checkpoints.latest()
    assert found.epoch == found.job["epoch"]["epoch"] == 1
    assert found.skipped.startswith(f"epoch-2 ({file}")
    checkpoints.save(2, "server-0", {"snapshot": np.zeros(1)})
    checkpoints.save_job(2, {"algorithm": "SGD()", "epoch": {}})  # of one rank: still, the sound one stays
    assert begin(tmp_path).latest().epoch == 1
    save(checkpoints, 2)
    found = begin(tmp_path).latest()
    assert (found.epoch, found.job["epoch"]["epoch"], found.skipped) == (2, 2, "")


def test_the_last_complete_epoch_stays_however_many_halves_follow(tmp_path):
    checkpoints = begin(tmp_path, every=5)
    for epoch in range(12):
        save(checkpoints, epoch)
    assert there(tmp_path) == [5, 10, 11]
    for epoch in range(12, 40):
        save(checkpoints, epoch, NAMES[:2])  # worker-2 is gone
    assert there(tmp_path) == [5, 10, 11, 39]
    assert checkpoints.latest().epoch == 11


def test_two_runs_halves_are_no_checkpoint(tmp_path):
    first = begin(tmp_path)
    for epoch in (3, 4, 5):
        save(first, epoch)
    (tmp_path / "epoch-5" / "worker-2.npz").unlink()
    second = begin(tmp_path)
    assert second.latest().epoch == 4
    second.save(5, "worker-2", {})
    assert begin(tmp_path).latest().skipped == "epoch-5 (worker-2.npz is of another run than job.json)"


def test_a_new_run_is_newer_than_an_old_one_with_larger_numbers(tmp_path):
    old = begin(tmp_path)
    for epoch in (38, 39, 40):
        save(old, epoch)
    new = begin(tmp_path)
    save(new, 0)
    assert there(tmp_path) == [0, 40]
    save(new, 1)
    assert there(tmp_path) == [0, 1]
    assert begin(tmp_path).latest().epoch == 1


def test_without_a_sound_epoch_it_says_what_is_wrong(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no complete checkpoint: .* server-0.npz, server-1.npz, worker-2.npz$"
    ):
        begin(tmp_path).latest()
    save(begin(tmp_path), 0)
    damage(tmp_path / "epoch-0" / "server-0.npz", "truncated")
    with pytest.raises(FileNotFoundError, match=r"; epoch-0: server-0.npz: "):
        begin(tmp_path).latest()
    written = json.loads((tmp_path / "epoch-0" / "job.json").read_text())
    (tmp_path / "epoch-0" / "job.json").write_text(json.dumps({**written, "format": 3}))
    with pytest.raises(FileNotFoundError, match=r"job.json is of format 3; this version reads formats up to 2"):
        begin(tmp_path).latest()


@pytest.mark.parametrize(
    ("state", "match"),
    [
        ({}, r"snapshot must be of shape \(4,\) and float32; it is of shape \(\) and object"),
        (
            {"snapshot": np.zeros(5, np.float32)},
            r"snapshot must be of shape \(4,\) and float32; it is of shape \(5,\) and float32",
        ),
        ({"snapshot": np.zeros(4)}, "and float64"),
        ({"snapshot": np.full(4, np.nan, np.float32)}, "not finite"),
    ],
)
def test_a_snapshot_of_another_shard_is_refused(state, match):
    with pytest.raises(ValueError, match=match):
        vector_of(state, "snapshot", 4)


def test_files_without_labels_are_of_format_1(tmp_path):
    shutil.copytree(
        Path(__file__).parents[1] / "data" / "checkpoints" / "servers-format-1", tmp_path, dirs_exist_ok=True
    )
    checkpoints = begin(tmp_path, names=["server-0", "server-1", "worker-2", "worker-3"])
    found = checkpoints.latest()
    assert (found.epoch, found.job["run"], found.job["epoch"]["steps"]) == (3, "", 60)
    assert checkpoints.load(3, "server-1").keys() == {"snapshot", "steps", "answers"}
    (tmp_path / "epoch-3" / "job.json").write_text("{")
    with pytest.raises(FileNotFoundError, match=r"epoch-3: job.json: Expecting property name"):
        checkpoints.latest()
