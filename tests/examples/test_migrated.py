"""Scripts in the style of Horovod's examples, changed in their import and `compression=` (Keras: its callbacks too)."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.jobs

SCRIPTS = Path(__file__).with_name("migrated")
SLOW = pytest.mark.slow


def run(folder, name, *line, launcher=("mpirun", "-np")):
    command = [*launcher, "2", sys.executable, str(SCRIPTS / f"{name}.py"), *line]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    sums = re.findall(r"checksum (.*)", done.stdout)
    assert len(sums) == 2
    assert sums[0] == sums[1]  # the same weights on both ranks
    return sums[0]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("pytorch_mnist", []),
        ("keras_fit", []),
        pytest.param("pytorch_mnist", ["--use-mixed-precision"], marks=SLOW),
        pytest.param("pytorch_mnist", ["--gradient-predivide-factor", "2", "--compression", "none"], marks=SLOW),
        pytest.param("pytorch_synthetic_benchmark", [], marks=SLOW),
        pytest.param("pytorch_elastic", [], marks=SLOW),
        pytest.param("tensorflow2_custom_loop", [], marks=SLOW),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_it_runs_and_the_ranks_have_the_same_weights(name, line, tmp_path):
    run(tmp_path, name, *line)


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["topk(ratio=0.05)", "powersgd"])
def test_it_goes_on_from_rank_0s_checkpoint(compression, tmp_path):
    assert run(tmp_path, "pytorch_imagenet", "--epochs", "2", "--compression", compression).endswith("from 0")
    assert run(tmp_path, "pytorch_imagenet", "--compression", compression).endswith("from 2")
    assert (tmp_path / "checkpoint-3.pth.tar").exists()


@pytest.mark.slow
def test_elastic_under_horovodrun(tmp_path):
    run(tmp_path, "pytorch_elastic", launcher=("horovodrun", "--gloo", "-np"))
