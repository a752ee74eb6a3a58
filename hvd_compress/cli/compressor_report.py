"""The times of compressors as a table and as a picture."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

ENDINGS = ("", "_median")  # of the names of least and median times in a report


def table(report: dict[str, Any]) -> Any:
    """Return a report as a table of multiples of one copy of the vector."""
    from rich import box
    from rich.table import Table

    memcpy, size = report["memcpy_s"], report["size"]
    title = f"{size} coordinates, {_where(report)}: multiples of one copy ({1e3 * memcpy:.2f} ms)"
    within = "in encode" if report["framework"] == "tensorflow" else "not in encode"
    check = f"a step's check for non-finite values {report['check_s'] / memcpy:.2f}, {within}"
    shown = Table(box=box.MARKDOWN, title=f"{title}, least (median); {check}")
    shown.add_column("compressor")
    for column in ("encode", "decode", "both", "decode and sum 4", "feedback adds", "bytes", "times fewer"):
        shown.add_column(column, justify="right")
    for result in report["results"]:
        both = {f"both{ending}_s": result[f"encode{ending}_s"] + result[f"decode{ending}_s"] for ending in ENDINGS}
        times = result | both
        cells = [
            "-"
            if times[f"{name}_s"] is None
            else f"{times[f'{name}_s'] / memcpy:.2f} ({times[f'{name}_median_s'] / memcpy:.2f})"
            for name in ("encode", "decode", "both", "decode4", "feedback")
        ]
        sent = result["payload_bytes"]
        shown.add_row(result["spec"], *cells, str(sent), f"{4 * size / sent:.1f}" if sent else "-")
    return shown


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw encode and decode of each compressor as bars, in multiples of one copy of the vector."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    results = report["results"][::-1]
    encode, decode = ([r[f"{name}_s"] / report["memcpy_s"] for r in results] for name in ("encode", "decode"))
    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.3 * len(results)), layout="constrained")
    names = [textwrap.fill(r["spec"], 34) for r in results]
    axes.barh(names, encode, label="encode")
    axes.barh(names, decode, left=encode, label="decode")
    axes.axvline(1, color="black", linewidth=1, linestyle=":")
    axes.set_xlabel(f"multiples of one copy of {report['size']} floats, {_where(report)}")
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _where(report: dict[str, Any]) -> str:
    return f"{report['threads']} threads" if report["device"] == "cpu" else str(report["device"])
