"""Train the digits with every compression method, and write a table of what each one reaches.

Every training leaves a file; what has one is not repeated. So the command can be stopped with Ctrl-C and started again.
To begin anew, remove the folder of the files.
"""

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
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from hvd_compress import methods

HERE = Path(__file__).parent
ROOT = HERE.parent

# A method is trained as it is, with the example's own optimizer (SGD, momentum 0.9, learning rate 0.05), or as here.
SETTINGS = {
    "randomk": ("randomk(ratio=0.25)", ""),
    "dgc": ("dgc(ratio=0.01)", "--lr 0.1"),
    "signsgd": ("signsgd", "--optimizer sgd --lr 0.003"),
    "signum": ("signum", "--lr 0.001"),
    "fetchsgd": ("fetchsgd(budget=0.25)", "--lr 0.2"),
}
# With TensorFlow, whose weights begin otherwise:
WITH_TENSORFLOW = {"fetchsgd": ("fetchsgd(budget=0.25)", "--lr 0.4")}
# Methods with parts of others, and what else a method needs to send less.
COMPOSITIONS = [
    ("topk(ratio=0.01, values=qsgd(bits=4))", ""),
    ("topk(ratio=0.01, feedback=ef21)", ""),
    ("topk(ratio=0.05, feedback=ef21)", ""),
    ("topk(ratio=0.01, feedback=momentum)", "--lr 0.1"),
    ("topk(ratio=0.01, scope=model)", ""),
    ("dgc(ratio=exponential(0.25, 0.01, steps=88, every=22))", "--lr 0.1"),
    ("dgc(ratio=0.001)", "--epochs 20"),
    ("randomk(ratio=0.1, scaled=True)", "--optimizer sgd --lr 0.3"),
    ("randomk(ratio=0.1)", "--optimizer sgd --epochs 40"),
    ("threshold(threshold=0.01)", ""),
    ("wangni(ratio=0.003)", "--lr 0.01"),
    ("qsgd(bits=2)", ""),
    ("qsgd(bits=4, feedback=ef)", ""),
    ("qsgd(bits=4, feedback=ef21)", ""),
    ("low_precision(bits=4, feedback=ef)", ""),
    ("int8(feedback=ef)", ""),
    ("natural(feedback=ef)", ""),
    ("ef_signsgd(feedback=momentum(masking=False))", ""),
    ("powersgd(rank=2, feedback=ef21)", ""),
    ("sketched_sgd(p1=0.0625)", ""),
    ("sketched_sgd(p1=2, p2=4, momentum=0.9)", "--lr 0.1"),
    ("sketched_sgd(budget=0.005)", ""),
]
DEFAULTS = {"framework": "torch", "ranks": 2, "seeds": 3}
UNCOMPRESSED = [("none", more) for more in ("--lr 0.1", "--epochs 20", "--optimizer sgd --epochs 40")]


class Setting(NamedTuple):
    """What is trained: a compressor's spec, and further arguments of examples/FRAMEWORK/train.py."""

    kind: str
    compression: str
    more: str

    def line(self, seed: int) -> str:
        """Return the command line of one training."""
        return shlex.join(["--compression", self.compression, *shlex.split(self.more), "--seed", str(seed)])

    def path(self, folder: Path, ranks: int, seed: int) -> Path:
        """Return where the result of one training is kept."""
        words = re.sub(r"[^\w.]+", "-", f"{self.compression} {self.more}").strip("-")
        return folder / f"{words}-ranks-{ranks}-seed-{seed}.json"


def settings_of(framework: str) -> dict[str, tuple[str, str]]:
    """Return the spec and the further arguments of the methods that are not trained as they are."""
    return SETTINGS | (WITH_TENSORFLOW if framework == "tensorflow" else {})


def one_each(framework: str) -> list[Setting]:
    """Return one setting for every registered method, `none` first."""
    own = settings_of(framework)
    return [Setting("method", *own.get(name, (name, ""))) for name in methods()]


def all_settings(framework: str) -> list[Setting]:
    """Return those, the compositions, and the methods that have a setting above as they are without it."""
    plain = [(name, "") for name in settings_of(framework)]
    return [
        *one_each(framework),
        *(Setting("composition", *item) for item in COMPOSITIONS),
        *(Setting("comparison", *item) for item in [*plain, *UNCOMPRESSED]),
    ]


