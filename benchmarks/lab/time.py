"""Time to accuracy: the steps to a target, from the trainings, times the seconds of a step behind a link."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

from benchmarks.common.results import Results
from benchmarks.lab.accuracy import SEEDS, WORKERS, Training, tuned
from benchmarks.lab.methods import PLAIN
from benchmarks.lab.steps import STACKS, Cell
from benchmarks.lab.tasks import TASKS

BEHIND, WORSE = 0.01, 1.05  # the target: so much less accuracy than the baseline, or so many times its perplexity
CURVE_OF = {  # whose accuracy a baseline has
    "Horovod, fp32": PLAIN,
    "DDP, fp32": PLAIN,
    "Horovod, fp16": "fp16",
    "DDP, fp16 hook": "fp16",
    "DDP, PowerSGD hook": "powersgd(rank=2)",
}
Curve = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Mean:
    """A mean with its 95 % interval, of as many values as there are seeds.

    Attributes:
        value: the mean.
        half: half of the interval's width; NaN of a single value.
        count: of the values.
    """

    value: float
    half: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Mean:
        """Return the mean of some values, with Student's interval."""
        given = list(values)
        half = math.nan
        if len(given) > 1:
            factor = float(stats.t.ppf(0.975, len(given) - 1))
            half = factor * statistics.stdev(given) / math.sqrt(len(given))
        return cls(statistics.mean(given), half, len(given))

    def text(self, digits: int, factor: float = 1.0) -> str:
        """Return the mean for a table, times a factor."""
        value = f"{factor * self.value:,.{digits}f}"
        return value if self.count < 2 else f"{value} ± {factor * self.half:,.{digits}f}"


def steps_to(curve: Curve, score: float, larger_is_better: bool) -> float | None:
    """Return the steps until a score is reached, on a straight line between scorings; None if it is not."""
    sign = 1 if larger_is_better else -1
    before: tuple[float, float] | None = None
    for steps, reached in curve:
        if sign * reached >= sign * score:
            if before is None or reached == before[1]:
                return float(steps)
            share = (score - before[1]) / (reached - before[1])
            return before[0] + share * (steps - before[0])
        before = (steps, reached)
    return None


def seconds_a_step(measured: Results[Cell]) -> Mapping[tuple[int, int, str, str, str], float]:
    """Return by hosts, Mbit/s, stack, model and scheme the median over the rounds."""
    groups: dict[tuple[int, int, str, str, str], list[float]] = {}
    for cell, result in measured.items():
        key = (cell.hosts, cell.mbits, cell.stack, cell.model, cell.scheme)
        groups.setdefault(key, []).append(result["seconds"])
    return {key: statistics.median(values) for key, values in groups.items()}


def curve_of(scheme: str) -> str:
    """Return the method whose trainings a scheme's accuracy is taken from."""
    return CURVE_OF.get(scheme, scheme)


@dataclass(frozen=True)
class Timed:
    """A method's time to the target behind a link, over the stack on which its steps are the shortest.

    Attributes:
        scheme, stack: whose.
        step: seconds of a step.
        seconds: to the target; None if not all seeds reach it.
    """

    scheme: str
    stack: str
    step: float
    seconds: Mean | None


class Times:
    """The results of the study: steps to a target, seconds a step, and their product.

    Args:
        trainings: of the simulated workers.
        cells: seconds a step.

    Attributes:
        factors: the chosen factor of the learning rate, by task and method.
        seconds: of a step, as `seconds_a_step` has them.
    """

    def __init__(self, trainings: Results[Training], cells: Results[Cell]) -> None:
        self._trainings = trainings
        self.factors = tuned(trainings)
        self.seconds = seconds_a_step(cells)

    def reported(self, task: str, method: str, workers: int = WORKERS, longer: int = 1) -> list[Any]:
        """Return the results of a method's trainings with the chosen learning rate, one a seed."""
        factor = self.factors.get((task, method))
        if factor is None:
            return []
        runs = [Training(task, method, factor, workers, seed, longer) for seed in range(SEEDS)]
        return [self._trainings[run] for run in runs if run in self._trainings]

    def target(self, task: str) -> float | None:
        """Return the score that counts as reached: a little worse than what the baseline ends with."""
        finals = [result["curve"][-1][1] for result in self.reported(task, PLAIN)]
        if not finals:
            return None
        mean = statistics.mean(finals)
        return mean - BEHIND if TASKS[task].larger_is_better else mean * WORSE

    def steps_to_target(self, task: str, method: str) -> Mean | None:
        """Return the steps to the target; None unless all seeds reach it."""
        score, results = self.target(task), self.reported(task, method)
        if score is None or not results:
            return None
        steps = [steps_to(result["curve"], score, TASKS[task].larger_is_better) for result in results]
        return Mean.of([each for each in steps if each is not None]) if None not in steps else None

    def step(self, hosts: int, mbits: int, model: str, scheme: str) -> tuple[str, float] | None:
        """Return the stack on which a scheme's step is the shortest, and its seconds; None if it is not measured."""
        found = {stack: self.seconds.get((hosts, mbits, stack, model, scheme)) for stack in STACKS}
        measured = {stack: seconds for stack, seconds in found.items() if seconds is not None}
        return min(measured.items(), key=lambda item: item[1]) if measured else None

    def fastest(self, hosts: int, mbits: int, model: str, schemes: Iterable[str]) -> tuple[str, float] | None:
        """Return that one of some schemes whose step is the shortest, and its seconds."""
        found = {scheme: step[1] for scheme in schemes if (step := self.step(hosts, mbits, model, scheme))}
        return min(found.items(), key=lambda item: item[1]) if found else None

    def to_target(self, mbits: int, task: str, scheme: str) -> Timed | None:
        """Return a scheme's time to the target on as many hosts as the trainings have workers."""
        step = self.step(WORKERS, mbits, task, scheme)
        if step is None or not self.reported(task, curve_of(scheme)):
            return None
        steps = self.steps_to_target(task, curve_of(scheme))
        seconds = steps and Mean(steps.value * step[1], steps.half * step[1], steps.count)
        return Timed(scheme, step[0], step[1], seconds)
