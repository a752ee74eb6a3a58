"""Draws the pictures that explain, as the documentation is built: boxes and arrows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
import matplotlib.patches
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sphinx.application import Sphinx

OURS, THEIRS, LINE = "#cfe3ff", "#eeeeee", "#555555"
matplotlib.rcParams["svg.hashsalt"] = "hvd_compress"  # the same picture gives the same file


def box(axes: Axes, x: float, y: float, text: str, color: str = OURS, width: float = 1.5) -> None:
    """Draw a box around its middle."""
    style = {"boxstyle": "round,pad=0.02,rounding_size=0.08", "facecolor": color, "edgecolor": LINE}
    axes.add_patch(matplotlib.patches.FancyBboxPatch((x - width / 2, y - 0.3), width, 0.6, **style))
    axes.text(x, y, text, ha="center", va="center", fontsize=9)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], bend: float = 0.0) -> None:
    """Draw an arrow."""
    style = {"arrowstyle": "-|>", "color": LINE, "connectionstyle": f"arc3,rad={bend}", "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=style)


def way(axes: Axes) -> None:
    """Draw the way of a gradient through a step."""
    stops = ["backward pass", "bucket", "encode", "collective", "decode", "mean in .grad", "optimizer"]
    for number, stop in enumerate(stops):
        box(axes, 2.1 * number, 0, stop, OURS if stop in ("bucket", "encode", "decode") else THEIRS, 1.6)
        if number:
            arrow(axes, (2.1 * number - 1.3, 0), (2.1 * number - 0.8, 0))
    arrow(axes, (4.2, 0.3), (8.4, 0.3), bend=-0.25)
    axes.text(6.3, 1.15, "other buckets go on meanwhile", ha="center", fontsize=8, color=LINE)
    box(axes, 4.2, -1.3, "residual", OURS)
    arrow(axes, (4.0, -0.3), (4.0, -1.0))
    arrow(axes, (4.4, -1.0), (4.4, -0.3))
    axes.text(5.1, -1.3, "what was not sent waits for the next step", fontsize=8, color=LINE, va="center")


def feedback(axes: Axes) -> None:
    """Draw what error feedback does in two steps."""
    for number, step in enumerate(("step t", "step t + 1")):
        x = 6.2 * number
        axes.text(x + 1.4, 1.3, step, ha="center", fontsize=10, weight="bold")
        box(axes, x, 0.5, "gradient", THEIRS)
        box(axes, x, -0.9, "residual")
        box(axes, x + 2.1, -0.2, "sum", OURS, 0.9)
        arrow(axes, (x + 0.75, 0.5), (x + 1.65, -0.1))
        arrow(axes, (x + 0.75, -0.9), (x + 1.65, -0.3))
        arrow(axes, (x + 2.55, -0.1), (x + 3.35, 0.5))
        arrow(axes, (x + 2.55, -0.3), (x + 3.35, -0.9))
        box(axes, x + 4.1, 0.5, "sent", THEIRS)
        box(axes, x + 4.1, -0.9, "the rest")
    arrow(axes, (4.85, -0.9), (5.45, -0.9))


def collectives(axes: Axes) -> None:
    """Draw an AllReduce beside an AllGather."""
    for left, title, inside in ((0.0, "AllReduce", "sum"), (7.4, "AllGather", "")):
        axes.text(left + 2.4, 1.5, title, ha="center", fontsize=10, weight="bold")
        for number in range(3):
            y = 0.8 - 0.9 * number
            box(axes, left, y, f"worker {number}", THEIRS)
            box(axes, left + 5.0, y, "the sum" if inside else "0, 1 and 2", OURS)
            if inside:
                arrow(axes, (left + 0.75, y), (left + 2.0, -0.1))
                arrow(axes, (left + 2.9, -0.1), (left + 4.25, y))
            else:
                for other in range(3):
                    arrow(axes, (left + 0.75, 0.8 - 0.9 * other), (left + 4.25, y))
        if inside:
            box(axes, left + 2.45, -0.1, inside, OURS, 0.9)
        what = "as much arrives however many there are" if inside else "what arrives grows with their number"
        axes.text(left + 2.4, -1.6, what, ha="center", fontsize=8, color=LINE)


PICTURES: dict[str, tuple[Callable[[Axes], None], tuple[float, float, float, float]]] = {
    "way": (way, (-1.0, 13.6, -1.7, 1.4)),
    "feedback": (feedback, (-1.0, 11.4, -1.3, 1.6)),
    "collectives": (collectives, (-1.0, 13.4, -1.8, 1.8)),
}


def draw(app: Sphinx) -> None:
    """Write the pictures."""
    folder = Path(app.srcdir) / "pictures"
    folder.mkdir(exist_ok=True)
    for name, (content, (left, right, low, high)) in PICTURES.items():
        figure = Figure(figsize=((right - left) * 0.62, (high - low) * 0.62))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(left, right), ylim=(low, high))
        axes.axis("off")
        content(axes)
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})


def setup(app: Sphinx) -> dict[str, bool]:
    """Draw once, before anything is read."""
    app.connect("builder-inited", draw)
    return {"parallel_read_safe": True}
