"""Means of trainings over their seeds, and how they are drawn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

from matplotlib.axes import Axes

from benchmarks.common.results import Results, over_seeds
from benchmarks.sketched_sgd.run import Run

Key = TypeVar("Key")


class Mean(NamedTuple):
    """The mean over seeds: accuracy in percent, and by what factor fewer bytes than uncompressed."""

    accuracy: float
    deviation: float
    fewer_sent: float
    fewer: float  # sent and received together
    seeds: int

    @property
    def text(self) -> str:
        """The accuracy for a table."""
        return f"{self.accuracy:.1f} ± {self.deviation:.1f} %" if self.seeds > 1 else f"{self.accuracy:.1f} %"


def mean_of(own: list[dict[str, Any]]) -> Mean:
    """Return the mean over seeds."""
    accuracies = [100 * result["accuracy"] for result in own]
    deviation = statistics.stdev(accuracies) if len(own) > 1 else 0.0
    dense, sent = (sum(result[name] for result in own) for name in ("dense_bytes", "bytes_sent"))
    received = sum(result.get("bytes_received", result["bytes_sent"]) for result in own)
    return Mean(statistics.mean(accuracies), deviation, dense / sent, 2 * dense / (sent + received), len(own))


def means_of(found: Results[Run], key: Callable[[Run], Key]) -> dict[Key, Mean]:
    """Return for each setting, named by `key`, the mean over its seeds."""
    return {key(run): mean_of(own) for run, own in over_seeds(found).items()}


def error_bars(axes: Axes, points: Iterable[tuple[float, Mean]], label: str) -> None:
    """Draw accuracies with their deviations over something."""
    at, means = zip(*sorted(points), strict=True)
    accuracies, deviations = [mean.accuracy for mean in means], [mean.deviation for mean in means]
    axes.errorbar(at, accuracies, yerr=deviations, marker="o", capsize=3, label=label)
    axes.set_ylabel("accuracy on the test set, %")
