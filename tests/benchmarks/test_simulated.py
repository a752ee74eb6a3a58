"""The comparisons' trainings, on simulated workers: each leaves a file, and is done once."""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mnist_files import write_mnist
from runs import Run, results, train_missing
from simulated import train

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


SKETCH = Run("mnist", "mlp", "sketched_sgd(budget=0.1)", workers=4, batch=32, epochs=4, lr=0.05)
PLAIN = Run("mnist", "mlp", "none", workers=4, batch=32, epochs=4, lr=0.05)


def test_trainings_are_kept_and_not_repeated(tmp_path):
    (tmp_path / "mnist").mkdir()
    write_mnist(tmp_path / "mnist", True)
    args = argparse.Namespace(results=tmp_path / "runs", data=str(tmp_path), processes=1)
    train_missing([SKETCH], train, args)
    kept = SKETCH.path(args.results)
    kept.write_text(kept.read_text() + " ")
    train_missing([PLAIN, SKETCH], train, args)
    assert kept.read_text().endswith(" ")  # not trained again
    found = results([PLAIN, SKETCH], args.results)
    assert found[PLAIN]["bytes_sent"] == found[PLAIN]["bytes_received"] == found[PLAIN]["dense_bytes"]
    assert 8 < found[SKETCH]["dense_bytes"] / found[SKETCH]["bytes_sent"] < 10
    assert found[PLAIN]["accuracy"] == found[SKETCH]["accuracy"] == 1
    assert not list(args.results.glob("*.part"))


@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_a_residual_is_clipped(tmp_path, clip):
    (tmp_path / "mnist").mkdir()
    write_mnist(tmp_path / "mnist", False)
    run = Run("mnist", "mlp", "topk", workers=2, batch=32, epochs=1, lr=0.05, clip_residual=clip)
    norm = train(run, str(tmp_path))["norms"][-1]["residual"]
    assert norm < 0.01 * 10 if clip else norm > 0.1


def test_sections_are_drawn_from_what_is_there(tmp_path):
    """The document is what the results that are kept with the project say, and needs no data."""
    command = [sys.executable, str(BENCHMARKS / "sketched_sgd.py"), "--data", ".", "--draw"]
    subprocess.run([*command, "--output", str(tmp_path / "out.md")], check=True)
    document = (tmp_path / "out.md").read_text()
    assert document == (BENCHMARKS.parent / "docs" / "results" / "sketched-sgd.md").read_text()
    for picture in re.findall(r"\((.*\.png)\)", document):
        assert (tmp_path / picture).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
