"""Parameter servers on mpi4py, synchronous and asynchronous, without Horovod and without a framework."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hvd_compress.parameter_server.algorithms.asylpg import MODELS as MODELS
    from hvd_compress.parameter_server.algorithms.asylpg import VARIANTS as VARIANTS
    from hvd_compress.parameter_server.algorithms.asylpg import DoubleQuantization as DoubleQuantization
    from hvd_compress.parameter_server.algorithms.sgd import DOWNLINKS as DOWNLINKS
    from hvd_compress.parameter_server.algorithms.sgd import SGD as SGD
    from hvd_compress.parameter_server.algorithms.sketched_sgd import SketchedSGDServer as SketchedSGDServer
    from hvd_compress.parameter_server.objectives import LogisticRegression as LogisticRegression
    from hvd_compress.parameter_server.objectives import Objective as Objective
    from hvd_compress.parameter_server.objectives import Perceptron as Perceptron
    from hvd_compress.parameter_server.objectives import Regularizer as Regularizer
    from hvd_compress.parameter_server.objectives import Softmax as Softmax
    from hvd_compress.parameter_server.objectives import minimum as minimum
    from hvd_compress.parameter_server.objectives.torch_objective import TorchObjective as TorchObjective
    from hvd_compress.parameter_server.protocols import Algorithm as Algorithm
    from hvd_compress.parameter_server.runtime.coordinator import Epoch as Epoch
    from hvd_compress.parameter_server.runtime.job import Result as Result
    from hvd_compress.parameter_server.runtime.job import leave as leave
    from hvd_compress.parameter_server.runtime.job import run as run
    from hvd_compress.parameter_server.runtime.messages import survives as survives
    from hvd_compress.parameter_server.runtime.settings import JobSettings as JobSettings

    Settings = JobSettings

_HOME = {
    **dict.fromkeys(("DoubleQuantization", "MODELS", "VARIANTS"), "algorithms.asylpg"),
    **dict.fromkeys(("DOWNLINKS", "SGD"), "algorithms.sgd"),
    "SketchedSGDServer": "algorithms.sketched_sgd",
    **dict.fromkeys(("LogisticRegression", "Objective", "Perceptron", "Regularizer", "Softmax"), "objectives"),
    "minimum": "objectives",
    "TorchObjective": "objectives.torch_objective",
    "Algorithm": "protocols",
    **dict.fromkeys(("Result", "leave", "run"), "runtime.job"),
    "JobSettings": "runtime.settings",
    "survives": "runtime.messages",
    "Epoch": "runtime.coordinator",
}
_ALIASES = {"Settings": "JobSettings"}  # what it was called before
__all__ = sorted([*_HOME, *_ALIASES])


def __getattr__(name: str) -> Any:
    """Import what is asked for: objectives need no MPI, and the adapter of modules alone needs PyTorch."""
    name = _ALIASES.get(name, name)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
