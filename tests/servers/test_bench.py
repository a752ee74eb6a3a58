"""`hvd-compress bench --servers`."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.jobs


def bench(*arguments, of=("--servers",), **more):
    command = [str(Path(sys.executable).with_name("hvd-compress")), "bench", *of, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **more)


def test_all_is_timed_shown_and_written(tmp_path):
    path = tmp_path / "report.json"
    done = bench("--size", "3000", "--seconds", "0.05", "--repetitions", "2", "--threads", "1", "--json", str(path))
    assert done.returncode == 0, done.stderr
    report = json.loads(path.read_text())
    assert (report["workers"], report["threads"], report["seconds"]) == ([1, 2, 4, 8], 1, 0.05)
    assert len(report["stream"]) == 4
    assert min(report["stream"]) > 0
    results = report["results"]
    assert [(each["vectors"], each["format"]) for each in results] == [
        ("3000", name) for name in ("floats", "8 bits", "4 bits")
    ]
    for each, coordinate in zip(results, (32, 8, 4), strict=True):
        assert min(each[name] for name in ("push_s", "model_s", "copy_s")) > 0
        assert len(each["pushes"]) == 4
        assert min(each["pushes"]) > 0
        for name in ("push_bytes", "model_bytes"):  # a header, and a scale where there is one
            assert each[name] == 16 + 3000 * coordinate / 8 + 4 * (coordinate < 32)
        plain = results[0]["pushes"]
        assert each["times_floats"] == [rate / of for rate, of in zip(each["pushes"], plain, strict=True)]
    for name in ("floats", "8 bits", "4 bits"):
        assert len(re.findall(rf"\| 3000 +\| {name} ", done.stdout)) == 2  # alone, and with workers
    assert re.search(r"\| +1 worker +\| +2 workers +\| +4 workers +\| +8 workers", done.stdout)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "qsgd"], "--only does not go with --servers"),
        (["--framework", "numpy"], "--framework does not go with --servers"),
        (["--plot", "x.png"], "--plot does not go with --servers"),
        (["--seconds", "0"], "--seconds must be above 0 and finite; got 0.0"),
        (["--seconds", "inf"], "--seconds must be above 0 and finite; got inf"),
        (["--repetitions", "0"], "--repetitions must be at least 1; got 0"),
        (["--size", "0"], "--size must be at least 1; got 0"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments, said):
    done = bench(*arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_seconds_are_of_servers_alone():
    done = bench("--seconds", "1", of=())
    assert done.returncode == 2
    assert "--seconds goes with --servers alone" in done.stderr


def test_without_mpirun_it_says_so(tmp_path):
    done = bench("--size", "10", env={**os.environ, "PATH": str(tmp_path)})
    assert done.returncode == 2
    assert "there is no mpirun on the PATH" in done.stderr
