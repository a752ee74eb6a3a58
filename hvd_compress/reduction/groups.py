"""Which parameters a user wants in one bucket: ``groups``, and what Horovod called it before, ``num_groups``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any


def as_groups(num_groups: int, groups: int | list[list[Any]] | None, stacklevel: int = 3) -> int | list[list[Any]]:
    """Return the groups that these two arguments mean; 0 if none.

    Raises:
        ValueError: if it is not what it should be, or a parameter is in two groups.
    """
    if num_groups:
        warnings.warn(
            f"num_groups is called groups by now, in Horovod as well: give groups={num_groups}",
            DeprecationWarning,
            stacklevel=stacklevel,
        )
        groups = num_groups if groups is None else groups
    if not groups:
        return 0
    if isinstance(groups, int):
        if groups < 0:
            raise ValueError(f"groups must be a number of at least 0, or a list of lists of parameters; got {groups}")
        return groups
    if not all(hasattr(parameter, "shape") for group in groups for parameter in group):
        raise ValueError(f"groups must be a number or a list of lists of parameters; got {groups!r}")
    every = [id(parameter) for group in groups for parameter in group]
    if len(set(every)) < len(every):
        raise ValueError("a parameter can be in one of the groups only, and there only once")
    return groups


def number_groups(named: Sequence[tuple[str, Any]], groups: int | list[list[Any]]) -> dict[str, int]:
    """Return the number of its group for each name whose parameter is in one.

    Args:
        named: (name, parameter) of all.
        groups: as `as_groups` returns them.
    """
    if isinstance(groups, int):
        share = -(-len(named) // groups) if groups else 0
        return {name: i // share for i, (name, _) in enumerate(named)} if groups else {}
    numbers = {id(parameter): number for number, group in enumerate(groups) for parameter in group}
    return {name: numbers[id(parameter)] for name, parameter in named if id(parameter) in numbers}
