"""The lab: which trainings follow from which, and what their results and the measured steps come to."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mnist_files import write_mnist

from benchmarks.common.results import ResultsFile
from benchmarks.lab import accuracy, steps, time, whole
from benchmarks.lab.accuracy import FACTORS, SEEDS, TUNING_SEED, Training
from benchmarks.lab.methods import COMPARED, METHODS, PLAIN
from benchmarks.lab.steps import Cell
from benchmarks.lab.tasks import TASKS
from hvd_compress import parse

ROOT = Path(__file__).parents[2]
TOPK = "topk(ratio=0.01)"


def result(*curve, diverged=False):
    return {"curve": list(curve), "diverged": diverged, "steps": curve[-1][0]}


def tried(method, scores, task="mlp"):
    """Results of the trainings that choose a method's learning rate."""
    runs = [Training(task, method, factor, seed=TUNING_SEED, part="valid") for factor in FACTORS]
    return {run: result((10, score), diverged=score is math.inf) for run, score in zip(runs, scores, strict=True)}


def test_the_best_learning_rate_on_the_validation_split_is_taken():
    found = tried(PLAIN, (0.5, 0.9, 0.8)) | tried(TOPK, (0.5, math.inf, 0.4)) | tried(PLAIN, (9.0, 8.0, 7.0), "gpt")
    assert accuracy.tuned(found) == {("mlp", PLAIN): 1.0, ("mlp", TOPK): 0.5, ("gpt", PLAIN): 2.0}
    wanted = accuracy.final(found)
    assert {run.part for run in wanted} == {"test"}
    assert {(run.task, run.method): run.factor for run in wanted} == accuracy.tuned(found)
    assert sum(run == Training("mlp", TOPK, 0.5, seed=2) for run in wanted) == 1
    assert {run.workers for run in wanted if run.method == TOPK} == {2, 4, 8}
    incomplete = {run: value for run, value in found.items() if run.factor != 2.0}
    assert accuracy.final(incomplete) == []


def test_every_method_is_tried_with_as_many_learning_rates():
    tries = accuracy.tuning()
    assert len(set(tries)) == len(tries)
    for task in TASKS:
        for method in COMPARED:
            assert sum((run.task, run.method) == (task, method) for run in tries) == len(FACTORS)


def test_nobody_has_the_momentum_twice():
    for task, recipe in TASKS.items():
        for method in METHODS.values():
            compressor = parse(method.spec(recipe.optimizer))
            if recipe.optimizer == "adam":
                assert not compressor.has_momentum, (task, method)


@pytest.mark.parametrize(
    ("curve", "score", "larger", "expected"),
    [
        ([(10, 0.5), (20, 0.7)], 0.6, True, 15),
        ([(10, 0.5), (20, 0.7)], 0.4, True, 10),
        ([(10, 0.5), (20, 0.7)], 0.8, True, None),
        ([(10, 9.0), (20, 5.0), (30, 4.0)], 5.0, False, 20),
        ([(10, 9.0), (20, 5.0)], 6.0, False, 17.5),
    ],
)
def test_steps_to_a_score(curve, score, larger, expected):
    assert time.steps_to(curve, score, larger) == pytest.approx(expected) if expected else expected is None


def test_an_interval_is_students():
    mean = time.Mean.of([1.0, 2.0, 3.0])
    assert (mean.value, mean.half) == pytest.approx((2.0, 4.302653 / math.sqrt(3)))
    assert mean.text(1) == "2.0 ± 2.5"
    assert time.Mean.of([2.0]).text(1) == "2.0"


