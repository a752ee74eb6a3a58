"""Studies: each run adds a line to the study's file and is done once, and the document says what the file says."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mnist_files import write_mnist

from benchmarks.common.results import ResultsFile
from benchmarks.common.study import run_missing
from benchmarks.sketched_sgd.run import Run
from benchmarks.sketched_sgd.training import train

ROOT = Path(__file__).parents[2]

SKETCH = Run("mnist", "mlp", "sketched_sgd(budget=0.1)", workers=4, batch=32, epochs=4, lr=0.05)
PLAIN = Run("mnist", "mlp", "none", workers=4, batch=32, epochs=4, lr=0.05)


def test_trainings_are_kept_and_not_repeated(tmp_path):
    (tmp_path / "mnist").mkdir()
    write_mnist(tmp_path / "mnist", True)
    file = ResultsFile(tmp_path / "results" / "study.jsonl", Run)
    run_missing([SKETCH], train, file, str(tmp_path), processes=1)
    kept = file.path.read_text()
    run_missing([PLAIN, SKETCH], train, file, str(tmp_path), processes=1)
    found = file.read()
    assert file.path.read_text().startswith(kept)  # not trained again
    assert list(found) == [SKETCH, PLAIN]
    assert found[PLAIN]["bytes_sent"] == found[PLAIN]["bytes_received"] == found[PLAIN]["dense_bytes"]
    assert 8 < found[SKETCH]["dense_bytes"] / found[SKETCH]["bytes_sent"] < 10
    assert found[PLAIN]["accuracy"] == found[SKETCH]["accuracy"] == 1


def test_a_line_that_was_cut_off_is_ignored_and_then_replaced(tmp_path):
    file = ResultsFile(tmp_path / "study.jsonl", Run)
    file.add(SKETCH, {"accuracy": 0.5})
    whole = file.path.read_text()
    file.add(PLAIN, {"accuracy": 0.25})
    cut_off = file.path.read_bytes()[:-3]  # as a kill leaves it
    file.path.write_bytes(cut_off)
    assert list(file.read()) == [SKETCH]
    file.add(PLAIN, {"accuracy": 0.75})
    assert file.path.read_text().startswith(whole)
    assert {run: result["accuracy"] for run, result in file.read().items()} == {SKETCH: 0.5, PLAIN: 0.75}


def test_a_result_of_other_defaults_of_the_compressor_does_not_count(tmp_path):
    file = ResultsFile(tmp_path / "study.jsonl", Run)
    file.add(PLAIN, {"accuracy": 0.25})
    file.add(SKETCH, {"accuracy": 0.5})
    file.path.write_text(file.path.read_text().replace("p2=1.0", "p2=2.0"))
    assert list(file.read()) == [PLAIN]


def test_a_file_of_something_else_is_refused_with_the_number_of_the_line(tmp_path):
    file = ResultsFile(tmp_path / "study.jsonl", Run)
    file.add(PLAIN, {"accuracy": 0.25})
    for wrong in ("no JSON", json.dumps({"task": "mnist"}), "[1]"):
        file.path.write_text(file.path.read_text().split("\n", 1)[0] + f"\n{wrong}\n")
        with pytest.raises(ValueError, match=r"study\.jsonl, line 2: "):
            file.read()


def test_several_processes_add_to_one_file(tmp_path):
    code = (
        "import sys; from pathlib import Path; from benchmarks.common.results import ResultsFile; "
        "from benchmarks.sketched_sgd.run import Run; file = ResultsFile(Path(sys.argv[1]), Run); "
        "[file.add(Run('mnist', 'mlp', 'none', workers=4, batch=8, epochs=i, lr=0.1, seed=int(sys.argv[2])), "
        "{'curve': [0.5] * 2000}) for i in range(50)]"
    )
    path = tmp_path / "study.jsonl"
    jobs = [subprocess.Popen([sys.executable, "-c", code, str(path), str(i)], cwd=ROOT) for i in range(3)]
    assert [job.wait() for job in jobs] == [0, 0, 0]
    assert sorted((run.seed, run.epochs) for run in ResultsFile(path, Run).read()) == [
        (seed, epochs) for seed in range(3) for epochs in range(50)
    ]


@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_a_residual_is_clipped(tmp_path, clip):
    (tmp_path / "mnist").mkdir()
    write_mnist(tmp_path / "mnist", False)
    run = Run("mnist", "mlp", "topk", workers=2, batch=32, epochs=1, lr=0.05, clip_residual=clip)
    norm = train(run, str(tmp_path))["norms"][-1]["residual"]
    assert norm < 0.01 * 10 if clip else norm > 0.1


@pytest.mark.parametrize("study", ["sketched-sgd", "double-quantization"])
def test_sections_are_drawn_from_what_is_there(tmp_path, study):
    """The document is what the results that are kept with the project say, and needs no data."""
    command = [sys.executable, "-m", f"benchmarks.{study.replace('-', '_')}", "--data", ".", "--draw"]
    subprocess.run([*command, "--output", str(tmp_path / "out.md")], check=True, cwd=ROOT)
    document = (tmp_path / "out.md").read_text()
    assert document == (ROOT / "docs" / "results" / f"{study}.md").read_text()
    for picture in re.findall(r"\((.*\.png)\)", document):
        assert (tmp_path / picture).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
