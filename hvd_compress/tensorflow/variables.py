"""What has to be known of TensorFlow's and Keras 3's variables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf

from hvd_compress.reduction.buckets import Gradient

SENT_AS = {
    "float16": "float16",
    "float64": "float64",
}  # plain gradients' dtypes, others float32; Horovod has no bfloat16


def broadcast_variables(
    variables: Sequence[Any], root_rank: int, process_set: Any = hvd.global_process_set, inplace: bool = False
) -> Any:
    """Give all workers the variables of one: ``horovod.tensorflow.broadcast_variables``, which takes Keras 3's as well.

    Args:
        variables: TensorFlow's or Keras's, such as ``model.variables`` and ``optimizer.variables``.
        root_rank: the worker whose variables all get.
        process_set: the Horovod processes that take part.
        inplace: as of Horovod's function.
    """
    return hvd.broadcast_variables([tensor_of(v) for v in variables], root_rank, process_set, inplace)


def tensor_of(variable: Any) -> Any:
    """Return TensorFlow's variable, which Keras 3's hold."""
    return variable.value if hasattr(variable, "path") else variable


class Variable:
    """A variable's name, shape, dtype and device."""

    def __init__(self, name: str, variable: Any) -> None:
        self.name = name
        self.shape = tuple(int(size) for size in variable.shape)
        self.dtype = tf.as_dtype(variable.dtype).name
        self.device = str(getattr(tensor_of(variable), "device", "") or "CPU:0")

    @property
    def gradient(self) -> Gradient:
        """What the plan must know of it."""
        return Gradient(self.name, self.shape, SENT_AS.get(self.dtype, "float32"), self.device)


def named(variables: Sequence[Any]) -> list[Variable]:
    """Return the variables with names of their own: one that comes again is numbered."""
    seen: dict[str, int] = {}
    result = []
    for variable in variables:
        name = str(getattr(variable, "path", None) or getattr(variable, "name", "variable")).removesuffix(":0")
        seen[name] = seen.get(name, 0) + 1
        result.append(Variable(name if seen[name] == 1 else f"{name}#{seen[name]}", variable))
    return result


def times(grads: Sequence[Any], factor: Any) -> list[Any]:
    """Return gradients, dense or sparse or None, times a factor."""

    def each(grad: Any) -> Any:
        if isinstance(grad, tf.IndexedSlices):
            return tf.IndexedSlices(each(grad.values), grad.indices, grad.dense_shape)
        grad = tf.convert_to_tensor(grad)
        return grad * tf.cast(factor, grad.dtype)

    return [None if grad is None else each(grad) for grad in grads]