def trained(lines: list[str], ranks: int, framework: str) -> Iterator[dict[str, Any]]:
    """Train with each command line of a framework's example, all in one start, and yield the results as they come.

    Raises:
        RuntimeError: if the job ends before its time; the message ends with what it wrote.
    """
    command = ["mpirun", "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none", "-np", str(ranks)]
    command += [sys.executable, str(HERE / "train_many.py"), framework, *lines]
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    env = {"OMP_NUM_THREADS": "1", **os.environ, **allowed}
    with tempfile.TemporaryFile("w+") as errors:
        # In a session of its own, so that Ctrl-C reaches this process alone.
        job = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=env, cwd=ROOT, start_new_session=True
        )
        assert job.stdout is not None
        try:
            other, count = [], 0
            for line in job.stdout:
                if line.startswith('{"accuracy"'):
                    count += 1
                    yield json.loads(line)
                else:
                    other.append(line)
            if job.wait() or count < len(lines):
                errors.seek(0)
                raise RuntimeError(f"mpirun ended with {job.returncode}:\n{''.join(other)}{errors.read()}"[-4000:])
        finally:
            if job.poll() is None:
                job.terminate()
                try:
                    job.wait(20)
                except subprocess.TimeoutExpired:
                    job.kill()


def train_what_is_missing(settings: list[Setting], args: argparse.Namespace) -> None:
    """Train whatever has no file yet."""
    every = [(setting, seed) for seed in range(args.seeds) for setting in settings]
    missing = [(s, seed) for s, seed in every if not s.path(args.results, args.ranks, seed).exists()]
    if not missing:
        return
    shown = sys.stderr.isatty()
    with tqdm(total=len(every), initial=len(every) - len(missing), unit="training", disable=not shown) as progress:
        progress.set_description("starting")
        results = trained([setting.line(seed) for setting, seed in missing], args.ranks, args.framework)
        try:
            for number, ((setting, seed), result) in enumerate(zip(missing, results, strict=True)):
                path = setting.path(args.results, args.ranks, seed)
                whole = path.with_suffix(".part")
                result["cores"] = len(os.sched_getaffinity(0))
                whole.write_text(json.dumps(result, indent=1) + "\n")
                whole.replace(path)
                progress.set_description(setting.compression)
                progress.update()
                if not shown:
                    done = len(every) - len(missing) + number + 1
                    print(f"{done}/{len(every)} {setting.line(seed)}: {result['accuracy']:.4f}", flush=True)
        finally:
            results.close()


class Row(NamedTuple):
    """What came of one setting: accuracies in percent, the bytes sent, and how many times fewer they are."""

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
    """Return what came of the runs of one setting."""
    sent = statistics.mean(run["bytes_sent"] for run in runs)
    dense = statistics.mean(run["dense_bytes"] for run in runs)
    return Row(setting, [100 * run["accuracy"] for run in runs], sent, dense / sent)


def noise_of(rows: list[Row], seeds: int) -> float:
    """Return twice the standard error of a difference of two means over the seeds, in points of percent.

    The deviation over the seeds is the median of all rows: three seeds are too few to tell it for one of them, and a
    method that does not learn must not widen what counts as noise.
    """
    return 2 * statistics.median(row.deviation for row in rows) * (2 / seeds) ** 0.5


def about(rows: list[Row], run: dict[str, Any], noise: float, args: argparse.Namespace) -> str:
    """Return what was trained, and on what."""
    return paragraph(
        f"""wrote this file. It trains the digits that come with scikit-learn, with
        `examples/{args.framework}/train.py`: a perceptron of {run["parameters"]:,} parameters, SGD with momentum 0.9
        and a learning rate of 0.05 that falls to 0, and 10 epochs, unless the further arguments say
        otherwise; {args.ranks} workers under `mpirun` on
        {run["cores"]} cores of one machine. Accuracies are mean ± standard deviation over {args.seeds} seeds. Methods
        that keep the momentum themselves have an optimizer without. "Within noise" is what differs from `none` by at
        most {noise:.1f} points: twice the standard error of the difference of two such means, from the median of the
        deviations of all {len(rows)} rows, of which one or two are expected to be further off by chance. One of the
        {run["test_examples"]} test images is {100 / run["test_examples"]:.1f} points."""
    )


def findings(rows: list[Row], behind: Callable[[Row], bool], framework: str) -> str:
    """Return what the table shows."""
    chosen = "were chosen with other seeds than these, but on the same test images"
    if framework == "tensorflow":
        chosen += f", and all but those of {' and '.join(f'`{name}`' for name in WITH_TENSORFLOW)} with PyTorch"

    def named(some: list[Row]) -> str:
        found = (f"`{r.setting.compression}`" + f" with `{r.setting.more}`" * bool(r.setting.more) for r in some)
        return ", ".join(found) or "none of them"

    of_methods = [row for row in rows if row.setting.kind == "method"][1:]
    others = [row for row in rows if row.setting.kind == "composition"]
    late = [row for row in of_methods + others if behind(row)]
    good = [row for row in rows if not behind(row) and row.setting.kind != "comparison"]
    plain = [row for row in of_methods if row.setting.compression in methods() and not row.setting.more]
    lost = [r for r in rows if r.setting.kind == "comparison" and r.setting.compression != "none" and behind(r)]
    return paragraph(
        f"""Of the {len(of_methods)} methods that compress, {sum(not behind(row) for row in of_methods)} are not behind
        `none` by more than noise, and of {len(others)} compositions {sum(not behind(row) for row in others)}. Behind by
        more: {named(late)}. The fewest bytes without falling behind: {named([max(good, key=lambda row: row.fewer)])}.
        At their defaults, with the optimizer as it is for `none`, keep up:
        {named([row for row in plain if not behind(row)])}; do not: {named(lost)} (last table). Where signs vote, every
        coordinate moves by the learning rate in each step, so that the rate must be small. Random coordinates are sent
        seldom at a low ratio, and their residual pushes late: that needs a larger ratio, more epochs, or a scaled
        estimate without momentum. Momentum correction at these ratios wants a higher rate. The settings
        {chosen}; for `none`, which gains by a higher rate or more
        epochs as well, none was chosen. A task that is learned in seconds tells methods that do not learn from those
        that do, not how good they are on a large one."""
    )


