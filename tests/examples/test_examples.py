"""The examples, as a user starts them."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mnist_files import write_mnist

pytestmark = pytest.mark.jobs

ROOT = Path(__file__).parents[2]
SEVERAL = Path(__file__).with_name("several.py")
TRAIN = {name: ROOT / "examples" / name / "train.py" for name in ("torch", "tensorflow", "keras")}
TRAIN_DDP = ROOT / "examples" / "torch" / "train_ddp.py"
MPIRUN = ["mpirun", "-np", "2"]
HOROVODRUN = ["horovodrun", "-np", "2"]
KEYS = {"accuracy", "loss", "bytes_sent", "dense_bytes", "seconds", "compression_seconds", "communication_seconds"}
KEYS |= {"ranks", "compression"}
TEXT = ["--task", "text", "--compression", "powersgd", "--optimizer", "adam", "--epochs", "1", "--limit", "300"]


def start(launcher, *args, example="torch", **more):
    command = [*launcher, sys.executable, str(TRAIN[example]), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, **more)


def several(folder, launcher, example, lines):
    """Call an example's main() for each command line, in one start; return what `start` returns for each."""
    command = [*launcher, sys.executable, str(SEVERAL), str(folder), json.dumps(lines)]
    path = os.pathsep.join([str(TRAIN[example].parent), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    of_ranks = [json.loads(file.read_text()) for file in folder.glob("*.json")]
    for line, outcomes in zip(lines, zip(*of_ranks, strict=True), strict=True):
        status, out, err = zip(*outcomes, strict=True)
        yield subprocess.CompletedProcess(line, max(status), "".join(out), "".join(err))


def result(done):
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.rstrip().splitlines()[-1]
    return json.loads(re.sub(r"^\[[\d,]+\]<stdout>:\s*", "", last))


@pytest.mark.parametrize(
    ("example", "launcher"),
    [
        ("torch", MPIRUN),
        ("torch", [*HOROVODRUN, "--gloo"]),
        ("tensorflow", MPIRUN),
        ("keras", HOROVODRUN),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_train_learns_and_ends_with_json(example, launcher):
    found = result(start(launcher, "--compression", "topk(ratio=0.05)", "--epochs", "4", example=example))
    assert found.keys() >= KEYS
    assert found["accuracy"] > 0.9
    assert found["ranks"] == 2
    assert found["compression"] == "topk(ratio=0.05)"
    assert 10 < found["dense_bytes"] / found["bytes_sent"] < 32 / (1.6 + 0.4)
    assert found["dense_bytes"] == 4 * found["parameters"] * found["steps"]


@pytest.mark.parametrize("lines", [["--compression", "topk(ratio=0.05)", "--epochs", "4"], TEXT])
def test_train_ddp_gives_what_horovod_gives(lines):
    """The same line ends with the same weights, so with the same accuracy and loss."""
    command = ["torchrun", "--standalone", "--nproc-per-node", "2", str(TRAIN_DDP), *lines]
    ddp = result(subprocess.run(command, capture_output=True, text=True, timeout=200, check=False))
    horovod = result(start(MPIRUN, *lines))
    assert ddp.keys() == horovod.keys()
    for key in ("accuracy", "loss", "steps", "parameters", "dense_bytes", "task", "model"):
        assert ddp[key] == horovod[key], key


def test_the_script_of_the_quick_start(tmp_path):
    page = (ROOT / "docs" / "quickstart" / "ddp.md").read_text()
    [code] = re.findall(r"torchrun --nproc-per-node 2 train.py`:\n\n```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "train.py").write_text(code)
    command = ["torchrun", "--standalone", "--nproc-per-node", "2", "train.py"]
    done = subprocess.run(command, cwd=tmp_path, timeout=100, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("'steps': 100") == 2
    assert "failed" not in done.stderr
    assert (tmp_path / "rank1.pt").exists()


def test_train_ddp_without_torchrun_says_so():
    done = subprocess.run([sys.executable, str(TRAIN_DDP)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("train_ddp.py: start it with torchrun")


BAD = [
    (["--compression", "topq"], "unknown compressor 'topq'; known are: bf16, dgc"),
    (["--rule", "embed.*=topk"], "rule 'embed.*' matches none of the"),
    (["--rule", "*=topq"], "rule '*': unknown compressor 'topq'"),
    (["--status", "/nowhere/run.json"], "--status must be a file in a folder that exists; got /nowhere/run.json"),
    (["--task", "mnist"], "the task mnist needs --data DIR, a folder with {train,t10k}-"),
    (["--task", "cifar10", "--data", "/nowhere"], "--data /nowhere is no folder; cifar10 needs one with"),
    (["--task", "cifar10", "--data", str(ROOT)], "lacks data_batch_1.bin and test_batch.bin; cifar10 needs"),
    (["--task", "mnist", "--data", str(ROOT)], "has neither train-images-idx3-ubyte.gz nor train-images-idx3-ubyte"),
    (["--task", "text", "--model", "mlp"], "--model mlp is for images"),
    (["--task", "text", "--data", str(ROOT / "setup.cfg")], "cannot be read as text"),
]

MODELS = [
    ("torch", "cnn", "adam"),
    ("torch", "resnet9", "sgd"),
    ("tensorflow", "cnn", "adam"),
    ("keras", "resnet9", "sgd"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folders of files, by name: two of MNIST, one of CIFAR-10."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("compressed", "plain", "cifar10")}
    write_mnist(folders["compressed"], True)
    write_mnist(folders["plain"], False)
    random = np.random.default_rng(0)
    for name in ("data_batch_1.bin", "data_batch_2.bin", "test_batch.bin"):
        labels = random.integers(0, 10, (64, 1), np.uint8)
        rows = np.concatenate([labels, np.repeat(25 * labels, 3072, axis=1)], axis=1)
        (folders["cifar10"] / name).write_bytes(rows.tobytes())
    return folders


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A function that returns what came of an example's line, by name; an example is started once for all its lines."""
    lines = {example: {"bad": BAD[0][0]} for example in TRAIN}
    for example, model, optimizer in MODELS:
        lines[example][model, optimizer] = ["--model", model, "--optimizer", optimizer, "--compression", "powersgd"]
        lines[example][model, optimizer] += ["--epochs", "1", "--limit", "256"]
    for folder in ("compressed", "plain"):
        mnist = ["--task", "mnist", "--data", str(data[folder]), "--compression", "qsgd", "--epochs", "5"]
        lines["torch"][folder] = mnist
    cifar10 = ["--task", "cifar10", "--data", str(data["cifar10"]), "--model", "cnn", "--epochs", "1"]
    lines["torch"]["cifar10"] = cifar10
    rules = ["--rule", "*.bias=none", "--rule", "*=qsgd(bits=8)", "--epochs", "1", "--limit", "128"]
    lines["torch"]["rules"] = rules

    @functools.cache
    def outcomes(example):
        done = several(tmp_path_factory.mktemp("outcomes"), MPIRUN, example, list(lines[example].values()))
        return dict(zip(lines[example], done, strict=True))

    return lambda example, name: outcomes(example)[name]


@pytest.mark.parametrize(("example", "model", "optimizer"), MODELS)
def test_models_and_optimizers(example, model, optimizer, trained):
    found = result(trained(example, (model, optimizer)))
    assert found["model"] == model
    assert np.isfinite(found["loss"])


@pytest.mark.parametrize("folder", ["compressed", "plain"])
def test_mnist(folder, trained):
    assert result(trained("torch", folder))["accuracy"] == 1


def test_cifar10(trained):
    found = result(trained("torch", "cifar10"))
    assert found["test_examples"] == 64
    assert found["steps"] == 2


def test_rules_on_the_command_line(trained):
    found = result(trained("torch", "rules"))
    assert found["rules"] == ["*.bias=none", "*=qsgd(bits=8)"]
    assert 3.5 < found["dense_bytes"] / found["bytes_sent"] < 4


@pytest.mark.parametrize(("args", "message"), BAD[:2], ids=[message for _, message in BAD[:2]])
def test_bad_input_is_told_once_and_ends_the_job(args, message):
    done = start(MPIRUN, *args)
    assert done.returncode == 2
    assert done.stderr.count(message) == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("example", ["tensorflow", "keras"])
def test_bad_input_is_told_once_by_the_other_examples(example, trained):
    done = trained(example, "bad")
    assert done.returncode == 2
    assert done.stderr.count(BAD[0][1]) == 1
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A folder of files that are cut off."""
    folder = tmp_path_factory.mktemp("broken")
    write_mnist(folder, False)
    images = folder / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1])
    (folder / "data_batch_1.bin").write_bytes(bytes(3072))
    (folder / "test_batch.bin").write_bytes(bytes(3073))
    return folder


@pytest.fixture(scope="module")
def refused(broken, tmp_path_factory):
    """What the example of PyTorch says to lines that it refuses, and to --help, by the line; without a launcher."""
    lines = [args for args, _ in BAD[2:]]
    lines += [["--task", task, "--data", str(broken)] for task in ("mnist", "cifar10")]
    lines += [["--help"], ["--epochs", "0"], ["--rule", "none"]]
    outcomes = several(tmp_path_factory.mktemp("outcomes"), [], "torch", lines)
    return {" ".join(line): done for line, done in zip(lines, outcomes, strict=True)}


@pytest.mark.parametrize(("args", "message"), BAD[2:], ids=[message for _, message in BAD[2:]])
def test_bad_input_is_told_once(args, message, refused):
    done = refused[" ".join(args)]
    assert done.returncode == 2
    assert done.stderr.count(message) == 1
    assert "Traceback" not in done.stderr


def test_broken_files_are_named(broken, refused):
    done = refused[f"--task mnist --data {broken}"]
    assert done.returncode == 2
    assert f"{broken / 'train-images-idx3-ubyte'} is not an IDX file of unsigned bytes, or is cut off" in done.stderr
    done = refused[f"--task cifar10 --data {broken}"]
    assert done.returncode == 2
    assert "its size is no multiple of 3073 bytes" in done.stderr


def test_help_names_the_defaults_and_the_compressors(refused):
    done = refused["--help"]
    assert done.returncode == 0
    for word in ("default: digits", "powersgd", "(if none: 10;"):
        assert word in " ".join(done.stdout.split())
    done = refused["--epochs 0"]
    assert done.returncode == 2
    assert "--epochs must be at least 1; got 0" in done.stderr
    done = refused["--rule none"]
    assert done.returncode == 2
    assert "--rule must be PATTERN=SPEC; got none" in done.stderr


@pytest.mark.parametrize(
    ("example", "launcher"),
    [("torch", MPIRUN), ("torch", HOROVODRUN), ("tensorflow", MPIRUN), ("keras", MPIRUN)],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_ctrl_c_ends_it_cleanly(example, launcher):
    command = [*launcher, sys.executable, str(TRAIN[example]), "--epochs", "100000"]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    seen = b""
    try:
        while b"loss=" not in seen:
            chunk = os.read(job.stdout.fileno(), 65536)
            assert chunk, seen.decode()
            seen += chunk
        os.killpg(job.pid, signal.SIGINT)
        rest, _ = job.communicate(timeout=30)
    finally:
        job.kill()
    assert job.returncode != 0
    assert b"Traceback" not in rest, rest.decode()


@pytest.mark.parametrize(
    "example", ["torch", *(pytest.param(e, marks=pytest.mark.slow) for e in ("keras", "tensorflow"))]
)
def test_status_is_what_watch_shows(example, tmp_path):
    path = tmp_path / "run.json"
    lines = ["--compression", "topk(ratio=0.1)", "--epochs", "1", "--limit", "200", "--status", str(path)]
    said = result(start(MPIRUN, *lines, example=example))
    told = json.loads(path.read_text())
    assert (told["step"], told["steps"], told["ended"]) == (said["steps"], said["steps"], True)
    assert told["stats"]["bytes_sent"] == said["bytes_sent"]
    assert sum(bucket["coordinates"] for bucket in told["stats"]["buckets"]) == said["parameters"]
    shown = subprocess.run(["hvd-compress", "watch", path], capture_output=True, text=True, timeout=60, check=True)
    assert f"step {said['steps']} of {said['steps']}" in shown.stdout
    assert "topk(ratio=0.1)" in shown.stdout
    assert "the job has ended" in shown.stdout


DEMO = [sys.executable, str(ROOT / "examples" / "demo.py"), "--seeds", "1"]


@pytest.mark.parametrize("links", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_demo(links, tmp_path):
    command = [*DEMO, "--epochs", "1", "--output", str(tmp_path)]
    env = dict(os.environ)
    if not links:  # as on a machine without iproute2
        tools = tmp_path / "tools"
        tools.mkdir()
        for name in ("bash", "sh", "env", "uname", "which"):
            (tools / name).symlink_to(shutil.which(name))
        env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), str(tools)])
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Look at the seconds beside the accuracies: " in done.stdout
    assert links or "seconds behind them are computed from the bytes" in done.stderr
    assert ("computed from the bytes" in done.stdout) == ("are computed from the bytes" in done.stderr)
    results = json.loads((tmp_path / "demo.json").read_text())
    specs = ["none", "fp16", "topk(ratio=0.01)", "qsgd(bits=4)", "powersgd(rank=2)", "sketched_sgd"]
    assert list(results) == [*specs, "topk(ratio=0.01), Keras"]
    assert all(name in done.stdout for name in results)
    assert results["topk(ratio=0.01), Keras"][0]["bytes_sent"] == pytest.approx(
        results["topk(ratio=0.01)"][0]["bytes_sent"], rel=0.02
    )
    sent = {compression: runs[0]["bytes_sent"] for compression, runs in results.items()}
    assert sent["topk(ratio=0.01)"] < sent["powersgd(rank=2)"] < sent["qsgd(bits=4)"] < sent["fp16"] < sent["none"]
    assert (tmp_path / "demo.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_demo_leaves_no_process_behind(tmp_path):
    mark = "--epochs 987"  # what a rank's command line has
    with subprocess.Popen([*DEMO, *mark.split(), "--output", str(tmp_path)], stderr=subprocess.PIPE) as demo:
        until = time.monotonic() + 60
        while not _running(mark):
            assert time.monotonic() < until
            time.sleep(0.1)
        demo.terminate()
        _, said = demo.communicate(timeout=30)
    assert demo.returncode == 1
    assert said.rstrip().endswith(b"interrupted")
    until = time.monotonic() + 10
    while _running(mark):
        assert time.monotonic() < until
        time.sleep(0.1)


def _running(mark: str) -> bool:
    """Tell whether there is a process with this in its command line."""
    return subprocess.run(["pgrep", "-f", f"train_many.*{mark}"], capture_output=True, check=False).returncode == 0
