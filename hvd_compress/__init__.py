"""Compressed communication for distributed training.

Import what fits the framework: ``hvd_compress.torch`` for PyTorch under Horovod. What is named here
needs NumPy alone: the compressors, their specs, and the simulator of many workers in one process.
"""

from hvd_compress.compressors import (
    EF21,
    AllGather,
    AllReduce,
    Compressor,
    ErrorFeedback,
    Exponential,
    Feedback,
    GatherCompressor,
    Linear,
    MomentumCorrection,
    Reduced,
    Schedule,
    make,
    methods,
    parse,
    spec,
)
from hvd_compress.compressors.sketches.count_sketch import CountSketch
from hvd_compress.compressors.state import State
from hvd_compress.ops.layout import Layout, Parameter
from hvd_compress.reduction.exchange import Exchange
from hvd_compress.reduction.simulation import Simulation
from hvd_compress.version import __version__

__all__ = [
    "EF21",
    "AllGather",
    "AllReduce",
    "Compressor",
    "CountSketch",
    "ErrorFeedback",
    "Exchange",
    "Exponential",
    "Feedback",
    "GatherCompressor",
    "Layout",
    "Linear",
    "MomentumCorrection",
    "Parameter",
    "Reduced",
    "Schedule",
    "Simulation",
    "State",
    "__version__",
    "make",
    "methods",
    "parse",
    "spec",
]