def paragraph(text: str) -> str:
    """Return a text in lines of 120."""
    return textwrap.fill(" ".join(text.split()), 120, break_on_hyphens=False, break_long_words=False)


def document(rows: list[Row], runs: dict[Setting, list[dict[str, Any]]], args: argparse.Namespace) -> str:
    """Return the table and what is to be said of it, as Markdown."""
    base = rows[0]
    noise = noise_of(rows, args.seeds)

    def behind(row: Row) -> bool:
        return row.mean < base.mean - noise

    def table(kind: str) -> list[str]:
        lines = [
            "| compression | further arguments | accuracy | sent by each worker | times fewer | against `none` | |"
        ]
        lines.append("|---|---|---|---|---|---|---|")
        for row in rows:
            if row.setting.kind == kind:
                cells = [f"`{row.setting.compression}`", f"`{row.setting.more}`" if row.setting.more else ""]
                cells += [f"{row.mean:.1f} ± {row.deviation:.1f} %", f"{row.sent / 1e6:.2f} MB", f"{row.fewer:.1f}"]
                verdict = "behind" if behind(row) else "above" if row.mean > base.mean + noise else "within noise"
                cells += ["", ""] if row is base else [f"{row.mean - base.mean:+.1f}", verdict]
                lines.append(f"| {' | '.join(cells)} |")
        return lines

    given = {"framework": args.framework, "ranks": args.ranks, "seeds": args.seeds}
    options = [f"--{name} {value}" for name, value in given.items() if value != DEFAULTS[name]]
    parts = [
        "# Every method on the digits",
        " ".join(["    python benchmarks/digits.py", *options]),
        about(rows, runs[base.setting][0], noise, args),
        findings(rows, behind, args.framework),
    ]
    titles = {
        "method": "Methods",
        "composition": "Compositions",
        "comparison": "For comparison: at defaults, and without compression",
    }
    for kind, title in titles.items():
        parts += [f"## {title}", "\n".join(table(kind))]
    return "\n\n".join(parts) + "\n"


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--framework", choices=("torch", "tensorflow"), help="whose example to train")
    parser.add_argument("--ranks", type=int, help="workers to train on")
    parser.add_argument("--seeds", type=int, help="trainings with each setting")
    parser.set_defaults(**DEFAULTS)
    parser.add_argument(
        "--results", type=Path, help="folder for one file a training (if none: results/digits, or digits-tensorflow)"
    )
    parser.add_argument(
        "--output", type=Path, help="the table (if none: docs/results/digits.md, or digits-tensorflow.md)"
    )
    parser.add_argument(
        "--only", metavar="NAME", help="train only settings with this in their spec, and print the table"
    )
    args = parser.parse_args()
    for name in ("ranks", "seeds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1; got {getattr(args, name)}")
    name = "digits" if args.framework == "torch" else f"digits-{args.framework}"
    args.results = args.results or Path("results", name)
    args.output = args.output or Path("docs", "results", f"{name}.md")
    return args


def main() -> int:
    """Train what is missing and write the table; 130 stands for Ctrl-C."""
    args = arguments()
    settings = all_settings(args.framework)
    if args.only:
        settings = [s for s in settings if s is settings[0] or args.only in s.compression]
    args.results.mkdir(parents=True, exist_ok=True)
    try:
        train_what_is_missing(settings, args)
    except KeyboardInterrupt:
        done = len(list(args.results.glob("*.json")))
        print(f"stopped; {done} trainings are in {args.results}, the same command goes on from there", file=sys.stderr)
        return 130
    except (OSError, RuntimeError) as error:
        print(f"digits.py: {error}", file=sys.stderr)
        return 1
    paths = {s: [s.path(args.results, args.ranks, seed) for seed in range(args.seeds)] for s in settings}
    runs = {s: [json.loads(path.read_text()) for path in own] for s, own in paths.items()}
    rows = [row_of(setting, own) for setting, own in runs.items()]
    text = document(rows, runs, args)
    if args.only:
        print(text)
    else:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text)
        print(f"table: {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
