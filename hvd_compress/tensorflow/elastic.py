"""Elastic jobs under TensorFlow and Keras 3, where Horovod's own state does not start: `KerasState`, and its `run`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf
from horovod.common.elastic import ObjectState, run_fn
from horovod.common.exceptions import HorovodInternalError

from hvd_compress.tensorflow.reducer import GradientReducer
from hvd_compress.tensorflow.variables import broadcast_variables

__all__ = ["KerasState", "run"]

_OF_COLLECTIVES = ("Horovod", "node hvd_compress.")  # one of these is in TensorFlow's message if a collective failed


def run(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a training function that goes on when workers are lost or come in: to use in place of Horovod's own.

    ``hvd.elastic.run`` does not know the names of our collectives, and of errors that it does not know it returns as if
    the training had ended.

    Args:
        function: its first argument is the state that all workers have in common, such as a `KerasState`.
    """

    @functools.wraps(function)
    def known(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except tf.errors.UnknownError as error:
            if any(part in error.message for part in _OF_COLLECTIVES):
                raise HorovodInternalError(error.message) from error
            raise

    return run_fn(known, _reset)


def _reset() -> None:
    hvd.shutdown()
    hvd.init()


class KerasState(ObjectState):
    """A Keras 3 model, its optimizer and whatever else belongs to a training, in an elastic job.

    What was committed last is restored after an error. When workers have come or gone, the model is traced anew.

    Args:
        model: built and compiled.
        more: further attributes, such as ``epoch=0``, which all workers get from the one of rank 0.

    Raises:
        ValueError: if the model is not built, or has no optimizer.
    """

    def __init__(self, model: Any, **more: Any) -> None:
        if not model.built or getattr(model, "optimizer", None) is None:
            raise ValueError("the model of a KerasState must be built and compiled: call model.build() and compile()")
        self.model = model
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        self._save_model()
        super().__init__(bcast_object=hvd.broadcast_object, get_rank=hvd.rank, **more)

    def save(self) -> None:
        """Keep a copy of all."""
        self._save_model()
        super().save()

    def restore(self) -> None:
        """Go back to the copy."""
        for variable, value in zip(self._variables, self._values, strict=True):
            variable.assign(value)
        for reducer, state in self._compressors.items():
            reducer.deserialize(state)
        super().restore()

    def sync(self) -> None:
        """Take what rank 0 has; what compressors keep is compared in the next step."""
        broadcast_variables(self._variables, root_rank=0)
        self._save_model()
        super().sync()

    def reset(self) -> None:
        """Let Keras trace its functions anew, after workers have come or gone."""
        self.model.train_function = self.model.test_function = self.model.predict_function = None

    @property
    def _variables(self) -> list[Any]:
        return [*self.model.weights, *self.model.optimizer.variables]

    def _save_model(self) -> None:
        self._values = [variable.numpy() for variable in self._variables]
        owned = vars(self.model.optimizer).values()
        self._compressors = {each: each.serialize() for each in owned if isinstance(each, GradientReducer)}
