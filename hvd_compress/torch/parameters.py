"""A model's parameters: named, checked, and divided as users ask for."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def check_parameters(
    optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, Tensor]] | None
) -> list[tuple[str, Tensor]]:
    """Return (name, parameter) of those that an optimizer has, each parameter once.

    Args:
        optimizer: any optimizer.
        named_parameters: of the model; None gives them names by their places.

    Raises:
        ValueError: if one has no name, or two have the same.
        TypeError: if one is not of a real floating dtype.
    """
    if named_parameters is None:
        named = [
            (f"allreduce.noname.{i}.{j}", p)
            for i, group in enumerate(optimizer.param_groups)
            for j, p in enumerate(group["params"])
        ]
    else:
        named = list(named_parameters)
    if any(not isinstance(item, tuple) for item in named):
        raise ValueError(
            "named_parameters should be a sequence of tuples (name, parameter), usually produced by "
            "model.named_parameters()."
        )
    names = [name for name, _ in named]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise ValueError(f"Parameter names in named_parameters must be unique. Found duplicates: {', '.join(twice)}")
    optimized = {p: tuple(p.shape) for group in optimizer.param_groups for p in group["params"]}
    with_names = {p for _, p in named}
    unnamed = [shape for p, shape in optimized.items() if p not in with_names]
    if unnamed:
        raise ValueError(
            "named_parameters was specified, but one or more model parameters were not named. Their shapes: "
            + ", ".join(map(str, unnamed))
        )
    chosen = once([(name, p) for name, p in named if p in optimized])
    for name, p in chosen:
        check_gradient(p, name)
    return chosen


def once(named: Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """Return names and parameters, each parameter (of tied layers, say) under its first name alone."""
    first: dict[Tensor, str] = {}
    for name, p in named:
        first.setdefault(p, name)
    return [(name, p) for p, name in first.items()]


def check_gradient(tensor: Tensor, name: str = "a gradient") -> None:
    """Raise TypeError unless a tensor is of a real floating dtype."""
    if not tensor.dtype.is_floating_point:
        raise TypeError(f"gradients must be of a real floating dtype; {name} is of {tensor.dtype}")
