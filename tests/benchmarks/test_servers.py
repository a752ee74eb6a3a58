"""The comparisons of parameter servers: each job leaves a file, and the document is what the files say."""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from double_quantization import Job, run
from runs import results, train_missing

pytestmark = pytest.mark.jobs

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_a_job_is_kept_and_not_repeated(tmp_path):
    random = np.random.default_rng(0)
    rows = [(label, label * 0.5 + random.standard_normal(5)) for label in random.choice([-1, 1], 60)]
    lines = (f"{label} " + " ".join(f"{i + 1}:{x:.3f}" for i, x in enumerate(row)) for label, row in rows)
    (tmp_path / "small").write_text("\n".join(lines))
    job = Job("small", "logistic", "asylpg", 4, workers=2, epochs=20, l2=0.01, batch=8, target=1e-4, mbits=0)
    args = argparse.Namespace(results=tmp_path / "runs", data=str(tmp_path), processes=1)
    train_missing([job], run, args)
    found = results([job], args.results)[job]
    assert found["ended"] == "target"
    assert not found["limited"]
    curve = found["curve"]
    assert len(curve) == curve[-1][0] + 1 <= 21
    assert curve[-1][2] <= 1e-4 < curve[-2][2]
    assert found["steps"] == 15 * curve[-1][0]
    kept = job.path(args.results)
    kept.write_text(json.dumps(found))
    train_missing([job], run, args)
    assert kept.read_text() == json.dumps(found)


def test_sections_are_drawn_from_what_is_there(tmp_path):
    """The document is what the results that are kept with the project say, and needs no data."""
    command = [sys.executable, str(BENCHMARKS / "double_quantization.py"), "--data", ".", "--draw"]
    subprocess.run([*command, "--output", str(tmp_path / "out.md")], check=True, cwd=BENCHMARKS.parent)
    document = (tmp_path / "out.md").read_text()
    assert document == (BENCHMARKS.parent / "docs" / "results" / "double-quantization.md").read_text()
    for picture in re.findall(r"\((.*\.png)\)", document):
        assert (tmp_path / picture).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
