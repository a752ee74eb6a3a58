"""What a Keras 3 job under Horovod needs beside its optimizer; Horovod's own callbacks are for Keras 2."""

from __future__ import annotations

import importlib.util
from typing import Any

import horovod.tensorflow as hvd
import keras
import numpy as np
import tensorflow as tf

from hvd_compress.tensorflow.variables import broadcast_variables

__all__ = ["BroadcastAtStart", "LearningRateWarmup", "MetricAverage", "TensorBoard"]


class BroadcastAtStart(keras.callbacks.Callback):
    """Give all workers the weights and the optimizer's variables of one of them before the first batch.

    A model that has no weights before its first batch gets them after it.

    Args:
        root_rank: the worker whose variables all get.
        process_set: the Horovod processes that take part.
    """

    def __init__(self, root_rank: int = 0, process_set: Any = hvd.global_process_set) -> None:
        super().__init__()
        if not 0 <= root_rank < hvd.size():
            raise ValueError(f"root_rank must be in 0 to {hvd.size() - 1}; got {root_rank}")
        self.root_rank, self.process_set = root_rank, process_set
        self._done = False

    def on_train_begin(self, logs: Any = None) -> None:
        """Broadcast, if there is something."""
        if self.model.built and not self._done:
            if not self.model.optimizer.built:
                self.model.optimizer.build(self.model.trainable_variables)
            self._broadcast()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Broadcast, if there was nothing before."""
        if not self._done:
            self._broadcast()

    def _broadcast(self) -> None:
        variables = [*self.model.weights, *self.model.optimizer.variables]
        broadcast_variables(variables, self.root_rank, self.process_set)
        self._done = True


class MetricAverage(keras.callbacks.Callback):
    """Average the metrics of an epoch over the workers, before the callbacks that come after this one see them.

    Args:
        process_set: the Horovod processes that take part.
    """

    def __init__(self, process_set: Any = hvd.global_process_set) -> None:
        super().__init__()
        self.process_set = process_set

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Replace the numbers in `logs`."""
        names = sorted(logs or {})
        if not logs or not names:
            return
        values = tf.constant([float(logs[name]) for name in names], tf.float64)
        means = hvd.allreduce(values, op=hvd.Average, name="hvd_compress.metrics", process_set=self.process_set)
        logs.update(zip(names, map(float, np.asarray(means)), strict=True))


class LearningRateWarmup(keras.callbacks.Callback):
    """Raise the learning rate from its W-th part to its value, batch by batch (Goyal et al. 2017, section 2.2).

    Args:
        initial_lr: the learning rate after the warm-up, as a rule W times that of one worker.
        warmup_epochs: its length, above 0.
        steps_per_epoch: batches an epoch; None for what `fit` says.
        verbose: 1 says when the warm-up ends.
    """

    def __init__(
        self, initial_lr: float, warmup_epochs: float = 5, steps_per_epoch: int | None = None, verbose: int = 0
    ) -> None:
        super().__init__()
        for name, value in (("initial_lr", initial_lr), ("warmup_epochs", warmup_epochs)):
            if not value > 0:
                raise ValueError(f"{name} must be above 0; got {value}")
        if steps_per_epoch is not None and steps_per_epoch < 1:
            raise ValueError(f"steps_per_epoch must be at least 1; got {steps_per_epoch}")
        self.initial_lr, self.warmup_epochs, self.verbose = initial_lr, warmup_epochs, verbose
        self.steps_per_epoch = steps_per_epoch
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Note the epoch."""
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Set the learning rate, until the warm-up is over."""
        steps = self.steps_per_epoch or self.params.get("steps")
        if not steps:
            raise ValueError("steps_per_epoch must be given: fit does not know how many batches an epoch has")
        passed = (self._epoch + batch / steps) / self.warmup_epochs
        if passed >= 1:
            return
        first = 1 / hvd.size()
        self.model.optimizer.learning_rate = self.initial_lr * (first + passed * (1 - first))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Leave the learning rate at its value."""
        if epoch < self.warmup_epochs <= epoch + 1:
            self.model.optimizer.learning_rate = self.initial_lr
            if self.verbose and hvd.rank() == 0:
                print(f"epoch {epoch + 1}: the learning rate has risen to {self.initial_lr:g}")


class _TensorBoard(keras.callbacks.TensorBoard):
    def on_train_begin(self, logs: Any = None) -> None:
        if not hasattr(self.model.optimizer, "compression_stats"):
            raise TypeError(
                f"TensorBoard shows what a DistributedOptimizer sends; the optimizer is {self.model.optimizer!r}"
            )
        super().on_train_begin(logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        stats = self.model.optimizer.compression_stats()
        numbers = {name: value for name, value in stats.items() if isinstance(value, int | float)}
        super().on_epoch_end(epoch, {**(logs or {}), **numbers})


def TensorBoard(log_dir: str = "logs", **settings: Any) -> keras.callbacks.Callback:
    """Return ``keras.callbacks.TensorBoard`` for rank 0, and a callback that does nothing for the others.

    With the metrics of an epoch it logs what rank 0 has sent since the beginning: the numbers of
    `DistributedOptimizer`'s ``compression_stats()``, such as ``epoch_bytes_sent`` and ``epoch_ratio``.

    Args:
        log_dir: the folder for TensorBoard to read.
        settings: other arguments of ``keras.callbacks.TensorBoard``.

    Raises:
        ImportError: if TensorBoard is not installed.
        TypeError: when training begins, if the model's optimizer is not a `DistributedOptimizer`.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise ImportError("what TensorBoard reads is written by its own package: pip install tensorboard")
    return _TensorBoard(log_dir, **settings) if hvd.rank() == 0 else keras.callbacks.Callback()
