"""For Keras 3 on TensorFlow: an optimizer that averages gradients over Horovod's processes, compressed.

Horovod's own leaves the ranks unsynchronized there: it extends methods that Keras 3 does not call.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import horovod.tensorflow as hvd
import keras
import tensorflow as tf

from hvd_compress.compressors import spec
from hvd_compress.reduction.buckets import Rule
from hvd_compress.reduction.settings import BUCKET_BYTES, DENSE_BELOW, Settings
from hvd_compress.tensorflow.adam import CompressedAdam
from hvd_compress.tensorflow.callbacks import BroadcastAtStart, LearningRateWarmup, MetricAverage, TensorBoard
from hvd_compress.tensorflow.compression import Compression, TensorFlowCompression
from hvd_compress.tensorflow.conditions import refuse_conditions
from hvd_compress.tensorflow.reducer import (
    GradientReducer,
    changed_reducer,
    reducer_of,
    reduction_settings,
)
from hvd_compress.transports.horovod import check_one_given
from hvd_compress.transports.horovod_tensorflow import GraphTransport

__all__ = [
    "BroadcastAtStart",
    "CompressedAdam",
    "DistributedOptimizer",
    "LearningRateWarmup",
    "MetricAverage",
    "TensorBoard",
]


class _Distributed:
    """The methods that replace those of the optimizer's own class."""

    _trainable_variables: Any
    gradient_accumulation_steps: int | None
    _settings: Settings
    _where: tuple[Any, GraphTransport | None]
    _reducer: GradientReducer

    def build(self, variables: Sequence[Any]) -> None:
        """Make the optimizer's variables, and the compressors' state."""
        super().build(variables)  # type: ignore[misc]
        self._use_reducer(list(variables))

    def _use_reducer(self, variables: Sequence[Any]) -> None:
        former = getattr(self, "_reducer", None)
        self._reducer = reducer_of(variables, self._settings, *self._where)
        if former is not None:
            self._reducer.follow(former)
        this = weakref.ref(self)
        self._reducer.check = lambda settings: _check_momentum(this(), settings)

    @tf.autograph.experimental.do_not_convert
    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Average the gradients and update the variables.

        Raises:
            WorkersDisagree: in the first step, if the workers differ in version, settings or model.
            ValueError: if a `LossScaleOptimizer` is around this optimizer, and not inside, or both a compressor and the
                optimizer keep a momentum.
        """
        refuse_conditions(self)
        variables = self._trainable_variables if trainable_variables is None else list(trainable_variables)
        if variables:
            self._use_reducer(variables)
        try:
            _check_momentum(self, self._reducer.settings)
        except ValueError as error:
            self._reducer.fail(error)
            raise
        if isinstance(self, keras.optimizers.LossScaleOptimizer):  # decides by the gradients whether to skip the step
            # What compressors keep is kept without the scale, which changes.
            scale = tf.convert_to_tensor(self.dynamic_scale if self.built else self.initial_scale)
            grads = _times(self._reducer.reduce(_times(grads, 1 / scale)), scale)
        else:
            grads = self._reducer.completed(grads, dense=bool(self.gradient_accumulation_steps))
            self._reducer.present = [grad is not None for grad in grads]
        super().apply(grads, trainable_variables)  # type: ignore[misc]

    def _clip_gradients(self, grads: Sequence[Any]) -> Any:
        # Keras calls this with the gradients of a step, accumulated if need be, before it does anything with them.
        if not isinstance(self, keras.optimizers.LossScaleOptimizer):
            there = iter(grads)
            means = self._reducer.reduce([next(there) if present else None for present in self._reducer.present])
            grads = [mean for mean in means if mean is not None]
        return super()._clip_gradients(grads)  # type: ignore[misc]

    def set_compression(
        self, compression: TensorFlowCompression | str, rules: Iterable[Rule | tuple[str, Any]] | None = None
    ) -> None:
        """Use another compressor, with its rules, from the next step on. All workers call it alike, between two steps.

        What residuals hold is added, once, to the next gradients of their parameters; all else begins anew. A graph
        that Keras has traced must be traced anew: ``model.make_train_function(force=True)``, also in a callback.

        Args:
            compression: as in `DistributedOptimizer`.
            rules: as in `DistributedOptimizer`; the former ones are forgotten.

        Raises:
            ValueError, TypeError: as in `DistributedOptimizer`.
        """
        settings = self._settings.with_compression(compression, rules)
        _check_momentum(self, settings)
        if hasattr(self, "_reducer"):
            self._reducer = changed_reducer(self._trainable_variables, self._settings, settings, *self._where)
        self._settings = settings

    def compression_stats(self, phases: bool = False, per_bucket: bool = False) -> dict[str, Any]:
        """Return what this worker sent since construction (see `hvd_compress.reduction.stats.Stats`)."""
        return self._reducer.stats(phases, per_bucket) if hasattr(self, "_reducer") else {}


def DistributedOptimizer(
    optimizer: keras.optimizers.Optimizer,
    compression: TensorFlowCompression | str = Compression.none,
    op: int = hvd.Average,
    gradient_predivide_factor: float = 1.0,
    process_set: Any = hvd.global_process_set,
    sparse_as_dense: bool = False,
    *,
    bucket_bytes: int = BUCKET_BYTES,
    dense_below: int = DENSE_BELOW,
    seed: int = 0,
    rules: Iterable[Rule | tuple[str, Any]] | None = None,
    nonfinite: str = "warn",
    transport: GraphTransport | None = None,
) -> Any:
    """Wrap a Keras 3 optimizer so that its gradients are averaged over Horovod's processes, compressed.

    The result is an instance of the optimizer's own class, and is saved as that: a model that is loaded has the plain
    optimizer. Gradients are accumulated first (``gradient_accumulation_steps``) and clipped afterwards. A
    ``LossScaleOptimizer`` must be inside. XLA cannot compile the exchange: `compile` of a model proceeds without
    ``jit_compile``. With a single process nothing is sent.

    Args:
        optimizer: any ``keras.optimizers.Optimizer``.
        compression: ``hvd_compress.tensorflow.Compression.topk(ratio=0.01)``, or a spec such as ``"topk(ratio=0.01)"``.
        op: ``hvd.Average`` or ``hvd.Sum``.
        gradient_predivide_factor: with ``hvd.Average``, divides before the sum and multiplies after the mean.
        process_set: the Horovod processes to average over.
        sparse_as_dense: exchange sparse gradients as dense ones.
        bucket_bytes: largest size of a bucket of gradients, in bytes, at least 1; methods of the whole gradient have
            one bucket.
        dense_below: parameters with fewer coordinates than this, and those with one axis, are sent uncompressed.
        seed: of the compressors' random numbers, the same on all workers.
        rules: exceptions: tuples (pattern, compression), or `hvd_compress.tensorflow.Rule` objects; the first that
            matches a variable's path and size decides, whatever `dense_below` says.
        nonfinite: what comes of gradients that are not finite, on any worker: "warn" (all workers warn once, and the
            means are not finite) or "error" (all raise NonFiniteGradients).
        transport: who carries the collectives instead of Horovod: any
            `hvd_compress.transports.horovod_tensorflow.GraphTransport`.

    Raises:
        RuntimeError: if Keras runs on another backend than TensorFlow.
        ValueError: if an argument's value is not allowed, or both a compressor and the optimizer keep a momentum.
        TypeError: if `optimizer` is not of Keras 3, `compression` is none, or `rules` holds anything but rules.
    """
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            f"Keras runs on {keras.backend.backend()}, and hvd_compress.tensorflow.keras is for its TensorFlow "
            "backend: set KERAS_BACKEND=tensorflow"
        )
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(f"optimizer must be a keras.optimizers.Optimizer of Keras 3; got {optimizer!r}")
    settings = reduction_settings(
        compression, op, gradient_predivide_factor, sparse_as_dense, bucket_bytes, dense_below, seed, rules, nonfinite
    )
    check_one_given(transport, process_set)
    where = (process_set, transport)
    _check_momentum(optimizer, settings)
    wrapped = type(optimizer)
    # What is saved names the class by its module.
    public = getattr(keras.optimizers, wrapped.__name__, None) is wrapped
    module = "keras.optimizers" if public else wrapped.__module__
    members = {"__module__": module, "_settings": settings, "_where": where}
    result: Any = object.__new__(type(wrapped.__name__, (_Distributed, wrapped), members))
    object.__setattr__(result, "__dict__", optimizer.__dict__)  # Keras has its own way of setting attributes
    return result


def _times(grads: Sequence[Any], factor: Any) -> list[Any]:
    """Return gradients, dense or sparse or None, times a factor."""

    def times(grad: Any) -> Any:
        if isinstance(grad, tf.IndexedSlices):
            return tf.IndexedSlices(times(grad.values), grad.indices, grad.dense_shape)
        grad = tf.convert_to_tensor(grad)
        return grad * tf.cast(factor, grad.dtype)

    return [None if grad is None else times(grad) for grad in grads]


def _check_momentum(optimizer: Any, settings: Settings) -> None:
    keeps = [compressor for compressor in settings.compressors if compressor.has_momentum]
    own = getattr(getattr(optimizer, "inner_optimizer", optimizer), "momentum", 0.0)
    if keeps and own:
        raise ValueError(
            f"{spec(keeps[0])} keeps the momentum itself, so that the optimizer's must be 0; it is {own}. Set it to "
            "0, or choose another feedback, such as feedback=ef"
        )
