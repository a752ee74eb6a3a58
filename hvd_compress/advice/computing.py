"""What a model's step takes without any communication, measured in PyTorch."""

from __future__ import annotations

import importlib
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from hvd_compress.advice.model import Computing
from hvd_compress.reduction.buckets import Gradient

STEPS, SECONDS = 20, 10.0  # at most


def loaded(text: str) -> tuple[Any, Callable[[], Any]]:
    """Return a model and a function that computes its loss, of a batch of the size that a worker has.

    Args:
        text: "MODULE:FUNCTION": a function without arguments that returns both; MODULE may lie in the working folder.

    Raises:
        ValueError: if there is no such function, or it returns something else.
    """
    module, colon, name = text.partition(":")
    if not (module and colon and name):
        raise ValueError(f"--model must be MODULE:FUNCTION; got {text!r}")
    sys.path.insert(0, "")
    try:
        made = getattr(importlib.import_module(module), name)()
    except (AttributeError, ModuleNotFoundError) as error:
        raise ValueError(f"--model {text}: {error}") from error
    finally:
        sys.path.remove("")
    if not (isinstance(made, tuple) and len(made) == 2 and hasattr(made[0], "named_parameters") and callable(made[1])):
        raise ValueError(f"--model {text} must return a model and a function that computes its loss; got {made!r}")
    model, loss = made
    return model, loss


def gradients_of(model: Any) -> list[Gradient]:
    """Return what is known of a PyTorch model's gradients."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [Gradient(name, tuple(p.shape), str(p.dtype).removeprefix("torch."), str(p.device)) for name, p in named]


def computing_of(model: Any, loss: Callable[[], Any], optimizer: Any = None) -> Computing:
    """Return the medians of some steps, which leave the model as it is unless there is an optimizer.

    Args:
        model: a PyTorch model.
        loss: computes the loss of a batch.
        optimizer: of the model's parameters; None stands for SGD with momentum and a learning rate of 0.
    """
    import torch

    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    settle = torch.cuda.synchronize if next(model.parameters()).is_cuda else lambda: None
    parts: list[tuple[float, ...]] = []
    began = time.perf_counter()
    while len(parts) <= STEPS and (len(parts) < 3 or time.perf_counter() - began < SECONDS):
        marks = [time.perf_counter()]
        result = loss()
        for part in (lambda: None, result.backward, optimizer.step):
            part()
            settle()
            marks.append(time.perf_counter())
        optimizer.zero_grad()
        parts.append(tuple(b - a for a, b in itertools.pairwise(marks)))
    return Computing(*(statistics.median(times) for times in zip(*parts[1:], strict=True)))
