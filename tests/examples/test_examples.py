"""The examples, as a user starts them."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mnist_files import write_mnist

pytestmark = pytest.mark.jobs

ROOT = Path(__file__).parents[2]
TRAIN = {name: ROOT / "examples" / name / "train.py" for name in ("torch", "tensorflow", "keras")}
MPIRUN = ["mpirun", "--allow-run-as-root", "--map-by", ":OVERSUBSCRIBE", "-np", "2"]
HOROVODRUN = ["horovodrun", "-np", "2"]
KEYS = {"accuracy", "loss", "bytes_sent", "dense_bytes", "seconds", "compression_seconds", "communication_seconds"}
KEYS |= {"ranks", "compression"}


def start(launcher, *args, example="torch", **more):
    command = [*launcher, sys.executable, str(TRAIN[example]), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, **more)


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


@pytest.mark.parametrize(
    ("example", "model", "optimizer"),
    [("torch", "cnn", "adam"), ("torch", "resnet9", "sgd"), ("tensorflow", "cnn", "adam"), ("keras", "resnet9", "sgd")],
)
def test_models_and_optimizers(example, model, optimizer):
    found = result(
        start(
            MPIRUN,
            *("--model", model, "--optimizer", optimizer, "--compression", "powersgd"),
            *("--epochs", "1", "--limit", "256"),
            example=example,
        )
    )
    assert found["model"] == model
    assert np.isfinite(found["loss"])


@pytest.mark.parametrize("compress", [True, False])
def test_mnist(tmp_path, compress):
    write_mnist(tmp_path, compress)
    found = result(start(MPIRUN, "--task", "mnist", "--data", str(tmp_path), "--compression", "qsgd", "--epochs", "5"))
    assert found["accuracy"] == 1


def test_cifar10(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in ("data_batch_1.bin", "data_batch_2.bin", "test_batch.bin"):
        labels = random.integers(0, 10, (64, 1), np.uint8)
        (folder / name).write_bytes(np.concatenate([labels, np.repeat(25 * labels, 3072, axis=1)], axis=1).tobytes())
    found = result(start(MPIRUN, "--task", "cifar10", "--data", str(tmp_path), "--model", "cnn", "--epochs", "1"))
    assert found["test_examples"] == 64
    assert found["steps"] == 2


BAD = [
    (["--compression", "topq"], "unknown compressor 'topq'; known are: bf16, dgc"),
    (["--rule", "embed.*=topk"], "rule 'embed.*' matches none of the"),
    (["--rule", "*=topq"], "rule '*': unknown compressor 'topq'"),
    (["--task", "mnist"], "the task mnist needs --data DIR, a folder with {train,t10k}-"),
    (["--task", "cifar10", "--data", "/nowhere"], "--data /nowhere is no folder; cifar10 needs one with"),
    (["--task", "cifar10", "--data", str(ROOT)], "lacks data_batch_1.bin and test_batch.bin; cifar10 needs"),
    (["--task", "mnist", "--data", str(ROOT)], "has neither train-images-idx3-ubyte.gz nor train-images-idx3-ubyte"),
]


@pytest.mark.parametrize(
    ("launcher", "args", "message"),
    [(MPIRUN if number < 2 else [], *case) for number, case in enumerate(BAD)],
    ids=[message for _, message in BAD],
)
def test_bad_input_is_told_once_and_ends_the_job(launcher, args, message):
    done = start(launcher, *args)
    assert done.returncode == 2
    assert done.stderr.count(message) == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("example", ["tensorflow", "keras"])
def test_bad_input_is_told_by_the_other_examples(example):
    args, message = BAD[0]
    done = start(MPIRUN, *args, example=example)
    assert done.returncode == 2
    assert done.stderr.count(message) == 1
    assert "Traceback" not in done.stderr


def test_broken_files_are_named(tmp_path):
    write_mnist(tmp_path, False)
    broken = tmp_path / "train-images-idx3-ubyte"
    broken.write_bytes(broken.read_bytes()[:-1])
    done = start([], "--task", "mnist", "--data", str(tmp_path))
    assert done.returncode == 2
    assert f"{broken} is not an IDX file of unsigned bytes, or is cut off" in done.stderr
    (tmp_path / "data_batch_1.bin").write_bytes(bytes(3072))
    (tmp_path / "test_batch.bin").write_bytes(bytes(3073))
    done = start([], "--task", "cifar10", "--data", str(tmp_path))
    assert done.returncode == 2
    assert "its size is no multiple of 3073 bytes" in done.stderr


def test_help_names_the_defaults_and_the_compressors():
    done = start([], "--help")
    assert done.returncode == 0
    for word in ("default: digits", "powersgd", "(default: 10)"):
        assert word in done.stdout
    done = start([], "--epochs", "0")
    assert done.returncode == 2
    assert "--epochs must be at least 1; got 0" in done.stderr
    done = start([], "--rule", "none")
    assert done.returncode == 2
    assert "--rule must be PATTERN=SPEC; got none" in done.stderr


def test_rules_on_the_command_line():
    args = ["--rule", "*.bias=none", "--rule", "*=qsgd(bits=8)", "--epochs", "1", "--limit", "128"]
    found = result(start(MPIRUN, *args))
    assert found["rules"] == ["*.bias=none", "*=qsgd(bits=8)"]
    assert 3.5 < found["dense_bytes"] / found["bytes_sent"] < 4


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


def test_demo(tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "demo.py"), "--epochs", "1", "--seeds", "1"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path)], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
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
