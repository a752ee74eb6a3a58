"""What several algorithms share: checks of settings, the learning rate, and compressors' states on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hvd_compress.compressors.state import State
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


def load_states(states: Sequence[State], saved: Mapping[str, Any]) -> None:
    """Undo `saved_states`."""
    for name, value in saved.items():
        number, *place = name.split("/", 2)
        state = states[int(number)]
        if place == ["step"]:
            state.step = int(value)
        else:
            store = state.shared if place[0] == "shared" else state.local
            store[place[1]] = value
            store.commit()
