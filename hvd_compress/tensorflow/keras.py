"""For Keras 3 on TensorFlow: an optimizer that averages gradients over Horovod's processes, compressed.

Horovod's own leaves the ranks unsynchronized there: it extends methods that Keras 3 does not call. What its package has
and this one has not, and Keras 3 allows, is Horovod's here as well: ``import hvd_compress.tensorflow.keras as hvd``.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import horovod.tensorflow as hvd
import keras
import tensorflow as tf

from hvd_compress.compressors import parse, spec
from hvd_compress.reduction.buckets import Rule
from hvd_compress.reduction.groups import as_groups
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
from hvd_compress.tensorflow.variables import times
from hvd_compress.transports.horovod import check_devices, check_one_given, horovods
from hvd_compress.transports.horovod_tensorflow import GraphTransport

__all__ = [
    "BroadcastAtStart",
    "CompressedAdam",
    "DistributedOptimizer",
    "LearningRateWarmup",
    "MetricAverage",
    "TensorBoard",
]


_INSTEAD = {
    "callbacks": "BroadcastAtStart, MetricAverage and LearningRateWarmup of this module, and Keras's own others",
    "elastic": "hvd_compress.tensorflow.elastic",
    "load_model": "keras.models.load_model, and wrap its optimizer anew",
    "broadcast_global_variables": "BroadcastAtStart, or hvd_compress.tensorflow.broadcast_variables",
}


def __getattr__(name: str) -> Any:
    return horovods(__name__, "horovod.tensorflow.keras", name, _INSTEAD)


GIVEN_BY_NAME = "a compressor is given by name, compression=..., since the arguments are in Horovod's order"


class _Distributed:
    """The methods that replace those of the optimizer's own class."""

    _trainable_variables: Any
    gradient_accumulation_steps: int | None
    _settings: Settings
    _where: tuple[Any, GraphTransport | None, int | list[list[Any]]]
    _reducer: GradientReducer
    _local: list[Any]  # variables whose gradients stay with this worker
    _scale_local: bool
    _sum_of: int  # passes whose accumulated gradients are to be a sum, and not Keras's mean

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

    def register_local_var(self, var: Any) -> None:
        """Let the gradient of a variable be this worker's own, as Horovod's optimizer does. All workers do so alike.

        It is divided by the number of workers unless the optimizer was made with ``scale_local_gradients=False``.
        """
        self._local.append(var)

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
        local = set(map(id, self._local))
        self._reducer.own = [id(variable) in local for variable in variables]
        try:
            _check_momentum(self, self._reducer.settings)
        except ValueError as error:
            self._reducer.fail(error)
            raise
        if isinstance(self, keras.optimizers.LossScaleOptimizer):  # decides by the gradients whether to skip the step
            # What compressors keep is kept without the scale, which changes.
            scale = tf.convert_to_tensor(self.dynamic_scale if self.built else self.initial_scale)
            grads = times(self._means(times(grads, 1 / scale)), scale)
        else:
            shared = [None if own else grad for own, grad in zip(self._reducer.own, grads, strict=True)]
            completed = self._reducer.completed(shared, dense=bool(self.gradient_accumulation_steps))
            grads = [mean if grad is None else grad for grad, mean in zip(grads, completed, strict=True)]
            self._reducer.present = [grad is not None for grad in grads]
        super().apply(grads, trainable_variables)  # type: ignore[misc]

    def _clip_gradients(self, grads: Sequence[Any]) -> Any:
        # Keras calls this with the gradients of a step, accumulated if need be, before it does anything with them.
        if not isinstance(self, keras.optimizers.LossScaleOptimizer):
            there = iter(times(grads, self._sum_of) if self._sum_of != 1 else grads)
            means = self._means([next(there) if present else None for present in self._reducer.present])
            grads = [mean for mean in means if mean is not None]
        return super()._clip_gradients(grads)  # type: ignore[misc]

    def _means(self, grads: Sequence[Any]) -> list[Any]:
        """Return the means of a step's gradients, and local ones divided by the number of workers."""
        local = self._reducer.own
        means = self._reducer.reduce([None if own else grad for own, grad in zip(local, grads, strict=True)])
        factor = 1 / self._reducer.transport.workers if self._scale_local else 1.0
        kept = times([grad if own else None for own, grad in zip(local, grads, strict=True)], factor)
        return [here if own else mean for own, here, mean in zip(local, kept, means, strict=True)]

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
    name: str | None = None,
    device_dense: str = "",
    device_sparse: str = "",
    compression: TensorFlowCompression | str = Compression.none,
    sparse_as_dense: bool = False,
    gradient_predivide_factor: float = 1.0,
    op: int = hvd.Average,
    backward_passes_per_step: int = 1,
    average_aggregated_gradients: bool = False,
    num_groups: int = 0,
    groups: int | list[list[Any]] | None = None,
    process_set: Any = hvd.global_process_set,
    scale_local_gradients: bool = True,
    *,
    bucket_bytes: int = BUCKET_BYTES,
    dense_below: int = DENSE_BELOW,
    seed: int = 0,
    rules: Iterable[Rule | tuple[str, Any]] | None = None,
    nonfinite: str = "warn",
    transport: GraphTransport | None = None,
) -> Any:
    """Wrap a Keras 3 optimizer so that its gradients are averaged over Horovod's processes, compressed.

    The arguments up to `scale_local_gradients` are those of ``horovod.tensorflow.keras.DistributedOptimizer``, in its
    order, and mean the same. The result is an instance of the optimizer's own class, and is saved as that: a model that
    is loaded has the plain optimizer. Gradients are accumulated first, and clipped after they are averaged. A
    ``LossScaleOptimizer`` must be inside. XLA cannot compile the exchange: `compile` of a model proceeds without
    ``jit_compile``. With a single process nothing is sent.

    Args:
        optimizer: any ``keras.optimizers.Optimizer``.
        name: of the optimizer; None leaves it its own.
        device_dense: only "": a gradient is exchanged where its variable lies.
        device_sparse: only "".
        compression: ``hvd_compress.tensorflow.Compression.topk(ratio=0.01)``, or a spec such as ``"topk(ratio=0.01)"``.
        sparse_as_dense: exchange sparse gradients as dense ones.
        gradient_predivide_factor: with ``hvd.Average``, divides before the sum and multiplies after the mean.
        op: ``hvd.Average`` or ``hvd.Sum``.
        backward_passes_per_step: batches whose gradients are accumulated before they are exchanged; an optimizer's own
            ``gradient_accumulation_steps``, of which Keras applies the mean, is the same with
            `average_aggregated_gradients`.
        average_aggregated_gradients: apply the mean of these batches' gradients, and not their sum.
        num_groups: the former name of `groups`.
        groups: the number of buckets to divide the variables into, or lists of those that share a bucket.
        process_set: the Horovod processes to average over.
        scale_local_gradients: divide gradients of registered local variables by the number of workers.
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
    _check_name(name)
    check_devices(device_dense, device_sparse)
    settings = reduction_settings(
        compression,
        op,
        gradient_predivide_factor,
        sparse_as_dense,
        bucket_bytes,
        dense_below,
        seed,
        rules,
        nonfinite,
        backward_passes_per_step,
    )
    check_one_given(transport, process_set)
    where = (process_set, transport, as_groups(num_groups, groups))
    _check_momentum(optimizer, settings)
    if backward_passes_per_step > 1:
        _accumulate(optimizer, backward_passes_per_step)
    if name is not None:
        optimizer.name = name
    wrapped = type(optimizer)
    # What is saved names the class by its module.
    public = getattr(keras.optimizers, wrapped.__name__, None) is wrapped
    module = "keras.optimizers" if public else wrapped.__module__
    members = {
        "__module__": module,
        "_settings": settings,
        "_where": where,
        "_local": [],
        "_scale_local": scale_local_gradients,
        "_sum_of": 1 if average_aggregated_gradients else backward_passes_per_step,
    }
    result: Any = object.__new__(type(wrapped.__name__, (_Distributed, wrapped), members))
    object.__setattr__(result, "__dict__", optimizer.__dict__)  # Keras has its own way of setting attributes
    return result


def _check_name(name: Any) -> None:
    """Raise TypeError if an optimizer's name is no string, and ValueError if it is a spec."""
    if name is None:
        return
    if isinstance(name, str):
        with suppress(ValueError):
            parse(name)
            raise TypeError(f"{GIVEN_BY_NAME}; got the spec {name!r} for the optimizer's name")
    else:
        raise TypeError(f"{GIVEN_BY_NAME}; name must be a string; got {name!r}")


