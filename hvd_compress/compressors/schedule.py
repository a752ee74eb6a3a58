"""Settings that change with the step: any number among a compressor's settings may be one of these."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

END = 1 << 62  # a step at which every schedule has reached its end


@dataclass(frozen=True)
class Schedule:
    """A number that changes from `start` to `end` over `steps` steps, and stays at `end`.

    Attributes:
        start: the value at step 0.
        end: the value from step `steps` on.
        steps: length of the schedule, in optimizer steps.
        every: steps between changes; the steps of an epoch make it a schedule by epoch.
    """

    name: ClassVar[str]

    start: float
    end: float
    steps: int
    every: int = 1

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            TypeError: if one is no number.
            ValueError: if one is outside its range.
        """
        for key in ("start", "end", "steps", "every"):
            value = getattr(self, key)
            kinds = (int, float) if key in ("start", "end") else (int,)
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise TypeError(f"{self.name}: {key} must be a number{' of steps' * (kinds == (int,))}; got {value!r}")
            if kinds == (int,) and value < 1:
                raise ValueError(f"{self.name}: {key} must be in [1, inf); got {value!r}")

    def at(self, step: int) -> float:
        """Return the value at a step."""
        part = min(1.0, step // self.every * self.every / self.steps)
        return self.start if part == 0 else self.end if part == 1 else self._between(part)

    def _between(self, part: float) -> float:
        raise NotImplementedError

    def __str__(self) -> str:
        every = f", every={self.every}" if self.every != 1 else ""
        return f"{self.name}({self.start}, {self.end}, steps={self.steps}{every})"


class Linear(Schedule):
    """In equal steps."""

    name: ClassVar[str] = "linear"

    def _between(self, part: float) -> float:
        return self.start + part * (self.end - self.start)


class Exponential(Schedule):
    """By equal factors, as the ratio in DGC's warm-up (Lin et al. 2018, section 3.3): 25 %, 6.25 %, ..., 0.1 %."""

    name: ClassVar[str] = "exponential"

    def __post_init__(self) -> None:
        """Check the settings: both ends must be above zero."""
        super().__post_init__()
        for key in ("start", "end"):
            if not getattr(self, key) > 0:
                raise ValueError(f"{self.name}: {key} must be in (0, inf); got {getattr(self, key)!r}")

    def _between(self, part: float) -> float:
        return math.exp((1 - part) * math.log(self.start) + part * math.log(self.end))


SCHEDULES: dict[str, type[Schedule]] = {cls.name: cls for cls in (Linear, Exponential)}
