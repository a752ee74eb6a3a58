"""What has to be known of TensorFlow's and Keras 3's variables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from hvd_compress.reduction.buckets import Gradient

SENT_AS = {
    "float16": "float16",
    "float64": "float64",
}  # plain gradients' dtypes, others float32; Horovod has no bfloat16


class Variable:
    """A variable's name, shape, dtype and device."""

    def __init__(self, name: str, variable: Any) -> None:
        self.name = name
        self.shape = tuple(int(size) for size in variable.shape)
        self.dtype = tf.as_dtype(variable.dtype).name
        tensor = variable.value if hasattr(variable, "path") else variable  # Keras 3's variables hold TensorFlow's
        self.device = str(getattr(tensor, "device", "") or "CPU:0")

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
