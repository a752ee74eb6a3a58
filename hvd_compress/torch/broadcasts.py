"""Horovod's broadcasts of parameters and optimizers' states: patched when this package is imported.

They take bfloat16, which Horovod does not know: of its bits a broadcast needs to know nothing but their number. And a
rank whose optimizer has no state, while the others resume from a checkpoint, keeps its parameters: Horovod makes the
state by a step with zeros for gradients, and weight decay would move that rank's parameters away from the others'.
"""

from __future__ import annotations

import functools
from typing import Any

import horovod.torch as hvd
import torch
from horovod.torch import functions
from horovod.torch.elastic import state
from torch import Tensor


def _of_bits(original: Any) -> Any:
    @functools.wraps(original)
    def broadcast_async_(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        bits = tensor.data.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
        return original(bits, *args, **kwargs)

    return broadcast_async_


def _in_place(original: Any) -> Any:
    @functools.wraps(original)
    def broadcast_optimizer_state(optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
        parameters = [] if optimizer.state else [p for group in optimizer.param_groups for p in group["params"]]
        before = [p.detach().clone() for p in parameters]
        original(optimizer, *args, **kwargs)
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)

    return broadcast_optimizer_state


functions.broadcast_async_ = _of_bits(functions.broadcast_async_)
_patched = _in_place(functions.broadcast_optimizer_state)
for _module in (functions, hvd, state):
    _module.broadcast_optimizer_state = _patched
