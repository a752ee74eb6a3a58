"""The package as it is imported and installed."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hvd_compress
from hvd_compress import Layout, methods, parse
from hvd_compress.compressors.schedule import END
from hvd_compress.torch.compression import Compression

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("module", ["hvd_compress", "hvd_compress.cli"])
def test_importing_it_imports_no_framework(module):
    code = f"import sys, {module}; print({{'torch', 'tensorflow', 'horovod', 'mpi4py'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(("framework", "other"), [("torch", "tensorflow"), ("tensorflow", "torch")])
def test_frameworks_do_not_import_each_other(framework, other):
    code = f"import sys, hvd_compress.{framework}; print('{other}' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_a_horovod_without_the_framework_is_named_when_it_is_asked_for(framework):
    code = f"import sys; sys.modules['horovod.{framework}'] = None; import hvd_compress.{framework} as hvdc; print(1); "
    if framework == "torch":
        code += "import torch; p = torch.zeros(3, requires_grad=True); hvdc.DistributedOptimizer(torch.optim.SGD([p]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == ("1\n" if framework == "torch" else "")  # PyTorch has other transports
    assert (
        f"ImportError: a Horovod that was built with {'PyTorch' if framework == 'torch' else 'TensorFlow'}"
        in done.stderr
    )
    assert "make setup" in done.stderr
    assert ('transport="torch.distributed"' in done.stderr) == (framework == "torch")


def test_the_script_that_builds_horovod_says_what_it_lacks(tmp_path):
    script = ["bash", str(ROOT / "scripts" / "horovod.sh")]
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    for args, message in (
        ([], "name the environment's interpreter: bash scripts/horovod.sh .venv/bin/python"),
        (["/nowhere/python"], "/nowhere/python is no program"),
        ([str(bare / "bin" / "python")], "has neither PyTorch nor TensorFlow"),
    ):
        done = subprocess.run([*script, *args], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert message in done.stderr
    done = subprocess.run([*script, "--help"], capture_output=True, text=True, check=True)
    assert "bash scripts/horovod.sh PYTHON" in done.stdout


def test_versions_agree():
    version = hvd_compress.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    newest = re.search(r"^## (.*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest[1].split(",")[0] == version


@pytest.mark.slow
def test_it_installs_and_simulates_without_a_framework(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", str(ROOT)], check=True, timeout=250)
    code = (
        "import numpy as np; from hvd_compress import Simulation, parse; x = np.ones(100, np.float32); "
        "print(Simulation(parse('topk(ratio=0.1)'), 100, 2).reduce([x, x])[0].mean.sum())"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "10.0"


def test_algorithms_import_neither_framework_nor_transport():
    for path in (ROOT / "hvd_compress" / "compressors").glob("*.py"):
        for line in path.read_text().splitlines():
            if line.startswith(("import ", "from ")):
                assert not any(word in line for word in ("torch", "horovod", "mpi", "transports", "numpy")), line


def test_readme_and_documentation_have_every_compressor():
    readme = (ROOT / "README.md").read_text()
    pages = "".join(path.read_text() for path in (ROOT / "docs" / "methods").glob("*.md"))
    described = {name for line in re.findall(r"```{methods} (.*)", pages) for name in line.split()}
    assert described == methods().keys()
    assert all(f"`{name}`" in readme for name in methods())


def test_list_has_every_compressor_with_its_bytes():
    done = subprocess.run(["hvd-compress", "list"], capture_output=True, text=True, check=True)
    layout = Layout.of([("matrix", (1000, 1000))])
    for name in methods():
        row = next(line for line in done.stdout.splitlines() if line.startswith(f"| {name}("))
        sent = parse(name).bare.at(END).payload_bits(layout) // 8
        assert row.split("|")[7].strip().removeprefix("<= ") == str(sent)


def test_list_refuses_what_is_wrong():
    for args, message in (
        (["topq"], "unknown compressor 'topq'; known are"),
        (["--rows", "0"], "--rows must be at least 1; got 0"),
    ):
        done = subprocess.run(["hvd-compress", "list", *args], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert message in done.stderr


def test_size_tells_what_a_sketch_sends():
    command = ["hvd-compress", "size", "--parameters", "1000000", "--k", "1000", "--workers", "8"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if "|" in line]
    table = {row[0].split("(")[0]: row[1:] for row in rows}
    assert table["none"][1:] == ["4000000", "", "4000000", "1"]
    columns, sums = 1000, math.ceil(math.log(1_000_000 * 10_000 / 0.05))
    assert table["sketch, by the theory"][0] == f"{sums + 1 - sums % 2} x {columns}"
    assert int(table["topk"][3]) == 8 * int(table["topk"][1])
    split = parse("sketched_sgd(k=1000)").bare.split(1_000_000)
    assert table["sketched_sgd"][:3] == [f"{split.rows} x {split.columns}", str(4 * split.numbers), "4000"]
    for more, message in (
        ([], "times the bytes of topk; it pays with more workers"),
        (["--workers", "256"], "times fewer bytes than dense"),
        (["--k", "200000"], "times the bytes of the dense gradient, and buys nothing"),
    ):
        done = subprocess.run([*command, *more], capture_output=True, text=True, check=True)
        assert message in done.stdout
    for args, message in (
        (["--k", "1000001"], "--k must be in 1 to 1000000; got 1000001"),
        (["--delta", "1"], "--delta must be above 0 and below 1; got 1.0"),
        (["--steps", "0"], "--steps must be at least 1; got 0"),
    ):
        done = subprocess.run([*command, *args], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert message in done.stderr


def test_bench_times_writes_and_draws(tmp_path):
    report, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    specs = ["topk(ratio=0.01)", "qsgd(bits=4)", "randomk", "powersgd", "dgc", "signum", "fp16", "threshold"]
    specs += ["topk(feedback=ef21)", "none", "sketched_sgd(k=400, rows=5, columns=800, p1=0, p2=1)"]
    command = ["hvd-compress", "bench", "--size", "40000", "--repetitions", "2", "--json", str(report)]
    for more in (["--plot", str(picture)], ["--framework", "tensorflow"], ["--framework", "numpy", "--threads", "1"]):
        done = subprocess.run(
            [*command, "--only", specs[0], "--only", *specs[1:], *more], capture_output=True, text=True, check=True
        )
        assert all(f"| {name} " in done.stdout for name in specs)
        found = json.loads(report.read_text())
        assert found["size"] == 40000
        assert found["memcpy_s"] > 0
        assert [result["spec"] for result in found["results"]] == specs
        for result in found["results"]:
            compressor = parse(result["spec"])
            layout = Layout.of([("matrix", (200, 200)), ("rest", (0,))])
            assert result["encode_s"] > 0
            assert result["decode_s"] > 0
            assert (result["decode4_s"] is None) == (compressor.collectives[0] == "allreduce")
            if not compressor.varying:
                assert 8 * result["payload_bytes"] == compressor.payload_bits(layout)
    assert found["threads"] == 1
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_bench_refuses_what_is_wrong_before_it_begins():
    for args, message in (
        (["--only", "topk", "topq"], "unknown compressor 'topq'; known are"),
        (["--size", "0"], "--size must be at least 1; got 0"),
        (["--threads", "-1"], "--threads must be at least 1; got -1"),
    ):
        done = subprocess.run(["hvd-compress", "bench", *args], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert message in done.stderr


def test_all_names_exist():
    for name in hvd_compress.__all__:
        assert hasattr(hvd_compress, name)


def test_compression_functions_have_their_classes_help():
    assert "Vogels" in Compression.powersgd.__doc__
    assert Compression.none() is Compression.none
    assert repr(Compression.topk(ratio=0.1)) == "Compression('topk(ratio=0.1)')"
