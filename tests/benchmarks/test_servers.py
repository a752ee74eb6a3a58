"""A job of the study of parameter servers, on real ranks."""

import numpy as np
import pytest

from benchmarks.common.results import ResultsFile
from benchmarks.common.study import run_missing
from benchmarks.double_quantization.job import Job
from benchmarks.double_quantization.running import run

pytestmark = pytest.mark.jobs


def test_a_job_is_kept_and_not_repeated(tmp_path):
    random = np.random.default_rng(0)
    rows = [(label, label * 0.5 + random.standard_normal(5)) for label in random.choice([-1, 1], 60)]
    lines = (f"{label} " + " ".join(f"{i + 1}:{x:.3f}" for i, x in enumerate(row)) for label, row in rows)
    (tmp_path / "small").write_text("\n".join(lines))
    job = Job("small", "logistic", "asylpg", 4, workers=2, epochs=20, l2=0.01, batch=8, target=1e-4, mbits=0)
    file = ResultsFile(tmp_path / "study.jsonl", Job)
    run_missing([job], run, file, str(tmp_path), processes=1)
    found = file.read()[job]
    assert found["ended"] == "target"
    assert not found["limited"]
    curve = found["curve"]
    assert len(curve) == curve[-1][0] + 1 <= 21
    assert curve[-1][2] <= 1e-4 < curve[-2][2]
    assert found["steps"] == 15 * curve[-1][0]
    kept = file.path.read_bytes()
    run_missing([job], run, file, str(tmp_path), processes=1)
    assert file.path.read_bytes() == kept
