"""What several algorithms share: checks of settings, the learning rate, and compressors' states on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvd_compress.compressors.state import State
from hvd_compress.parameter_server.codecs import Vector
from hvd_compress.parameter_server.protocols import JobPlan


def check_counts(settings: object, **least: int) -> None:
    """Raise ValueError if a setting is below its least value; None is always allowed."""
    for name, bound in least.items():
        value = getattr(settings, name)
        if value is not None and value < bound:
            raise ValueError(f"{name} must be at least {bound}; got {value}")


def check_positive(settings: object, *names: str) -> None:
    """Raise ValueError if a setting is not above 0; None is always allowed."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be in (0, inf); got {value}")


def delay_bound(max_delay: int | None, plan: JobPlan) -> int:
    """Return the most steps of delay: 4 for each worker if none are given."""
    return 4 * len(plan.roles.worker_ranks) if max_delay is None else max_delay


def learning_rate(lr: float, steps: int) -> Callable[[int], float]:
    """Return the learning rate as a function of the step; it falls to 0 linearly in so many steps if there are any."""
    return lambda step: lr * max(0.0, 1 - step / steps) if steps else lr


def saved_states(states: Sequence[State]) -> dict[str, Any]:
    """Return what compressors keep of each shard, as arrays and numbers by name."""
    kept: dict[str, Any] = {}
    for i, state in enumerate(states):
        kept[f"{i}/step"] = state.step
        for place, store in (("shared", state.shared), ("local", state.local)):
            kept |= {f"{i}/{place}/{name}": np.array(array) for name, array in store.kept.items()}
    return kept


def load_states(states: Sequence[State], saved: Mapping[str, Any], *, own: bool = True) -> None:
    """Undo `saved_states`; without `own`, of what another worker saved, take only what is equal on all workers.

    Raises:
        ValueError: if it is not what compressors of these layouts keep.
    """
    missing = [f"{i}/step" for i in range(len(states)) if f"{i}/step" not in saved]
    if missing:
        raise ValueError(f"there is no {missing[0]}")
    for name, value in saved.items():
        number, *place = name.split("/", 2)
        if not number.isdecimal() or int(number) >= len(states) or place[0] not in ("step", "shared", "local"):
            raise ValueError(f"{name} is of no compressor of this job")
        state = states[int(number)]
        if place == ["step"]:
            state.step = int(value)
        elif place[0] == "shared":
            state.shared[place[1]] = finite(name, value)
        elif own:
            state.local[place[1]] = vector_of(saved, name, state.layout.size)
    for state in states:
        state.shared.commit()
        state.local.commit()


def vector_of(saved: Mapping[str, Any], name: str, size: int) -> Vector:
    """Return an array of a saved state.

    Raises:
        ValueError: unless it is there, float32, of shape (size,) and finite.
    """
    array = np.asarray(saved.get(name))
    if array.dtype != np.float32 or array.shape != (size,):
        raise ValueError(
            f"{name} must be of shape ({size},) and float32; it is of shape {array.shape} and {array.dtype}"
        )
    return finite(name, array)


def finite(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Return an array; ValueError if not all its values are finite."""
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has values that are not finite")
    return array
