"""What would synchronize nothing, or wait for ever, without a word: with our compressors it says so."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import horovod._keras as horovod_keras
import keras
import tensorflow as tf

from hvd_compress.compressors.named import NamedCompressor
from hvd_compress.tensorflow.bound import BoundCompression


def refuse_conditions(optimizer: Any) -> None:
    """Raise ValueError if an optimizer's step is one branch of a condition, as in a `LossScaleOptimizer`."""
    if type(tf.compat.v1.get_default_graph()).__name__ == "CondBranchFuncGraph":
        raise ValueError(
            "each rank would decide for itself whether to exchange its gradients, and the others might wait for ever: "
            "a LossScaleOptimizer must be inside, DistributedOptimizer(LossScaleOptimizer(optimizer)), not around this "
            f"{type(optimizer).__name__}. With the policy mixed_float16, compile() puts one around any other optimizer."
        )


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
