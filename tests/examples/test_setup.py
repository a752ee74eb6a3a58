"""The set-up ends in a sentence that a person can act on."""

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.jobs

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("python", ["/nonexistent/python3", "bash"])
def test_an_unsuitable_python_is_named(python, tmp_path):
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "setup.sh")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHON": python, "VENV": str(tmp_path / "venv")},
    )
    assert done.returncode == 1
    assert (
        f"no Python 3.10, 3.11 or 3.12 found under PYTHON={python}. Install one, or name it: make setup" in done.stderr
    )
    assert not (tmp_path / "venv").exists()


def test_make_lists_its_targets():
    done = subprocess.run(["make", "-C", str(ROOT)], capture_output=True, text=True, check=True)
    for target in ("setup", "demo", "test", "lint"):
        assert f"make {target} " in done.stdout
