"""Parameter servers on mpi4py, synchronous and asynchronous, without Horovod and without a framework."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hvd_compress.parameter_server.double_quantization import MODELS as MODELS
    from hvd_compress.parameter_server.double_quantization import VARIANTS as VARIANTS
    from hvd_compress.parameter_server.double_quantization import DoubleQuantization as DoubleQuantization
    from hvd_compress.parameter_server.job import Result as Result
    from hvd_compress.parameter_server.job import Settings as Settings
    from hvd_compress.parameter_server.job import leave as leave
    from hvd_compress.parameter_server.job import run as run
    from hvd_compress.parameter_server.messages import survives as survives
    from hvd_compress.parameter_server.objectives import LogisticRegression as LogisticRegression
    from hvd_compress.parameter_server.objectives import Objective as Objective
    from hvd_compress.parameter_server.objectives import Perceptron as Perceptron
    from hvd_compress.parameter_server.objectives import Regularizer as Regularizer
    from hvd_compress.parameter_server.objectives import Softmax as Softmax
    from hvd_compress.parameter_server.objectives import minimum as minimum
    from hvd_compress.parameter_server.objectives.torch_objective import TorchObjective as TorchObjective
    from hvd_compress.parameter_server.server import Epoch as Epoch
    from hvd_compress.parameter_server.sgd import DOWNLINKS as DOWNLINKS
    from hvd_compress.parameter_server.sgd import SGD as SGD
    from hvd_compress.parameter_server.sketched_sgd import SketchedSGDServer as SketchedSGDServer

_HOME = {
    **dict.fromkeys(("DoubleQuantization", "MODELS", "VARIANTS"), "double_quantization"),
    **dict.fromkeys(("Result", "Settings", "leave", "run"), "job"),
    **dict.fromkeys(("LogisticRegression", "Objective", "Perceptron", "Regularizer", "Softmax"), "objectives"),
    "minimum": "objectives",
    "Epoch": "server",
    **dict.fromkeys(("DOWNLINKS", "SGD"), "sgd"),
    "survives": "messages",
    "SketchedSGDServer": "sketched_sgd",
    "TorchObjective": "objectives.torch_objective",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import what is asked for: objectives need no MPI, and the adapter of modules alone needs PyTorch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
