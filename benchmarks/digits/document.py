"""The document: a table of what each setting reached, and what follows from it."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.common.markdown import paragraph, table
from benchmarks.digits import text
from benchmarks.digits.settings import WITH_TENSORFLOW, Setting
from hvd_compress import methods

DEFAULTS = {"framework": "torch", "ranks": 2, "seeds": 3}  # what the command shown in the document need not say


class Row(NamedTuple):
    """The results of one setting: accuracies in percent, bytes sent, and the factor by which they are fewer."""

    setting: Setting
    accuracies: list[float]
    sent: float
    fewer: float

    @property
    def mean(self) -> float:
        """The mean accuracy."""
        return statistics.mean(self.accuracies)

    @property
    def deviation(self) -> float:
        """The standard deviation over the seeds."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0


def row_of(setting: Setting, runs: list[dict[str, Any]]) -> Row:
    """Return the row of one setting, given the results of its seeds."""
    sent = statistics.mean(run["bytes_sent"] for run in runs)
    dense = statistics.mean(run["dense_bytes"] for run in runs)
    return Row(setting, [100 * run["accuracy"] for run in runs], sent, dense / sent)


def noise_of(rows: list[Row], seeds: int) -> float:
    """Return twice the standard error of a difference of two means over the seeds, in points of percent.

    The standard deviation over the seeds is the median of all rows': a few seeds are too few to estimate it for one
    row, and a method that does not learn must not widen what counts as noise.
    """
    return 2 * statistics.median(row.deviation for row in rows) * (2 / seeds) ** 0.5


def about(rows: list[Row], run: dict[str, Any], noise: float, args: argparse.Namespace) -> str:
    """Return what was trained, and on what."""
    of_run = {name: run[name] for name in ("parameters", "cores", "test_examples")}
    given = {"framework": args.framework, "ranks": args.ranks, "seeds": args.seeds}
    one = 100 / run["test_examples"]
    return paragraph(text.ABOUT.format(**of_run, **given, noise=noise, rows=len(rows), one=one))


def findings(rows: list[Row], behind: Callable[[Row], bool], framework: str) -> str:
    """Return what the tables show."""

    def named(some: list[Row]) -> str:
        found = (f"`{r.setting.compression}`" + f" with `{r.setting.more}`" * bool(r.setting.more) for r in some)
        return ", ".join(found) or "none of them"

    of_methods = [row for row in rows if row.setting.kind == "method"][1:]
    compositions = [row for row in rows if row.setting.kind == "composition"]
    good = [row for row in rows if not behind(row) and row.setting.kind != "comparison"]
    plain = [row for row in of_methods if row.setting.compression in methods() and not row.setting.more]
    lost = [r for r in rows if r.setting.kind == "comparison" and r.setting.compression != "none" and behind(r)]
    chosen = text.CHOSEN
    if framework == "tensorflow":
        chosen = text.CHOSEN_WITH_TENSORFLOW.format(" and ".join(f"`{name}`" for name in WITH_TENSORFLOW))
    return paragraph(
        text.FINDINGS.format(
            methods=len(of_methods),
            methods_good=sum(not behind(row) for row in of_methods),
            compositions=len(compositions),
            compositions_good=sum(not behind(row) for row in compositions),
            behind=named([row for row in of_methods + compositions if behind(row)]),
            fewest=named([max(good, key=lambda row: row.fewer)]),
            keep_up=named([row for row in plain if not behind(row)]),
            do_not=named(lost),
            chosen=chosen,
        )
    )


def document(rows: list[Row], runs: dict[Setting, list[dict[str, Any]]], args: argparse.Namespace) -> str:
    """Return the tables, and what they show, as Markdown."""
    base = rows[0]
    noise = noise_of(rows, args.seeds)

    def behind(row: Row) -> bool:
        return row.mean < base.mean - noise

    def cells(row: Row) -> list[str]:
        setting = row.setting
        cells = [f"`{setting.compression}`", f"`{setting.more}`" if setting.more else ""]
        cells += [f"{row.mean:.1f} ± {row.deviation:.1f} %", f"{row.sent / 1e6:.2f} MB", f"{row.fewer:.1f}"]
        verdict = "behind" if behind(row) else "above" if row.mean > base.mean + noise else "within noise"
        return cells + (["", ""] if row is base else [f"{row.mean - base.mean:+.1f}", verdict])

    given = {"framework": args.framework, "ranks": args.ranks, "seeds": args.seeds}
    options = [f"--{name} {value}" for name, value in given.items() if value != DEFAULTS[name]]
    parts = [
        text.TITLE,
        " ".join(["    python -m benchmarks.digits", *options]),
        about(rows, runs[base.setting][0], noise, args),
        findings(rows, behind, args.framework),
    ]
    head = "compression | further arguments | accuracy | sent by each worker | times fewer | against `none` | verdict"
    for kind, title in text.TABLES.items():
        parts += [f"## {title}", table(head, (cells(row) for row in rows if row.setting.kind == kind))]
    return "\n\n".join(parts) + "\n"
