"""What the workers' states must have in common: compared when they agree, and taken from one who has it.

Horovod's examples load a checkpoint on rank 0 alone and broadcast the model and the optimizer's state. The compressors'
state is not part of that: the others begin with an empty one, and their steps, random numbers, schedules and shared
arrays would be others than rank 0's.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hvd_compress.ops import Array


def summary(steps: int, states: Sequence[Mapping[str, Any]], whole: bool, to_numpy: Callable[[Array], Any]) -> Any:
    """Return what a worker tells of its state, as JSON can hold it.

    Args:
        steps: that were taken.
        states: of its exchanges, as `State.state_dict` has them; none if they begin anew.
        whole: whether it has the arrays that are its own, saved by as many workers as there are.
        to_numpy: turns one of their arrays into NumPy's.
    """
    common = [[state["step"], _digest(state["shared"], to_numpy)] for state in states]
    anew = all(entry == [0, 0] for entry in common)
    return {"steps": steps, "common": [] if anew else common, "whole": whole}


def source_of(summaries: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the rank whose state the others take: that of the most steps; None if they have the same in common."""
    if all(same(told, summaries[0]) for told in summaries):
        return None
    return most_steps(summaries)


def most_steps(summaries: Sequence[Mapping[str, Any]]) -> int:
    """Return the rank of the most steps: of several one whose compressors have taken some, then the first."""
    return max(range(len(summaries)), key=lambda r: (summaries[r]["steps"], bool(summaries[r]["common"]), -r))


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell whether two workers' states have the same in common."""
    return bool((one["steps"], one["common"]) == (other["steps"], other["common"]))


def packed(states: Sequence[Mapping[str, Any]], to_numpy: Callable[[Array], Any]) -> list[Any]:
    """Return the steps and shared arrays of states as JSON can hold them."""
    return [
        [state["step"], {name: _packed(to_numpy(array)) for name, array in state["shared"].items()}] for state in states
    ]


def unpacked(told: Sequence[Any], from_numpy: Callable[[Any, int], Array]) -> list[tuple[int, dict[str, Array]]]:
    """Return the steps and shared arrays that `packed` was given.

    Args:
        told: what it returned.
        from_numpy: turns NumPy's arrays into those of the state of a number.
    """
    return [
        (step, {name: from_numpy(_unpacked(array), number) for name, array in shared.items()})
        for number, (step, shared) in enumerate(told)
    ]


def _digest(shared: Mapping[str, Array], to_numpy: Callable[[Array], Any]) -> int:
    total = 0
    for name in sorted(shared):
        total = zlib.crc32(np.ascontiguousarray(to_numpy(shared[name])).data, zlib.crc32(name.encode(), total))
    return total


def _packed(array: Any) -> list[Any]:
    data = base64.b64encode(np.ascontiguousarray(array).data).decode()
    return [str(array.dtype), list(array.shape), data]


def _unpacked(told: Sequence[Any]) -> Any:
    dtype, shape, data = told
    return np.frombuffer(base64.b64decode(data), dtype).reshape(shape).copy()
