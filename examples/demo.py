"""Train the digits with several compressors on two processes; print a table and draw accuracy against bytes sent."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

SPECS = ("none", "fp16", "topk(ratio=0.01)", "qsgd(bits=4)", "powersgd(rank=2)", "sketched_sgd")
# What is trained, by name: with which of the examples, and with which compressor.
TRAININGS = {**{spec: ("torch", spec) for spec in SPECS}, "topk(ratio=0.01), Keras": ("keras", "topk(ratio=0.01)")}


def run(example: str, compressors: list[str], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Train with each compressor in one start of horovodrun; yield the JSON objects, one a training, as they come."""
    folder = Path(__file__).parent
    command = ["horovodrun", "-np", str(args.processes), sys.executable, str(folder / "train_many.py")]
    for seed in range(args.seeds):
        common = ["--seed", str(seed), "--epochs", str(args.epochs)]
        command += [shlex.join(["--compression", compression, *common]) for compression in compressors]
    paths = [str(folder / example), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=env) as job:
            assert job.stdout is not None
            for line in job.stdout:
                if found := re.search(r'\{"accuracy".*\}', line):
                    yield json.loads(found[0])
        if job.returncode:
            errors.seek(0)
            sys.exit(f"{shlex.join(command)}\nended with {job.returncode}:\n{errors.read()[-3000:]}")


def percent(values: list[float]) -> tuple[float, float]:
    """Return mean and standard deviation, in percent."""
    return 100 * statistics.mean(values), 100 * (statistics.stdev(values) if len(values) > 1 else 0.0)


def table(results: dict[str, list[dict[str, Any]]], args: argparse.Namespace) -> Table:
    """Return one row a compressor: means over the seeds."""
    title = (
        f"digits, MLP, {args.epochs} epochs, {args.processes} processes, {args.seeds} seeds (mean ± standard deviation)"
    )
    rows = Table(title=title)
    rows.add_column("compression", no_wrap=True)
    for column in ("accuracy", "sent by each worker", "fewer bytes", "seconds", "in compression", "in communication"):
        rows.add_column(column, justify="right")
    for name, runs in results.items():
        mean, deviation = percent([r["accuracy"] for r in runs])
        sent = statistics.mean(r["bytes_sent"] for r in runs)
        seconds = [
            f"{statistics.mean(r[key] for r in runs):.2f}"
            for key in ("seconds", "compression_seconds", "communication_seconds")
        ]
        ratio = statistics.mean(r["dense_bytes"] for r in runs) / sent
        rows.add_row(name, f"{mean:.1f} ± {deviation:.1f} %", f"{sent / 1e6:.2f} MB", f"{ratio:.1f} x", *seconds)
    return rows


def draw(results: dict[str, list[dict[str, Any]]], args: argparse.Namespace, path: Path) -> None:
    """Draw accuracy against bytes sent."""
    figure, axes = plt.subplots(figsize=(7.5, 4.5), constrained_layout=True)
    for name, runs in results.items():
        mean, deviation = percent([r["accuracy"] for r in runs])
        sent = statistics.mean(r["bytes_sent"] for r in runs)
        marker = "o" if TRAININGS[name][0] == "torch" else "s"
        axes.errorbar(sent, mean, yerr=deviation, fmt=marker, capsize=4, markersize=8, label=name)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter("B"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(min(90, axes.get_ylim()[0]), 100)
    axes.set_xlabel("bytes sent by each worker in the whole training (log scale)")
    axes.set_ylabel("accuracy on the test set, %")
    parameters = next(iter(results.values()))[0]["parameters"]
    axes.set_title(
        f"Accuracy against bytes sent: {args.processes} processes under horovodrun,\n"
        f"scikit-learn's digits, MLP of {parameters:,} parameters, {args.epochs} epochs; "
        f"mean and standard deviation of {args.seeds} seeds",
        fontsize=10,
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend(title="compression")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, help="processes to train on")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the training data")
    parser.add_argument("--seeds", type=int, default=3, help="trainings with each compressor")
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder for demo.png and demo.json")
    args = parser.parse_args()
    for name in ("processes", "epochs", "seeds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1; got {getattr(args, name)}")
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in TRAININGS}
    with tqdm(total=len(TRAININGS) * args.seeds, unit="training") as progress:
        for example in ("torch", "keras"):
            names = [name for name, (of, _) in TRAININGS.items() if of == example]
            progress.set_description(example)
            done = run(example, [TRAININGS[name][1] for name in names], args)
            for name, result in zip(names * args.seeds, done, strict=True):
                results[name].append(result)
                progress.update()
    Console(width=120).print(table(results, args))
    draw(results, args, args.output / "demo.png")
    (args.output / "demo.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"picture: {args.output / 'demo.png'}   figures: {args.output / 'demo.json'}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
