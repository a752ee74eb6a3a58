"""`allreduce`: Horovod's, of one tensor, compressed."""

from __future__ import annotations

from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf

from hvd_compress.compressors.named import as_compressor
from hvd_compress.reduction.buckets import Rule
from hvd_compress.reduction.settings import Settings
from hvd_compress.tensorflow.compression import Compression, TensorFlowCompression
from hvd_compress.tensorflow.reducer import kept, new_reducer
from hvd_compress.tensorflow.variables import Variable
from hvd_compress.transports.horovod import op_name


@tf.autograph.experimental.do_not_convert
def allreduce(
    tensor: Any,
    name: str,
    compression: TensorFlowCompression | str = Compression.none,
    op: int = hvd.Average,
    process_set: Any = hvd.global_process_set,
    *,
    seed: int = 0,
) -> Any:
    """Average a tensor over Horovod's processes, compressed; in a graph or eagerly.

    Args:
        tensor: of a real floating dtype, not sparse.
        name: the same on all workers; what the compressor keeps, a residual for instance, is kept under it.
        compression: ``hvd_compress.tensorflow.Compression.topk(ratio=0.01)``, or a spec such as ``"topk(ratio=0.01)"``.
        op: ``hvd.Average`` or ``hvd.Sum``.
        process_set: the Horovod processes to average over.
        seed: of the compressor's random numbers, the same on all workers.

    Returns:
        The mean, or the sum, of the tensor's shape and dtype.

    Raises:
        ValueError: if a tensor of this name had another shape or dtype before, or its shape is not known when a graph
            is traced, or `op` is not allowed.
        TypeError: if `compression` is none, or the tensor is not of a floating dtype.
        WorkersDisagree: in the first step of a name, if the workers differ in version, settings or the tensor's shape.
    """
    average_or_sum = op_name(op, "tensorflow")
    tensor = tf.convert_to_tensor(tensor)
    if not tensor.dtype.is_floating:
        raise TypeError(f"{name}: tensors must be of a floating dtype; got {tensor.dtype.name}")
    if not tensor.shape.is_fully_defined():
        raise ValueError(f"{name}: the shape must be known when the graph is traced; got {tensor.shape}")
    compressor, this = as_compressor(compression), Variable(name, tensor)
    settings = Settings(compressor, [Rule(compression=compressor)], op=average_or_sum, seed=seed)
    reducer = kept((name, settings, process_set.process_set_id), lambda: new_reducer([this], settings, process_set))
    known = reducer.variables[0]
    if (this.shape, this.dtype) != (known.shape, known.dtype):
        raise ValueError(
            f"{name} was a tensor of shape {known.shape} and dtype {known.dtype} before; got {this.shape} and "
            f"{this.dtype}"
        )
    return reducer.reduce([tensor])[0]
