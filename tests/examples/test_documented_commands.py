"""The command lines in README, documents and docstrings are ones that the programs take."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from mnist_files import write_mnist
from sklearn.datasets import dump_svmlight_file

pytestmark = pytest.mark.jobs

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), ROOT / "mpi/README.md"]
PAGES += [ROOT / "tests/README.md", *ROOT.glob("examples/**/train*.py"), *ROOT.glob("mpi/*.py")]
STARTS = r"(?:[A-Z_]+=\S+ )*(?:mpirun|horovodrun|torchrun|python|hvd-compress|make|scripts/\w+\.sh)\b"
OF_THE_READER = {"train.py", "steps.py", "FILE"}  # programs that a page shows or asks for
READ = (
    "hvd-compress",
    "-m benchmarks.",
    "mpi/",
    *(f"examples/{of}" for of in ("torch", "tensorflow", "keras", "demo")),
)
PLACEHOLDERS = {"D": "1000000", "K": "1000"}


class Line(NamedTuple):
    """A command line of a page."""

    page: str
    text: str

    @property
    def words(self):
        words = [PLACEHOLDERS.get(word, word) for word in shlex.split(self.text, comments=True)]
        mentioned = len(words) == 2 and words[0] == "hvd-compress"  # a command, without what it is given
        return [*words, "--help"] if mentioned else words

    @property
    def program(self):
        """The program and its arguments: from "hvd-compress", "-m" or a file on; None for make and scripts."""
        words = self.words
        for number, word in enumerate(words):
            if word in ("hvd-compress", "-m") or word.endswith(".py") or word == "FILE":
                return words[number:]
        return None


def documented():
    for path in PAGES:
        text, page = path.read_text(), str(path.relative_to(ROOT))
        lines = re.findall(rf"^(?: {{4}})?({STARTS} [^=].*)$", text, re.MULTILINE)
        inline = re.findall(rf"(?<!`)`({STARTS} [^`]+)`(?!`)", text) if path.suffix == ".md" else []
        for line in [*lines, *(" ".join(found.split()) for found in inline)]:
            yield Line(page, line)


LINES = list(dict.fromkeys(documented()))


def test_all_kinds_of_lines_are_found():
    programs = {line.program[0] if line.program else line.words[0] for line in LINES}
    assert {"examples/torch/train.py", "mpi/asylpg.py", "hvd-compress", "-m", "make"} <= programs
    assert len(LINES) > 40


def test_what_is_no_program_of_python_is_there():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in LINES:
        if line.words[0] == "make":
            assert {word for word in line.words[1:] if "=" not in word} <= set(targets), line
        assert not line.words[0].startswith("scripts/") or (ROOT / line.words[0]).exists(), line


@pytest.fixture(scope="module")
def outcomes():
    lines = [line for line in LINES if line.program and line.program[0] not in OF_THE_READER]
    tests = [line for line in lines if line.program[:2] == ["-m", "pytest"] or "pytest" in line.words]
    for line in tests:
        paths = [word for word in line.words if word.startswith("tests/")]
        assert paths, line
        assert all((ROOT / path).exists() for path in paths), line
    for line in lines:
        assert not line.program[0].endswith(".py") or (ROOT / line.program[0]).exists(), line
    lines = [line for line in lines if line not in tests and " ".join(line.program).startswith(READ)]
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "helpers" / "parse_lines.py"],
        input=json.dumps([line.program for line in lines]),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(lines, json.loads(done.stdout.splitlines()[-1]), strict=True))


def test_programs_take_the_lines(outcomes):
    assert len(outcomes) > 30
    assert {line: said for line, said in outcomes.items() if said} == {}


# What makes a program short, by how its line begins.
SHORT = {
    "examples/": ["--epochs", "1", "--limit", "200"],
    "mpi/": ["--max-epochs", "2"],
    "hvd-compress bench --servers": ["--size", "1000", "--seconds", "0.1", "--repetitions", "1"],
    "hvd-compress bench": ["--size", "20000", "--repetitions", "1", "--only", "topk"],
    "hvd-compress list": [],
    "hvd-compress size": [],
}


def short(line):
    if (
        line.program is None
        or line.program[0].endswith("train_many.py")
        or "cuda" in line.words
        or "--help" in line.words
        or "--plot" in line.words
    ):
        return None
    text = " ".join(line.program)
    return next((more for begins, more in SHORT.items() if text.startswith(begins)), None)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What stands for DIR and FILE, by task."""
    mnist, cifar10, rows = (tmp_path_factory.mktemp(name) for name in ("mnist", "cifar10", "rows"))
    write_mnist(mnist, True)
    random = np.random.default_rng(0)
    for name in [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]:
        (cifar10 / name).write_bytes(random.integers(0, 10, (32, 3073), np.uint8).tobytes())
    dump_svmlight_file(random.standard_normal((600, 20)), random.integers(0, 2, 600), str(rows / "rows.svm"))
    by_task = {"mnist": mnist, "softmax": mnist, "mlp": mnist, "cifar10": cifar10, "logistic": rows / "rows.svm"}
    return {**by_task, "text": ROOT / "README.md"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "line", [line for line in LINES if short(line) is not None], ids=lambda line: f"{line.page}: {line.text}"
)
def test_a_line_runs(line, files, tmp_path):
    words = line.words
    task = words[words.index("--task") + 1] if "--task" in words else "logistic"
    words = [str(files[task]) if word in ("DIR", "FILE") else word for word in words]
    for name in ("examples/", "mpi/"):
        words = [str(ROOT / word) if word.startswith(name) else word for word in words]
    if "--hostfile" in words:
        words = [word for word in words if word not in ("--hostfile", str(ROOT / "mpi" / "hosts"))]
    command = [sys.executable, *words[1:]] if words[0] == "python" else words
    done = subprocess.run(
        [*command, *short(line)], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
