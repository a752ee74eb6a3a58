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
from hvd_compress.compressors.feedback import ErrorFeedback
from hvd_compress.compressors.spec import make, methods, parse, spec

__all__ = [
    "AllGather",
    "AllReduce",
    "Collective",
    "Compressor",
    "ErrorFeedback",
    "Exchanging",
    "GatherCompressor",
    "Reduced",
    "make",
    "methods",
    "parse",
    "spec",
]
