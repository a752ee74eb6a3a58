"""Sketched-SGD on simulated workers: how to divide its bytes, how far it goes, with how many workers, masking or not.

Every training leaves a file; what has one is not repeated. So the command can be stopped with Ctrl-C and started again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from runs import Run, add_arguments, results, train_missing
from simulated import train

COORDINATES = 268_800  # of the perceptron's three matrices
BUDGET = 1 / 40


def mnist(compression: str, seed: int = 0, **more: Any) -> Run:
    """Return a training of the perceptron on MNIST."""
    settings = {"workers": 4, "batch": 128, "epochs": 2, "lr": 0.05, "warmup": 0.1} | more
    return Run("mnist", "mlp", compression, seed=seed, **settings)


def divided(sums: float, rows: int, p1: float, p2: float, budget: float = BUDGET, more: str = "") -> str:
    """Return the spec of a sketch with so many sums for each of k coordinates, all within a budget."""
    numbers = budget * COORDINATES
    k = int(numbers / (sums + p2))
    columns = int((numbers - p2 * k) / rows)
    return f"sketched_sgd(k={k}, rows={rows}, columns={columns}, p1={p1:g}, p2={p2:g}{more})"


class Experiment(NamedTuple):
    """Trainings with what they are to show, and how their results are shown."""

    runs: list[Run]
    show: Callable[[dict[Run, dict[str, Any]], Path], str]


def split_runs() -> list[Run]:
    """Return the trainings that the rule for the budget comes from."""
    specs = ["none", f"topk(ratio={BUDGET / 2:g}, scope=model, feedback=momentum)"]
    for more in ("", ", momentum=0"):
        for sums in (4, 8, 16, 32, 64):
            specs += [divided(sums, rows, 2, 4, more=more) for rows in (1, 3, 5)]
        for p1 in (0, 1, 4, 8):
            specs += [divided(16, rows, p1, 4, more=more) for rows in (1, 3)]
        for p2 in (0, 1, 2, 8):
            specs += [divided(16, rows, 2, p2, more=more) for rows in (1, 3)]
    return [mnist(spec, seed) for seed in range(2) for spec in specs]


def show_table(found: dict[Run, dict[str, Any]], folder: Path) -> str:
    """Return accuracies and bytes as a table."""
    lines = ["| compression | workers | accuracy | times fewer |", "|---|---|---|---|"]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run, result in found.items():
        groups.setdefault((run.task, run.compression, run.workers), []).append(result)
    for (_, compression, workers), own in groups.items():
        accuracies = [100 * result["accuracy"] for result in own]
        deviation = statistics.stdev(accuracies) if len(own) > 1 else 0.0
        fewer = own[0]["dense_bytes"] / own[0]["bytes_sent"] if len(own[0]["curve"]) else 0.0
        mean = f"{statistics.mean(accuracies):.1f} ± {deviation:.1f} %"
        lines.append(f"| `{compression}` | {workers} | {mean} | {fewer:.1f} |")
    return "\n".join(lines)


EXPERIMENTS = {"split": Experiment(split_runs(), show_table)}


def main() -> int:
    """Train what is missing and show what is there; 130 stands for Ctrl-C."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add_arguments(parser, "docs/results/runs")
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS), help="what to show")
    args = parser.parse_args()
    for name in args.only:
        experiment = EXPERIMENTS[name]
        try:
            if not args.draw:
                train_missing(experiment.runs, train, args)
        except KeyboardInterrupt:
            print("stopped; the same command goes on from here", file=sys.stderr)
            return 130
        print(experiment.show(results(experiment.runs, args.results), args.results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
