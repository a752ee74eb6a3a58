"""The algorithms: each a generator of collectives that knows neither framework nor transport."""

from hvd_compress.compressors.base import (
    AllGather,
    AllReduce,
    Collective,
    Compressor,
    Exchanging,
    GatherCompressor,
    Reduced,
)
from hvd_compress.compressors.feedback import EF21, AdamMomentum, ErrorFeedback, Feedback, MomentumCorrection
from hvd_compress.compressors.schedule import Exponential, Linear, Schedule
from hvd_compress.compressors.spec import make, methods, parse, spec

__all__ = [
    "EF21",
    "AdamMomentum",
    "AllGather",
    "AllReduce",
    "Collective",
    "Compressor",
    "ErrorFeedback",
    "Exchanging",
    "Exponential",
    "Feedback",
    "GatherCompressor",
    "Linear",
    "MomentumCorrection",
    "Reduced",
    "Schedule",
    "make",
    "methods",
    "parse",
    "spec",
]
