"""Averages of a model over its training."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def averaged_iterates(model: nn.Module, shift: float) -> AveragedModel:
    """Return a model of averaged weights, for ``update_parameters(model)`` after each step.

    The weights of step t = 0, 1, ... count (shift + t)^2: the average of Ivkin et al. 2019, theorem 1, whose learning
    rate is proportional to 1 / (shift + t).

    Args:
        model: the model that is trained.
        shift: xi, above 0.

    Raises:
        ValueError: if `shift` is not above 0.
    """
    if not shift > 0:
        raise ValueError(f"averaged_iterates: shift must be above 0; got {shift}")

    def average(averaged: Tensor, current: Tensor, count: Any) -> Tensor:
        t = float(count)
        total = (t + 1) * (shift**2 + shift * t + t * (2 * t + 1) / 6)  # of (shift + s)^2, s = 0 to t
        return averaged + (current - averaged) * ((shift + t) ** 2 / total)

    return AveragedModel(model, avg_fn=average)
