"""The package as it is imported and installed."""

import subprocess
import sys
from pathlib import Path

import hvd_compress
from hvd_compress.torch.compression import Compression

ROOT = Path(__file__).parents[1]


def test_importing_it_imports_no_framework():
    code = "import sys, hvd_compress; print({'torch', 'tensorflow', 'horovod', 'mpi4py'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_algorithms_import_neither_framework_nor_transport():
    for path in (ROOT / "hvd_compress" / "compressors").glob("*.py"):
        for line in path.read_text().splitlines():
            if line.startswith(("import ", "from ")):
                assert not any(word in line for word in ("torch", "horovod", "mpi", "transports", "numpy")), line


def test_all_names_exist():
    for name in hvd_compress.__all__:
        assert hasattr(hvd_compress, name)


def test_compression_functions_have_their_classes_help():
    assert "Vogels" in Compression.powersgd.__doc__
    assert Compression.none() is Compression.none
    assert repr(Compression.topk(ratio=0.1)) == "Compression('topk(ratio=0.1)')"
