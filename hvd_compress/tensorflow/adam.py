"""Adam for Keras 3 with a compressed momentum: 1-bit Adam and its kin."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import horovod.tensorflow as hvd
import keras
import tensorflow as tf

from hvd_compress.compressors import Compressor, ErrorFeedback
from hvd_compress.compressors.named import as_compressor
from hvd_compress.reduction.buckets import PLAIN, Rule
from hvd_compress.reduction.settings import BUCKET_BYTES, DENSE_BELOW, Settings, as_rules
from hvd_compress.reduction.stats import added
from hvd_compress.tensorflow.compression import TensorFlowCompression
from hvd_compress.tensorflow.conditions import refuse_conditions
from hvd_compress.tensorflow.reducer import GradientReducer, reducer_of, reduction_settings

Tensor = Any


class _FrozenAdam:
    """The methods that replace those of ``keras.optimizers.AdamW``."""

    _warmup_steps: int
    _plain: Settings
    _compressed: Settings
    _process_set: Any
    _trainable_variables: Any
    _momentums: Any
    _velocities: Any
    _get_variable_index: Any
    iterations: Any
    built: bool
    assign: Any
    assign_sub: Any
    beta_1: float
    beta_2: float
    epsilon: float
    _warmup_reducer: GradientReducer
    _reducer: GradientReducer

    def build(self, variables: Sequence[Any]) -> None:
        """Make the optimizer's variables, and the compressors' state."""
        super().build(variables)  # type: ignore[misc]
        self._warmup_reducer = reducer_of(list(variables), self._plain, self._process_set)
        self._reducer = reducer_of(list(variables), self._compressed, self._process_set)

    def apply(self, grads: Sequence[Tensor], trainable_variables: Sequence[Any] | None = None) -> None:
        """Average the gradients, or the momenta that they make, and update the variables.

        Raises:
            WorkersDisagree: in the first step of a phase, if the workers differ in version, settings or model.
            ValueError: if a `LossScaleOptimizer` is around this optimizer.
        """
        refuse_conditions(self)
        grads = self._completed(grads, trainable_variables)
        super().apply(grads, trainable_variables)  # type: ignore[misc]

    @tf.autograph.experimental.do_not_convert
    def _backend_update_step(self, grads: Sequence[Tensor], trainable_variables: Sequence[Any], lr: Any) -> None:
        # Keras calls this with the gradients of a step, accumulated and clipped if need be.
        if self._several:
            places = [self._get_variable_index(variable) for variable in trainable_variables]
            grads = tf.cond(
                tf.convert_to_tensor(self.iterations) < self._warmup_steps,
                lambda: self._reduced(self._warmup_reducer, grads, places),
                lambda: self._reduced(self._reducer, self._momenta(grads, places), places),
            )
        super()._backend_update_step(grads, trainable_variables, lr)  # type: ignore[misc]

    def _completed(self, grads: Sequence[Tensor], variables: Sequence[Any] | None) -> list[Tensor]:
        """Return the gradients, with zeros where there is none here and there was one somewhere."""
        if variables is not None and not self.built:
            self.build(list(variables))
        known = self._trainable_variables if variables is None else variables
        places = [self._get_variable_index(variable) for variable in known]
        for reducer in (self._warmup_reducer, self._reducer):
            grads = reducer.completed(self._given(reducer, grads, places), dense=True)
            grads = [grads[place] for place in places]
        return list(grads)

    def _given(self, reducer: GradientReducer, tensors: Sequence[Tensor], places: Sequence[int]) -> list[Tensor]:
        given: list[Tensor] = [None] * len(reducer.variables)
        for place, tensor in zip(places, tensors, strict=True):
            given[place] = tensor
        return given

    @property
    def _several(self) -> bool:
        return not self._reducer.transport.alone

    def _momenta(self, gradients: Sequence[Tensor], places: Sequence[int]) -> list[Tensor]:
        momenta = [self._momentums[place].value for place in places]
        return [
            self.beta_1 * m + (1 - self.beta_1) * tf.cast(tf.convert_to_tensor(g), m.dtype)
            for m, g in zip(momenta, gradients, strict=True)
        ]

    def _reduced(self, reducer: GradientReducer, tensors: Sequence[Tensor], places: Sequence[int]) -> list[Tensor]:
        means = reducer.reduce(self._given(reducer, tensors, places))
        return [tf.cast(tf.convert_to_tensor(means[place]), self._momentums[place].dtype) for place in places]

    def update_step(self, gradient: Tensor, variable: Any, learning_rate: Any) -> None:
        """Update a variable by the mean of its gradients, or by its momentum once the variance is frozen."""
        place, dtype = self._get_variable_index(variable), variable.dtype
        m, v = self._momentums[place], self._velocities[place]
        gradient, b, c = (tf.cast(x, dtype) for x in (gradient, self.beta_1, self.beta_2))
        steps = tf.convert_to_tensor(self.iterations) + 1
        last = tf.minimum(steps, self._warmup_steps) if self._several else steps
        frozen = steps > last
        self.assign(m, tf.where(frozen, gradient, b * m.value + (1 - b) * gradient))
        self.assign(v, tf.where(frozen, v.value, c * v.value + (1 - c) * tf.square(gradient)))
        rate = tf.cast(learning_rate, dtype) * tf.sqrt(1 - c ** tf.cast(last, dtype)) / (1 - b ** tf.cast(steps, dtype))
        deviation = tf.where(v.value == 0, tf.cast(math.inf, dtype), tf.sqrt(v.value))  # no update where it is 0
        self.assign_sub(variable, rate * m.value / (deviation + self.epsilon))

    def compression_stats(self, phases: bool = False, per_bucket: bool = False) -> dict[str, Any]:
        """Return what this worker sent since construction (see `hvd_compress.reduction.stats.Stats`)."""
        if not hasattr(self, "_reducer"):
            return {}
        return added(self._warmup_reducer.stats(phases, per_bucket), self._reducer.stats(phases, per_bucket))


def CompressedAdam(
    learning_rate: Any = 1e-3,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-7,
    weight_decay: float = 0.0,
    *,
    warmup_steps: int,
    compression: TensorFlowCompression | str = "onebit",
    rules: Iterable[Rule | tuple[str, Any]] | None = None,
    process_set: Any = hvd.global_process_set,
    bucket_bytes: int = BUCKET_BYTES,
    dense_below: int = DENSE_BELOW,
    seed: int = 0,
    nonfinite: str = "warn",
    **settings: Any,
) -> Any:
    """Return Adam in two phases for Keras 3, averaged over Horovod's processes (Tang et al. 2021, algorithm 1).

    In the first phase gradients are averaged uncompressed, and it is ``keras.optimizers.AdamW``. Then the variance is
    frozen, and workers exchange their momenta, compressed, with error feedback: with ``compression="onebit"``, its
    default, or ``"ef_signsgd"`` that is 1-bit Adam. The feedback that a compression comes with is not used. A
    coordinate that had no gradient in the first phase (of an unused row of an embedding, say) is not updated in the
    second, but for its weight decay: its variance is 0, and its momentum the compression's noise. With a single process
    the variance is never frozen. Sparse gradients are exchanged as dense ones. It is saved as AdamW.

    Args:
        learning_rate: a number, or a schedule of Keras.
        beta_1: decay of the average of gradients.
        beta_2: decay of the average of their squares.
        epsilon: added to the root of the variance.
        weight_decay: decoupled, as of AdamW.
        warmup_steps: those of the first phase, at least 1: until the variance has settled, some 15 to 20 % of all.
        compression: of the momentum: any that allows error feedback, or "none".
        rules: as in `DistributedOptimizer`, as are those that follow.
        process_set: the Horovod processes to average over.
        bucket_bytes: largest size of a bucket of gradients, in bytes, at least 1.
        dense_below: parameters with fewer coordinates than this, and those with one axis, are sent uncompressed.
        seed: of the compressors' random numbers, the same on all workers.
        nonfinite: what comes of gradients that are not finite, on any worker: "warn" or "error".
        settings: further arguments of ``keras.optimizers.AdamW``. Clipping is that of each worker's own gradients.

    Raises:
        ValueError: if an argument is outside its range, or a compression allows no feedback.
        TypeError: if an argument is of the wrong type.
    """
    if not isinstance(warmup_steps, int) or isinstance(warmup_steps, bool):
        raise TypeError(f"CompressedAdam: warmup_steps must be of type int; got {warmup_steps!r}")
    if warmup_steps < 1:
        raise ValueError(f"CompressedAdam: warmup_steps must be at least 1; got {warmup_steps}")
    if settings.get("amsgrad"):
        raise ValueError("CompressedAdam: amsgrad must be False; got True: its largest variance is not a frozen one")
    for name, beta in (("beta_1", beta_1), ("beta_2", beta_2)):
        if not 0 <= beta < 1:
            raise ValueError(f"CompressedAdam: {name} must be in [0, 1); got {beta}")
    for name, value in (("epsilon", epsilon), ("weight_decay", weight_decay)):
        if not value >= 0:
            raise ValueError(f"CompressedAdam: {name} must be at least 0; got {value}")

    def of_momentum(compressor: Compressor) -> Compressor:
        return PLAIN if compressor == PLAIN else ErrorFeedback(compressor.bare)

    own_rules = [replace(rule, compression=of_momentum(rule.compression)) for rule in as_rules(rules, None)]
    compressed = reduction_settings(
        of_momentum(as_compressor(compression)),
        sparse_as_dense=True,
        bucket_bytes=bucket_bytes,
        dense_below=dense_below,
        seed=seed,
        rules=own_rules,
        nonfinite=nonfinite,
    )
    members = {
        "__module__": "keras.optimizers",  # what is saved names the class by it
        "_warmup_steps": warmup_steps,
        "_compressed": compressed,
        "_plain": compressed.with_compression(PLAIN, None),
        "_process_set": process_set,
    }
    cls = type("AdamW", (_FrozenAdam, keras.optimizers.AdamW), members)
    return cls(learning_rate, weight_decay, beta_1, beta_2, epsilon, **settings)
