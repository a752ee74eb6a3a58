"""What the transports over Horovod share, whatever the framework."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np

NAMES = {"torch": "PyTorch", "tensorflow": "TensorFlow"}

# No compressor sends int32 of five axes. Horovod refuses, on every worker, a collective whose dtype or shape differs
# between workers, so submitting this under a collective's name makes it fail for all who submit something else.
MISFIT = np.zeros((1, 1, 1, 1, 1), np.int32)
REFUSED = "Mismatched data types"  # what Horovod says of it


def exchanges(process_set: Any) -> bool:
    """Tell whether this process exchanges gradients with others of a set, or may come to do so in an elastic job."""
    elastic = bool(int(os.environ.get("HOROVOD_ELASTIC", "0")))  # said by Horovod's launcher
    return bool(process_set.included()) and (elastic or process_set.size() > 1)


def require_horovod(framework: str) -> Any:
    """Return Horovod's package for a framework: "torch" or "tensorflow".

    Raises:
        ImportError: if it cannot be imported; the message says how to get it.
    """
    try:
        return importlib.import_module(f"horovod.{framework}")
    except ImportError as error:
        name = NAMES[framework]
        instead = ', or train without it: transport="torch.distributed"' if framework == "torch" else ""
        raise ImportError(
            f"a Horovod that was built with {name} is needed: {error}. Install {name} first and then Horovod: its "
            "release does not compile against present versions; `bash scripts/horovod.sh` and `make setup` of "
            f"hvd_compress build one that does{instead}"
        ) from error


def has_horovod(framework: str) -> bool:
    """Tell whether Horovod's package for a framework can be imported."""
    try:
        require_horovod(framework)
    except ImportError:
        return False
    return True


def horovods(package: str, of_horovod: str, name: str, instead: Mapping[str, str] | None = None) -> Any:
    """Return what a package of this project has not itself: one of its modules, or what Horovod's has of that name.

    Args:
        package: that of this project, such as "hvd_compress.torch".
        of_horovod: the one that it stands in for, such as "horovod.torch".
        name: what is asked for.
        instead: for names of Horovod's that are not passed on, what to use.

    Raises:
        AttributeError: if there is no such thing, or Horovod cannot be imported.
    """
    if not name.startswith("_"):
        own = f"{package}.{name}"
        if hasattr(sys.modules[package], "__path__") and importlib.util.find_spec(own) is not None:
            return importlib.import_module(own)
        if instead is not None and name in instead:
            raise AttributeError(f"{package} has no {name}, and Horovod's does not do: use {instead[name]}")
        with suppress(ImportError, AttributeError):
            return getattr(importlib.import_module(of_horovod), name)
    raise AttributeError(f"neither {package} nor {of_horovod} has a {name!r}")


def check_one_given(transport: Any, process_set: Any) -> None:
    """Raise ValueError if both a transport and a process set of its own are given."""
    if transport is not None and process_set is not None and process_set.process_set_id != 0:
        raise ValueError("a transport knows its workers: give either transport or process_set, not both")


def check_devices(device_dense: str, device_sparse: str) -> None:
    """Raise ValueError unless these two arguments of Horovod's for TensorFlow are what they are by default."""
    for name, device in (("device_dense", device_dense), ("device_sparse", device_sparse)):
        if device != "":
            raise ValueError(
                f"{name} must be ''; got {device!r}: a gradient is exchanged where its variable lies. A compressor is "
                "given by name, compression=..., since the arguments are in Horovod's order"
            )


def op_name(op: int | str, framework: str) -> str:
    """Return what an ``op`` argument means: "average" or "sum".

    Args:
        op: the value that the user gave: one of these words, ``hvd.Average`` or ``hvd.Sum``.
        framework: "torch" or "tensorflow".

    Raises:
        ValueError: if it is something else.
    """
    if op == "average" or op == "sum":
        return op
    hvd = require_horovod(framework)
    names = {hvd.Average: "average", hvd.Sum: "sum"}
    if op not in names:
        raise ValueError(
            f"op must be hvd.Average ({hvd.Average}) or hvd.Sum ({hvd.Sum}), got {op}: compressed gradients can be "
            f"averaged and summed; for others use {hvd.__name__}'s own optimizer or tape"
        )
    return names[op]
