"""What trainings came to: means over seeds, tables and pictures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter
from runs import Run

Results = dict[Run, dict[str, Any]]
Key = TypeVar("Key")


class Mean(NamedTuple):
    """What came of several seeds: accuracies in percent, and how many times fewer bytes than uncompressed."""

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


def means_of(found: Results, key: Callable[[Run], Key]) -> dict[Key, Mean]:
    """Return for each setting, named by `key`, the mean over its seeds."""
    return {key(run): mean_of(own) for run, own in seeds_of(found).items()}


def seeds_of(found: Results) -> dict[Run, list[dict[str, Any]]]:
    """Return for each setting, as the run of seed 0, the results of all seeds."""
    groups: dict[Run, list[dict[str, Any]]] = {}
    for run, result in found.items():
        groups.setdefault(replace(run, seed=0), []).append(result)
    return groups


def table(head: str, rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    columns = len(head.split(" | "))
    return "\n".join([f"| {head} |", "|---" * columns + "|", *(f"| {' | '.join(row)} |" for row in rows)])


@contextmanager
def picture(path: Path, panels: int) -> Iterator[list[Axes]]:
    """Give the axes of a picture, side by side; write it at the end."""
    drawn, axes = plt.subplots(1, panels, figsize=(5.5 * panels, 4.2), constrained_layout=True, squeeze=False)
    yield list(axes[0])
    for one in axes[0]:
        one.grid(alpha=0.3, which="both")
        one.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=110)
    plt.close(drawn)


def error_bars(axes: Axes, points: Iterable[tuple[float, Mean]], label: str) -> None:
    """Draw accuracies with their deviations over something."""
    at, means = zip(*sorted(points), strict=True)
    accuracies, deviations = [mean.accuracy for mean in means], [mean.deviation for mean in means]
    axes.errorbar(at, accuracies, yerr=deviations, marker="o", capsize=3, label=label)
    axes.set_ylabel("accuracy on the test set, %")


def logarithmic(axes: Axes, label: str, ticks: Sequence[float] | None = None) -> None:
    """Scale the horizontal axis logarithmically, with plain numbers at some ticks."""
    axes.set(xscale="log", xlabel=label)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if ticks is None else FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
