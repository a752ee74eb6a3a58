"""What a recorder of phases learns of PyTorch's optimizers."""

from __future__ import annotations

import functools
import threading
import weakref
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from hvd_compress.reduction.phases import Phases

_recorders: weakref.WeakSet[Phases] = weakref.WeakSet()
_lock = threading.Lock()  # optimizers may be made, and take steps, in several threads


@functools.cache
def _listen() -> None:
    """Tell all recorders when a step of any optimizer of this process begins and ends."""

    def begins(*_: Any) -> None:
        for phases in _known():
            phases.optimizer_begins()

    def ends(*_: Any) -> None:
        for phases in _known():
            phases.optimizer_ends()

    register_optimizer_step_pre_hook(begins)
    register_optimizer_step_post_hook(ends)


def recorder() -> Phases:
    """Return a new recorder that is told of PyTorch's optimizers."""
    _listen()
    phases = Phases()
    with _lock:
        _recorders.add(phases)
    return phases


def _known() -> list[Phases]:
    with _lock:
        return [*_recorders]
