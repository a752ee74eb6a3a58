"""All that importing this package changes in TensorFlow, Keras and Horovod.

1. XLA cannot compile an exchange, which calls Horovod and Python: functions that have one go without.
2. Keras is told so, and does not try to compile the training step of a model with a distributed optimizer.
3. Horovod's optimizer for Keras refuses an optimizer of Keras 3 with one of our compressors, rather than to leave the
   ranks unsynchronized.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from typing import Any

import horovod._keras as horovod_keras
import keras
import tensorflow as tf
from keras.src.trainers import trainer
from tensorflow.python.eager.polymorphic_function.attributes import XLA_COMPILE
from tensorflow.python.eager.polymorphic_function.concrete_function import ConcreteFunction
from tensorflow.python.ops.control_flow_util import InXlaContext

from hvd_compress.compressors.named import NamedCompressor

_from_func_graph = ConcreteFunction.from_func_graph
_supports_jit = trainer.model_supports_jit


def leave_xla() -> None:
    """Let what is being traced, a function with ``jit_compile=True`` or in one, not be compiled; warn of it once."""
    graphs = [tf.compat.v1.get_default_graph()]
    if hasattr(graphs[0], "hvd_compress_exchanges"):  # by another exchange in it
        return
    while (outer := getattr(graphs[-1], "outer_graph", None)) is not None:
        graphs.append(outer)
    while graphs and not InXlaContext(graphs[-1]):  # a graph is in its context while a function in it is traced
        graphs.pop()
    if not graphs:
        return
    for graph in graphs[:-1]:
        graph.hvd_compress_exchanges = True
    warnings.warn(
        "XLA cannot compile the exchange of gradients, which calls Horovod and Python: the function goes without "
        "jit_compile=True. Give it to a function that computes what comes before",
        stacklevel=2,
    )


def _from_traced(graph: Any, function_type: Any, attrs: Any, *args: Any, **settings: Any) -> Any:
    if hasattr(graph, "hvd_compress_exchanges"):
        attrs = {name: value for name, value in (attrs or {}).items() if name != XLA_COMPILE}
    return _from_func_graph(graph, function_type, attrs, *args, **settings)


def _supports_jit_undistributed(model: Any) -> bool:
    optimizer = getattr(model, "optimizer", None)
    exchanges = any(hasattr(o, "compression_stats") for o in (optimizer, getattr(optimizer, "inner_optimizer", None)))
    return not exchanges and bool(_supports_jit(model))


def _guarded(create: Any) -> Any:
    signature = inspect.signature(create)

    @functools.wraps(create)
    def create_if_synchronized(*args: Any, **settings: Any) -> Any:
        from hvd_compress.tensorflow.bound import BoundCompression

        given = signature.bind(*args, **settings).arguments
        ours = isinstance(given["compression"], NamedCompressor | BoundCompression)
        if ours and isinstance(given["optimizer"], keras.optimizers.Optimizer):
            raise TypeError(
                "Horovod's DistributedOptimizer does not synchronize the optimizers of Keras 3: it extends methods "
                "that Keras 3 does not call. Use hvd_compress.tensorflow.keras.DistributedOptimizer"
            )
        return create(*args, **settings)

    return create_if_synchronized


ConcreteFunction.from_func_graph = _from_traced
trainer.model_supports_jit = _supports_jit_undistributed
horovod_keras.create_distributed_optimizer = _guarded(horovod_keras.create_distributed_optimizer)
