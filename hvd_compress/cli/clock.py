"""Repeated timings of one operation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


class Clock:
    """The times of one operation, in seconds, one for each repetition.

    Args:
        settle: waits for what was started before, on a device that works on its own.
    """

    def __init__(self, settle: Callable[[], Any] = lambda: None) -> None:
        self.seconds: list[float] = []
        self._settle = settle

    def time(self, run: Callable[[], Any]) -> Any:
        """Call `run`, note how long it took, and return what it returned."""
        self._settle()
        began = time.perf_counter()
        result = run()
        self._settle()
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
