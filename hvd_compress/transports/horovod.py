"""Whether what a framework's package needs is there."""

from __future__ import annotations

import importlib

NAMES = {"torch": "PyTorch", "tensorflow": "TensorFlow"}


def require_horovod(framework: str) -> None:
    """Import Horovod's package for a framework: "torch" or "tensorflow".

    Raises:
        ImportError: if it cannot be imported; the message says how to get it.
    """
    try:
        importlib.import_module(f"horovod.{framework}")
    except ImportError as error:
        name = NAMES[framework]
        raise ImportError(
            f"hvd_compress.{framework} needs {name} and a Horovod that was built with it: {error}. Install {name} "
            f"first and then Horovod, HOROVOD_WITH_{name.upper()}=1 pip install --no-cache-dir --no-build-isolation "
            "horovod; or use `make setup` of hvd_compress, which builds Horovod for present versions of both"
        ) from error
