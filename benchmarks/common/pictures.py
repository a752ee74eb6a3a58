"""Pictures of results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter


@contextmanager
def picture(path: Path, panels: int) -> Iterator[list[Axes]]:
    """Give the axes of a picture's panels, which are side by side; write the picture at the end."""
    drawn, axes = plt.subplots(1, panels, figsize=(5.5 * panels, 4.2), constrained_layout=True, squeeze=False)
    yield list(axes[0])
    for one in axes[0]:
        one.grid(alpha=0.3, which="both")
        one.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=110)
    plt.close(drawn)


def logarithmic(axes: Axes, label: str, ticks: Sequence[float] | None = None) -> None:
    """Scale the horizontal axis logarithmically, with plain numbers at its ticks."""
    axes.set(xscale="log", xlabel=label)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if ticks is None else FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
