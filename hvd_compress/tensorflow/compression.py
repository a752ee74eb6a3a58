"""`Compression`: the compressors as TensorFlow users name them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import horovod.tensorflow as hvd

from hvd_compress.compressors import spec
from hvd_compress.compressors.named import NamedCompressor, has_methods
from hvd_compress.reduction.buckets import Rule
from hvd_compress.reduction.settings import DENSE_BELOW, Settings
from hvd_compress.tensorflow.bound import BoundCompression
from hvd_compress.tensorflow.variables import named
from hvd_compress.transports.horovod import op_name


class TensorFlowCompression(NamedCompressor):
    """A compressor as a ``compression`` argument.

    What this package has for TensorFlow takes it as it is. Horovod's own tape and optimizers take it after `bind`.
    """

    def bind(
        self,
        variables: Sequence[Any],
        *,
        op: int = hvd.Average,
        dense_below: int = DENSE_BELOW,
        seed: int = 0,
        rules: Iterable[Rule | tuple[str, Any]] | None = None,
    ) -> BoundCompression:
        """Attach the compressor's state to variables, for ``horovod.tensorflow.DistributedGradientTape``.

        The result can be part of a ``tf.train.Checkpoint``.

        Args:
            variables: those whose gradients are taken, in this order.
            op: the one that Horovod's tape is given: ``hvd.Average`` or ``hvd.Sum``.
            dense_below: variables with fewer coordinates than this, and those with one axis, are sent uncompressed.
            seed: of the compressor's random numbers, the same on all workers.
            rules: exceptions for some variables, as `hvd_compress.tensorflow.DistributedGradientTape` takes them.

        Raises:
            ValueError: if a method needs the gradient of the whole model at once, or a rule matches no variable's
                name or is not valid.
            TypeError: if `rules` holds anything but rules.
        """
        found = named(variables)
        names = tuple(variable.name for variable in found)
        settings = Settings(self, rules or (), names, op=op_name(op, "tensorflow"), dense_below=dense_below, seed=seed)
        return BoundCompression(found, settings)

    def compress(self, tensor: Any) -> Any:
        """Refuse: Horovod asks for this, and gives no state.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            f"{spec(self.compressor)} keeps state for each variable. Under Horovod's own tape, bind it: compression = "
            "compression.bind(model.trainable_variables). With Keras 3, whose optimizers Horovod's does not "
            "synchronize, use hvd_compress.tensorflow.keras.DistributedOptimizer"
        )


@has_methods(TensorFlowCompression)
class Compression:
    """The compressors by name, each a function of its settings: ``Compression.topk(ratio=0.01)``.

    ``Compression.parse("topk(ratio=0.01)")`` is the same, of a spec from a command line.

    ``Compression.none`` and ``Compression.fp16`` have no settings and stand for themselves. Every function takes
    ``feedback`` as well: "none", "ef", "ef21" or "momentum" (with settings if need be: "momentum(momentum=0.5)"), or
    None for the method's default. Any number may be a schedule, such as ``Linear(0.1, 0.01, steps=1000)``.
    """

    none: TensorFlowCompression
    fp16: TensorFlowCompression
