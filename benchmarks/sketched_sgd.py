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
    show: Callable[[dict[Run, dict[str, Any]]], str]


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


def row_of(own: list[dict[str, Any]]) -> tuple[float, float, float]:
    """Return mean and standard deviation of the accuracy, in percent, and how many times fewer bytes were sent."""
    accuracies = [100 * result["accuracy"] for result in own]
    deviation = statistics.stdev(accuracies) if len(own) > 1 else 0.0
    return statistics.mean(accuracies), deviation, own[0]["dense_bytes"] / own[0]["bytes_sent"]


def split_table(found: dict[Run, dict[str, Any]]) -> str:
    """Return accuracies as a table, momentum correction beside error feedback."""
    by_spec: dict[str, list[dict[str, Any]]] = {}
    for run, result in found.items():
        by_spec.setdefault(run.compression, []).append(result)
    lines = ["| compression | times fewer | momentum correction | error feedback |", "|---|---|---|---|"]
    for text, own in by_spec.items():
        if text.endswith(", momentum=0)"):
            continue
        mean, deviation, fewer = row_of(own)
        cells = [f"{mean:.1f} ± {deviation:.1f} %"]
        if text != "none" and (other := by_spec.get(text.replace(")", ", momentum=0)"))):
            mean, deviation, _ = row_of(other)
            cells.append(f"{mean:.1f} ± {deviation:.1f} %")
        lines.append(f"| `{text}` | {fewer:.1f} | {' | '.join(cells)} |{' |' * (2 - len(cells))}")
    return "\n".join(lines)


SPLIT = """## How to divide the bytes

    python benchmarks/sketched_sgd.py --data DIR --only split

MNIST, a perceptron of 269,322 parameters, four simulated workers of 32 examples each, two epochs, learning rate 0.05,
two seeds: mean ± standard deviation of the accuracy. All sketches send a fortieth of the dense bytes of the three
matrices; biases travel dense. Error feedback leaves the momentum, 0.9, to the optimizer. Trainings that diverge end at
9.8 %.

{table}

What decides is the truncation p1. If every worker sketches all of its vector, the noise of the many small coordinates
hides the large ones; what is chosen is not what has gathered, the residual grows, and with momentum training diverges.
With p1 = 1 or 2 and at least three rows it does not. Next come the candidates: without a second round (p2 = 0) the
estimates themselves are too noisy to apply, one candidate for each coordinate is too few, four are enough. A single row
is the worst use of the bytes, five rows the best or near it. Beyond that the number of coordinates matters little, from
one for 8 sums of the sketch to one for 32. Hence the rule for `budget`: five rows, 16 sums for each of k coordinates,
p1 = 2, p2 = 4.

Momentum correction is nowhere better than error feedback by more than noise, and it is what diverges where the
selection is poor: a coordinate that waits gathers momentum meanwhile. These are short trainings of a small network;
larger ones are still to be done.
"""


def show_split(found: dict[Run, dict[str, Any]]) -> str:
    """Return the section about the division of the bytes."""
    return SPLIT.format(table=split_table(found))


EXPERIMENTS = {"split": Experiment(split_runs(), show_split)}


def main() -> int:
    """Train what is missing and show what is there; 130 stands for Ctrl-C."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add_arguments(parser, "docs/results/runs")
    parser.add_argument("--output", type=Path, default=Path("docs/results/sketched-sgd.md"), help="the document")
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS), help="the parts")
    args = parser.parse_args()
    parts = ["# Sketched-SGD\n"]
    for name in args.only:
        experiment = EXPERIMENTS[name]
        try:
            if not args.draw:
                train_missing(experiment.runs, train, args)
        except KeyboardInterrupt:
            print("stopped; the same command goes on from here", file=sys.stderr)
            return 130
        parts.append(experiment.show(results(experiment.runs, args.results)))
    args.output.write_text("\n".join(parts))
    print(f"written: {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
