"""Train the digits with several compressors; print a table, and draw accuracy against bytes and against time.

With root and iproute2 each process runs behind a link of its own (network namespaces), otherwise the time behind such
links is computed from the counted bytes, and marked as computed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import matplotlib
from common import threads
from hosts import Unavailable, hosts

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

SPECS = ("none", "fp16", "topk(ratio=0.01)", "qsgd(bits=4)", "powersgd(rank=2)", "sketched_sgd")
# What is trained, by name: with which of the examples, and with which compressor.
TRAININGS = {**{spec: ("torch", spec) for spec in SPECS}, "topk(ratio=0.01), Keras": ("keras", "topk(ratio=0.01)")}
Results = dict[str, list[dict[str, Any]]]


def run(
    launcher: list[str], example: str, compressors: list[str], args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Train with each compressor in one start of a launcher; yield the JSON objects, one a training, as they come."""
    folder = Path(__file__).parent
    command = [*launcher, sys.executable, str(folder / "train_many.py")]
    for seed in range(args.seeds):
        common = ["--seed", str(seed), "--epochs", str(args.epochs)]
        command += [shlex.join(["--compression", compression, *common]) for compression in compressors]
    paths = [str(folder / example), *filter(None, [os.environ.get("PYTHONPATH")])]
    share = {"OMP_NUM_THREADS": str(threads(args.processes))}  # hosts know no others
    env = {**os.environ, **share, "PYTHONPATH": os.pathsep.join(paths)}
    given: dict[str, Any] = {"env": env, "start_new_session": True}
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, **given) as job:
            assert job.stdout is not None
            try:
                for line in job.stdout:
                    if found := re.search(r'\{"accuracy".*\}', line):
                        yield json.loads(found[0])
            except BaseException:  # whoever stops this one, the launcher and its ranks have to stop as well
                os.killpg(job.pid, signal.SIGTERM)
                raise
        if job.returncode:
            errors.seek(0)
            sys.exit(f"{shlex.join(command)}\nended with {job.returncode}:\n{errors.read()[-3000:]}")


def seconds_of(result: dict[str, Any], args: argparse.Namespace, measured: bool) -> float:
    """Return the seconds of a training behind the links."""
    if measured:
        return float(result["seconds"])
    others = args.processes - 1
    summed = sum(of["sent"] for kind, of in result["collectives"].items() if kind == "allreduce")
    gathered = sum(of["sent"] for kind, of in result["collectives"].items() if kind != "allreduce")
    carried = 2 * others / args.processes * summed + others * gathered  # bytes through a worker's link
    return float(result["seconds"]) + 8 * carried / (1e6 * args.mbits)


def percent(values: list[float]) -> tuple[float, float]:
    """Return mean and standard deviation, in percent."""
    return 100 * statistics.mean(values), 100 * (statistics.stdev(values) if len(values) > 1 else 0.0)


def table(results: Results, seconds: dict[str, list[float]], args: argparse.Namespace, measured: bool) -> Table:
    """Return one row a compressor: means over the seeds."""
    how = f"{args.processes} processes behind links of {args.mbits} Mbit/s"
    if not measured:
        how = f"{args.processes} processes; seconds at {args.mbits} Mbit/s computed from the bytes"
    title = f"digits, MLP, {args.epochs} epochs, {how}, {args.seeds} seeds (mean ± standard deviation)"
    rows = Table(title=title)
    rows.add_column("compression", no_wrap=True)
    for column in ("accuracy", "sent by each worker", "fewer bytes", "seconds", "times as fast"):
        rows.add_column(column, justify="right")
    plain = statistics.mean(seconds["none"])
    for name, runs in results.items():
        mean, deviation = percent([r["accuracy"] for r in runs])
        sent, took = statistics.mean(r["bytes_sent"] for r in runs), statistics.mean(seconds[name])
        ratio = statistics.mean(r["dense_bytes"] for r in runs) / sent
        cells = [f"{mean:.1f} ± {deviation:.1f} %", f"{sent / 1e6:.2f} MB", f"{ratio:.1f} x", f"{took:.1f}"]
        rows.add_row(name, *cells, f"{plain / took:.1f}" if TRAININGS[name][0] == "torch" else "")
    return rows