def test_time_to_accuracy_is_steps_times_seconds_a_step():
    """The target is a point below the mean of the baseline; one seed of topk does not reach it."""
    found = tried(PLAIN, (0.1, 0.9, 0.2)) | tried(TOPK, (0.1, 0.9, 0.2)) | tried("qsgd(bits=4)", (0.1, 0.9, 0.2))
    for seed in range(SEEDS):
        found[Training("mlp", PLAIN, 1.0, seed=seed)] = result((100, 0.8), (200, 0.9))
        found[Training("mlp", TOPK, 1.0, seed=seed)] = result((100, 0.5), (200, 0.88 if seed else 0.9))
        found[Training("mlp", "qsgd(bits=4)", 1.0, seed=seed)] = result((100, 0.89), (200, 0.9))
    cells = {
        Cell(4, 100, "ddp", "mlp", "DDP, fp32", round): {"seconds": seconds} for round, seconds in enumerate((1, 9, 2))
    }
    cells |= {Cell(4, 100, stack, "mlp", "qsgd(bits=4)"): {"seconds": s} for stack, s in (("ddp", 3), ("horovod", 4))}
    cells |= {Cell(4, 100, "ddp", "mlp", TOPK): {"seconds": 1}}
    times = time.Times(found, cells)
    assert times.target("mlp") == pytest.approx(0.89)
    plain = times.to_target(100, "mlp", "DDP, fp32")
    assert (plain.step, plain.seconds.value) == pytest.approx((2, 2 * 190))
    assert times.to_target(100, "mlp", TOPK).seconds is None
    other = times.to_target(100, "mlp", "qsgd(bits=4)")
    assert (other.stack, other.seconds.value, other.seconds.half) == pytest.approx(("ddp", 300, 0))
    assert times.to_target(1000, "mlp", TOPK) is None
    assert times.fastest(4, 100, "mlp", ["DDP, fp32", TOPK]) == (TOPK, 1)


def test_a_training_ends_with_its_curve_and_bytes(tmp_path):
    (tmp_path / "mnist").mkdir()
    write_mnist(tmp_path / "mnist", True)
    for part in ("valid", "test"):
        plain = accuracy.train(Training("mlp", PLAIN, 1.0, workers=2, part=part), str(tmp_path))
        sketch = accuracy.train(Training("mlp", "sketched_sgd", 1.0, workers=2, part=part), str(tmp_path))
        assert plain["curve"][-1][0] == plain["steps"] == sketch["steps"]
        assert plain["bytes_sent"] == 4 * plain["parameters"] * plain["steps"]
        assert 30 < plain["bytes_sent"] / sketch["bytes_sent"] < 45
        assert 0 <= plain["curve"][-1][1] <= 1


def test_the_document_is_what_the_results_say(tmp_path):
    command = [sys.executable, "-m", "benchmarks.lab", "--data", ".", "--draw", "--output", str(tmp_path / "out.md")]
    subprocess.run(command, check=True, cwd=ROOT)
    assert (tmp_path / "out.md").read_text() == (ROOT / "docs" / "results" / "training-time.md").read_text()


def test_cells_and_trainings_are_read_back(tmp_path):
    for kind, item in ((Cell, steps.cells()[-1]), (whole.Whole, whole.Whole("mlp", "ddp", TOPK, 100, 1.0))):
        file = ResultsFile(tmp_path / f"{kind.__name__}.jsonl", kind)
        file.add(item, {"seconds": 1.0})
        assert json.loads(file.path.read_text())["seconds"] == 1.0
        assert list(file.read()) == [item]


def write_reviews(folder):
    """Sentences like those of rt-polarity: words of their own for each kind, among others."""
    folder.mkdir()
    for kind, words in (("neg", "bad dull"), ("pos", "good fine")):
        lines = [f"film {number % 50} {words} {number % 7}" for number in range(400)]
        (folder / f"rt-polarity.{kind}").write_text("\n".join(lines), encoding="latin-1")


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="hosts need root and iproute2")
def test_one_row_is_reproduced(tmp_path):
    """The whole way: trainings, steps on hosts behind links, and a training from start to end."""
    write_reviews(tmp_path / "rt-polarity")
    command = [sys.executable, "-m", "benchmarks.lab", "--data", str(tmp_path), "--results", str(tmp_path), "--quick"]
    env = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True, env=env, timeout=280)
    rows = [re.split(r"\s*│\s*", line.strip("│ \n")) for line in done.stdout.splitlines() if line.startswith("│")]
    assert [row[0] for row in rows] == ["DDP, fp32", "DDP, fp16 hook", TOPK]
    for row in rows:
        steps, milliseconds, seconds = int(row[1]), int(row[2]), float(row[4])
        assert seconds == pytest.approx(steps * milliseconds / 1000, rel=0.2, abs=0.2)
    assert float(rows[-1][5]) > 0
