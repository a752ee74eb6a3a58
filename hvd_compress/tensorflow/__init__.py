"""For TensorFlow under Horovod.

import horovod.tensorflow as hvd
import hvd_compress.tensorflow as hvdc

with tf.GradientTape() as tape:
    loss = ...
tape = hvdc.DistributedGradientTape(tape, compression=hvdc.Compression.topk(ratio=0.01))
gradients = tape.gradient(loss, model.trainable_variables)
"""

from hvd_compress.transports.horovod import require_horovod

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

__all__ = [
    "Compression",
    "DistributedGradientTape",
    "Exponential",
    "Linear",
    "NonFiniteGradients",
    "Rule",
    "WorkersDisagree",
    "allreduce",
    "compression_stats",
    "set_compression",
]