def summary(results: Results, seconds: dict[str, list[float]]) -> str:
    """Return what there is to see in the table, in a sentence."""
    means = {name: statistics.mean(seconds[name]) for name in SPECS}
    best = min(means, key=means.__getitem__)
    accuracy = {name: percent([r["accuracy"] for r in results[name]])[0] for name in (best, "none")}
    return (
        f"Look at the seconds beside the accuracies: {best} took {means[best]:.1f} s to {accuracy[best]:.1f} %, and "
        f"training without compression {means['none']:.1f} s to {accuracy['none']:.1f} %."
    )


def draw(
    results: Results, seconds: dict[str, list[float]], args: argparse.Namespace, measured: bool, path: Path
) -> None:
    """Draw accuracy against bytes and against seconds."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, constrained_layout=True)
    for name, runs in results.items():
        mean, deviation = percent([r["accuracy"] for r in runs])
        style = {"yerr": deviation, "fmt": "o" if TRAININGS[name][0] == "torch" else "s", "capsize": 4, "label": name}
        left.errorbar(statistics.mean(r["bytes_sent"] for r in runs), mean, **style)
        right.errorbar(statistics.mean(seconds[name]), mean, **style)
    _logarithmic(left, "B", "bytes sent by each worker in the whole training")
    _logarithmic(right, "s", f"seconds behind links of {args.mbits} Mbit/s, {'measured' if measured else 'computed'}")
    left.set_ylim(min(90, left.get_ylim()[0]), 100)
    left.set_ylabel("accuracy on the test set, %")
    right.legend(title="compression", fontsize=8)
    parameters = next(iter(results.values()))[0]["parameters"]
    figure.suptitle(
        f"scikit-learn's digits, MLP of {parameters:,} parameters, {args.epochs} epochs, {args.processes} processes; "
        f"mean and standard deviation of {args.seeds} seeds",
        fontsize=10,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _logarithmic(axes: Axes, unit: str, label: str) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(unit))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(label)
    axes.grid(alpha=0.3, which="both")


def main() -> None:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2, help="processes to train on")
    parser.add_argument("--mbits", type=int, default=100, help="rate of each one's link in Mbit/s")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the training data")
    parser.add_argument("--seeds", type=int, default=3, help="trainings with each compressor")
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder for demo.png and demo.json")
    args = parser.parse_args()
    for name in ("processes", "mbits", "epochs", "seeds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1; got {getattr(args, name)}")
    signal.signal(signal.SIGTERM, stopped)
    results: Results = {name: [] for name in TRAININGS}
    with ExitStack() as stack:
        try:
            launcher, measured = stack.enter_context(hosts(args.processes, args.mbits)), True
        except Unavailable as reason:
            launcher, measured = ["horovodrun", "-np", str(args.processes)], False
            print(f"no links: {reason}; seconds behind them are computed from the bytes", file=sys.stderr)
        progress = stack.enter_context(tqdm(total=len(TRAININGS) * args.seeds, unit="training"))
        for example in ("torch", "keras"):
            names = [name for name, (of, _) in TRAININGS.items() if of == example]
            progress.set_description(example)
            done = run(launcher, example, [TRAININGS[name][1] for name in names], args)
            for name, result in zip(names * args.seeds, done, strict=True):
                results[name].append(result)
                progress.update()
    seconds = {name: [seconds_of(result, args, measured) for result in runs] for name, runs in results.items()}
    Console(width=120).print(table(results, seconds, args, measured))
    draw(results, seconds, args, measured, args.output / "demo.png")
    (args.output / "demo.json").write_text(json.dumps(results, indent=1) + "\n")
    print(summary(results, seconds))
    print(f"picture: {args.output / 'demo.png'}   figures: {args.output / 'demo.json'}")


def stopped(*_: Any) -> NoReturn:
    """End as at Ctrl-C."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