def _accumulate(optimizer: Any, passes: int) -> None:
    """Let Keras accumulate the gradients of so many batches."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise ValueError(
            f"backward_passes_per_step must be 1 with a LossScaleOptimizer; got {passes}: give the optimizer inside it "
            f"gradient_accumulation_steps={passes}"
        )
    if optimizer.gradient_accumulation_steps:
        raise ValueError(
            f"the optimizer has gradient_accumulation_steps={optimizer.gradient_accumulation_steps} already; "
            f"backward_passes_per_step={passes} is the same: give one of them"
        )
    if optimizer.built:
        raise ValueError(
            f"backward_passes_per_step={passes} comes too late for an optimizer that is built: make it with "
            f"gradient_accumulation_steps={passes}"
        )
    optimizer.gradient_accumulation_steps = passes


def _check_momentum(optimizer: Any, settings: Settings) -> None:
    keeps = [compressor for compressor in settings.compressors if compressor.has_momentum]
    own = getattr(getattr(optimizer, "inner_optimizer", optimizer), "momentum", 0.0)
    if keeps and own:
        raise ValueError(
            f"{spec(keeps[0])} keeps the momentum itself, so that the optimizer's must be 0; it is {own}. Set it to "
            "0, or choose another feedback, such as feedback=ef"
        )
