"""Compiled kernels: several times as fast as the array operations, with the same results. They are optional.

In the environment, HVD_COMPRESS_NATIVE=0 switches them off, and HVD_COMPRESS_SIMD (portable, avx2, avx512) chooses a
level of SIMD other than the processor's best.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from hvd_compress.native.kernels import Kernels


@functools.cache
def load() -> Kernels | None:
    """Return the kernels, or None where they are missing or switched off; warn once if they are missing."""
    if os.environ.get("HVD_COMPRESS_NATIVE") == "0":
        return None
    try:
        import hvd_compress.native.cpu._kernels as kernels
    except ImportError as error:
        logging.getLogger("hvd_compress").warning(
            "hvd_compress runs without its compiled kernels, several times slower (%s). To build them, install a C++ "
            "compiler and then the package again; to do without, set HVD_COMPRESS_NATIVE=0.",
            error,
        )
        return None
    return kernels


@functools.cache
def load_for(device: Any) -> Kernels | None:
    """Return the kernels for tensors of a CUDA device; None, with a warning, without Triton, or if switched off."""
    if os.environ.get("HVD_COMPRESS_NATIVE") == "0":
        return None
    try:
        from hvd_compress.native.gpu.kernels import GpuKernels
    except ImportError as error:
        logging.getLogger("hvd_compress").warning(
            "hvd_compress runs on the GPU without its kernels, several times slower (%s). To have them, install Triton "
            "(PyTorch's CUDA builds bring it along); to do without, set HVD_COMPRESS_NATIVE=0.",
            error,
        )
        return None
    kernels: Any = GpuKernels(device)
    return cast(Kernels, kernels)


@contextmanager
def default_floats() -> Iterator[None]:
    """Disable flush-to-zero in this thread for a while; TensorFlow enables it, which would change payloads.

    Has no effect without the kernels.
    """
    kernels = load()
    before = kernels.float_environment(None) if kernels else None
    try:
        yield
    finally:
        if kernels:
            kernels.float_environment(before)
