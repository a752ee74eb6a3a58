"""The compiled kernels, if they were built: the same results as the array operations, several times as fast.

HVD_COMPRESS_NATIVE=0 in the environment does without them; HVD_COMPRESS_SIMD (portable, avx2, avx512) chooses another
level of SIMD than the processor's best.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@functools.cache
def load() -> ModuleType | None:
    """Return the extension module, whose functions `_kernels.pyi` documents, or None; warn once if it is missing."""
    if os.environ.get("HVD_COMPRESS_NATIVE") == "0":
        return None
    try:
        from hvd_compress.native.cpu import _kernels
    except ImportError as error:
        logging.getLogger("hvd_compress").warning(
            "hvd_compress runs without its compiled kernels, several times slower (%s). To build them, install a C++ "
            "compiler and then the package again; to do without, set HVD_COMPRESS_NATIVE=0.",
            error,
        )
        return None
    return _kernels


@contextmanager
def default_floats() -> Iterator[None]:
    """Let the calling thread compute as everybody does: TensorFlow's threads take numbers below 2^-126 for zeros.

    Without the kernels there is nothing to do that with.
    """
    kernels = load()
    before = kernels.float_environment(None) if kernels else None
    try:
        yield
    finally:
        if kernels:
            kernels.float_environment(before)
