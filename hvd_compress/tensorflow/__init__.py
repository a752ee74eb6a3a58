"""For TensorFlow under Horovod.

import horovod.tensorflow as hvd
import hvd_compress.tensorflow as hvdc

with tf.GradientTape() as tape:
    loss = ...
tape = hvdc.DistributedGradientTape(tape, compression=hvdc.Compression.topk(ratio=0.01))
gradients = tape.gradient(loss, model.trainable_variables)

What Horovod's package has and this one has not is Horovod's here as well: ``import hvd_compress.tensorflow as hvd``
will do for all but `allreduce`, which is another one.
"""

from typing import Any

from hvd_compress.transports.horovod import horovods, require_horovod

require_horovod("tensorflow")

from hvd_compress.compressors import Exponential, Linear
from hvd_compress.reduction.agreement import WorkersDisagree
from hvd_compress.reduction.buckets import Rule
from hvd_compress.reduction.nonfinite import NonFiniteGradients
from hvd_compress.tensorflow import patches  # noqa: F401  # in place as soon as it is imported
from hvd_compress.tensorflow.allreduce import allreduce
from hvd_compress.tensorflow.compression import Compression
from hvd_compress.tensorflow.reducer import compression_stats, set_compression
from hvd_compress.tensorflow.tape import DistributedGradientTape
from hvd_compress.tensorflow.variables import broadcast_variables

__all__ = [
    "Compression",
    "DistributedGradientTape",
    "Exponential",
    "Linear",
    "NonFiniteGradients",
    "Rule",
    "WorkersDisagree",
    "allreduce",
    "broadcast_variables",
    "compression_stats",
    "set_compression",
]

_INSTEAD = {
    "DistributedOptimizer": "hvd_compress.tensorflow.keras.DistributedOptimizer, for Keras 3",
    "PartialDistributedGradientTape": "DistributedGradientTape, and its register_local_source for each variable",
}


def __getattr__(name: str) -> Any:
    return horovods(__name__, "horovod.tensorflow", name, _INSTEAD)
