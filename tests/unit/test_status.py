"""What a job tells while it runs, and `hvd-compress watch`, which shows it."""

import json
import shutil
import subprocess
import sys

import pytest

from hvd_compress.status import EVERY, Status

STATS = {"bytes_sent": 1_234_567, "ratio": 12.5, "residual_norm": 0.25}
PHASES = {"seconds": 4.0, "computing": 1.0, "wire": {"exposed": 2.0, "hidden": 7.0}, "optimizer": None}
BUCKETS = [
    {
        "name": "hvd.0.3",
        "compression": "topk(ratio=0.01)",
        "parameters": ["a", "b"],
        "coordinates": 5000,
        "bytes_sent": 999,
        "residual_norm": 0.125,
    }
]


def watch(*args, **more):
    command = ["hvd-compress", "watch", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **more)


def test_what_a_job_tells_is_shown(tmp_path):
    status = Status(tmp_path / "run.json", steps=40)
    assert "step 0 of 40" in watch("--once", tmp_path / "run.json").stdout
    status.tell(lambda: {**STATS, "phases": PHASES, "buckets": BUCKETS}, 7, loss=0.5)
    done = watch("--once", tmp_path / "run.json")
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.replace("│", " ").split()) for line in done.stdout.splitlines()]
    assert lines[0].startswith("step 7 of 40, ")
    assert lines[0].endswith(" s, loss 0.5")
    assert lines[1] == "1.23 MB sent, 12.5 times fewer than fp32; residual norm 0.25"
    assert "wire 2.00 50 %" in lines
    assert "computing 1.00 25 %" in lines
    assert not any(line.startswith("optimizer") for line in lines)
    assert "3 topk(ratio=0.01) 2 5,000 999 B 0.125" in lines


def test_it_is_written_now_and_then_and_at_the_end(tmp_path):
    calls = []
    status = Status(tmp_path / "run.json")
    for step in range(1000):
        status.tell(lambda: calls.append(1) or STATS, step)
    assert len(calls) == 1, f"within {EVERY} s"
    status.end()
    told = json.loads((tmp_path / "run.json").read_text())
    assert (told["step"], told["ended"], told["steps"]) == (999, True, None)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert "the job has ended" in watch(tmp_path / "run.json").stdout


def test_a_training_goes_on_where_the_file_cannot_be_written_any_more(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    status = Status(folder / "run.json")
    shutil.rmtree(folder)
    with pytest.warns(UserWarning, match=r"the status is not written any more: .*run\.json"):
        status.tell(lambda: STATS, 1)
    status.tell(lambda: pytest.fail("asked"), 2)
    status.end()
    with pytest.raises(OSError, match=r"run\.json"):
        Status(folder / "run.json")


def test_without_a_file_nothing_is_asked():
    status = Status(None)
    status.tell(lambda: pytest.fail("asked"), 1)
    status.end()


def test_watching_goes_on_until_the_job_ends(tmp_path):
    path = tmp_path / "run.json"
    status = Status(path)
    status.tell(lambda: STATS, 1)
    with subprocess.Popen(["hvd-compress", "watch", path], stdout=subprocess.PIPE, text=True) as job:
        with pytest.raises(subprocess.TimeoutExpired):
            job.wait(3)
        status.tell(lambda: STATS, 2)
        status.end()
        out, _ = job.communicate(timeout=30)
    assert job.returncode == 0
    assert "step 2" in out
    assert "the job has ended" in out


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"stats": 1}'])
def test_another_file_is_refused(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    done = watch(tmp_path / "run.json")
    assert done.returncode == 2
    assert "is not what a job writes with --status" in done.stderr


def test_a_missing_file_is_named():
    done = watch("/nowhere/run.json")
    assert done.returncode == 2
    assert "No such file or directory: '/nowhere/run.json'" in done.stderr


def test_it_needs_no_framework():
    code = "import sys, hvd_compress.status; print({'torch', 'tensorflow', 'horovod', 'mpi4py'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
