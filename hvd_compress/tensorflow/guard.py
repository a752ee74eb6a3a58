"""Horovod's optimizer for Keras synchronizes nothing under Keras 3, and says nothing: with our compressors it does."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import horovod._keras as horovod_keras
import keras

from hvd_compress.compression import NamedCompressor
from hvd_compress.tensorflow.bound import BoundCompression


def guard_horovods_keras() -> None:
    """Let Horovod's optimizer for Keras refuse an optimizer of Keras 3 that it is given with one of our compressors."""
    create = horovod_keras.create_distributed_optimizer
    signature = inspect.signature(create)

    @functools.wraps(create)
    def create_if_synchronized(*args: Any, **settings: Any) -> Any:
        given = signature.bind(*args, **settings).arguments
        ours = isinstance(given["compression"], NamedCompressor | BoundCompression)
        if ours and isinstance(given["optimizer"], keras.optimizers.Optimizer):
            raise TypeError(
                "Horovod's DistributedOptimizer does not synchronize the optimizers of Keras 3: it extends methods "
                "that Keras 3 does not call. Use hvd_compress.tensorflow.keras.DistributedOptimizer"
            )
        return create(*args, **settings)

    horovod_keras.create_distributed_optimizer = create_if_synchronized
