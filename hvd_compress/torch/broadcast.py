"""Horovod's broadcasts of parameters and optimizers' states take bfloat16: patched when this package is imported.

Horovod does not know bfloat16, and of its bits a broadcast needs to know nothing but their number.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from horovod.torch import functions
from torch import Tensor


def _of_bits(original: Any) -> Any:
    @functools.wraps(original)
    def broadcast_async_(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        bits = tensor.data.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
        return original(bits, *args, **kwargs)

    return broadcast_async_


functions.broadcast_async_ = _of_bits(functions.broadcast_async_)
