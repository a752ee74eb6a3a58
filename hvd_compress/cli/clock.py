"""Repeated timings of one operation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


class Clock:
    """The times of one operation, in seconds, one for each repetition."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def time(self, run: Callable[[], Any]) -> Any:
        """Call `run`, note how long it took, and return what it returned."""
        began = time.perf_counter()
        result = run()
        self.seconds.append(time.perf_counter() - began)
        return result

    @property
    def least(self) -> float:
        """The shortest time."""
        return min(self.seconds)

    @property
    def median(self) -> float:
        """The median time."""
        return statistics.median(self.seconds)
