"""What the jobs share: their arguments, and what the coordinator shows, logs and draws."""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

# Ranks of one machine share its cores; NumPy's threads are made when it is imported.
os.environ.setdefault(
    "OMP_NUM_THREADS",
    str(max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1")))),
)

import data
import numpy as np
from lines import Lines  # of examples/, which data has put on the path
from mpi4py import MPI
from tqdm import tqdm

from hvd_compress.parameter_server import (
    Algorithm,
    Epoch,
    JobSettings,
    Objective,
    Regularizer,
    Result,
    leave,
    minimum,
    run,
    survives,
)
from hvd_compress.parameter_server.runtime.checkpoints import write_whole

COLUMNS = ("epoch", "objective", "suboptimality", "accuracy", "bits_up", "bits_down", "seconds", "max_delay", "workers")


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help as it was written, with defaults."""


def add_arguments(parser: argparse.ArgumentParser, *, batch: int, l2: float) -> None:
    """Add the arguments that all jobs take."""
    parser.add_argument("--data", required=True, metavar="FILE_OR_DIR", help=f"{data.LOGISTIC}; or MNIST's folder")
    parser.add_argument("--task", choices=data.TASKS, default="logistic", help="what is minimized")
    parser.add_argument(
        "--features",
        type=int,
        help=f"features of the LIBSVM file (if none: the largest index, which may be up to {data.MOST_FEATURES})",
    )
    parser.add_argument("--hidden", type=int, default=100, help="hidden units of mlp")
    parser.add_argument("--l1", type=float, default=0.0, help="weight of the l1 norm in the objective")
    parser.add_argument("--l2", type=float, default=l2, help="weight of half the squared l2 norm in the objective")
    parser.add_argument("--servers", type=int, default=1, help="ranks that are servers; all others are workers")
    parser.add_argument("--batch", type=int, default=batch, help="rows of a worker's batch")
    parser.add_argument("--max-epochs", type=int, default=50, help="most epochs")
    parser.add_argument(
        "--target", type=float, help="suboptimality at which the job is done (for mlp: the objective itself)"
    )
    parser.add_argument(
        "--optimum",
        type=Path,
        metavar="FILE",
        help="where P* is kept; computed by a long run if it is missing (if none: in the user's cache)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument(
        "--timeout",
        type=float,
        default=120.0,
        help="seconds, at least 1, until a silent worker is dropped, or a silent server ends the job",
    )
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="folder for checkpoints (if none: none)")
    parser.add_argument(
        "--every",
        type=int,
        default=1,
        help="epochs between checkpoints that are flushed to disk and kept; of all others the last two are kept",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--log", type=Path, metavar="FILE", help="write each epoch there: .csv, or .json lines")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the job there at its end (PNG, PDF or SVG)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the model there, a .npz of its parameters")
    parser.add_argument("--quiet", action="store_true", help="show nothing but the result")
    parser.add_argument(
        "--slow",
        type=float,
        default=0.0,
        metavar="S",
        help="simulate a straggler: the last worker sleeps S seconds a step",
    )


def parse_arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the arguments; end, with a message of rank 0 alone, if one is bad, or mpirun did not start the job."""
    with contextlib.ExitStack() as silent:
        if MPI.COMM_WORLD.Get_rank():
            nowhere = silent.enter_context(open(os.devnull, "w"))
            silent.enter_context(contextlib.redirect_stdout(nowhere))
            silent.enter_context(contextlib.redirect_stderr(nowhere))
        args = parser.parse_args()
    for name, least in (
        ("hidden", 1),
        ("servers", 1),
        ("batch", 1),
        ("max_epochs", 0),
        ("every", 1),
        ("seed", 0),
        ("timeout", 1),
        ("features", 1),
    ):
        if getattr(args, name) is not None and getattr(args, name) < least:
            refuse(parser, f"--{name.replace('_', '-')} must be at least {least}; got {getattr(args, name)}")
    for name in ("l1", "l2", "timeout", "slow"):
        if not 0 <= getattr(args, name) < float("inf"):
            refuse(parser, f"--{name} must be in [0, inf); got {getattr(args, name)}")
    if args.resume and args.checkpoint is None:
        refuse(parser, "--resume needs --checkpoint DIR, where the checkpoints are")
    if args.log is not None and args.log.suffix not in (".csv", ".json"):
        refuse(parser, f"--log must end in .csv or .json; got {args.log}")
    if args.plot is not None and args.plot.suffix not in (".png", ".pdf", ".svg"):
        refuse(parser, f"--plot must end in .png, .pdf or .svg; got {args.plot}")
    if MPI.COMM_WORLD.Get_size() < 2:
        refuse(
            parser,
            f"a job has at least two ranks, a server and a worker. Start it with mpirun, for example: "
            f"mpirun --with-ft ulfm -np 5 python {shlex.join(sys.argv)}",
        )
    if MPI.COMM_WORLD.Get_rank() == 0:
        print("loading the data ...", file=sys.stderr, flush=True)
    return args


def refuse(parser: argparse.ArgumentParser, text: str) -> NoReturn:
    """End all ranks with a message."""
    if MPI.COMM_WORLD.Get_rank() == 0:
        print(f"{parser.prog}: error: {text}", file=sys.stderr, flush=True)
    MPI.Finalize()
    os._exit(2)


def settings_of(args: argparse.Namespace) -> JobSettings:
    """Return the settings that all jobs have."""
    return JobSettings(
        servers=args.servers,
        batch=args.batch,
        epochs=args.max_epochs,
        target=args.target,
        seed=args.seed,
        timeout=args.timeout,
        checkpoint=args.checkpoint,
        every=args.every,
        resume=args.resume,
        slow=args.slow,
    )


def load(args: argparse.Namespace) -> Objective:
    """Load the objective."""
    return data.load(args.task, args.data, args.hidden, Regularizer(args.l1, args.l2), args.features)


def optimum(args: argparse.Namespace, objective: Objective) -> float | None:
    """Return P* from its file, or compute it and write the file; None where it is not known, as for mlp."""
    if args.task == "mlp":
        return None
    description = json.dumps(objective.description(), sort_keys=True)
    path = args.optimum
    if path is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hvd_compress" / "optima"
        path = cache / f"{args.task}-{hashlib.blake2b(description.encode(), digest_size=8).hexdigest()}.json"
    if path.is_file():
        try:
            kept = json.loads(path.read_bytes())
            of, found = kept["of"], float(kept["objective"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} holds no optimum; without it the optimum is computed again") from error
        if of != description:
            raise ValueError(f"--optimum {path} is that of other data or another task: {of}")
        return found
    if not args.quiet:
        print("computing the optimum by a long run (once)", file=sys.stderr, flush=True)
    found, _ = minimum(objective)
    written = json.dumps({"objective": found, "of": description}).encode()
    try:
        write_whole(path, lambda file: file.write(written))
    except OSError as error:
        print(f"the optimum cannot be kept in {path}, and the job goes on: {error}", file=sys.stderr, flush=True)
    return found


class Console:
    """The coordinator's `Reporter`: a table that grows, a progress bar within an epoch, a log and a plot."""

    def __init__(self, args: argparse.Namespace, title: str) -> None:
        self.args, self.title = args, title
        self.rows: list[dict[str, Any]] = []
        self.lost: set[str] = set()  # files that could not be written
        self._bar: tqdm[NoReturn] | None = None
        if MPI.COMM_WORLD.Get_rank() == 0 and not survives() and not args.quiet:
            self.say("without `mpirun --with-ft ulfm` the job ends when a rank dies")

    def epoch(self, epoch: Epoch, optimum: float | None) -> None:
        """Show and log an epoch."""
        row = {
            "epoch": epoch.epoch,
            "objective": epoch.objective,
            "suboptimality": None if optimum is None else epoch.objective - optimum,
            "accuracy": epoch.right / epoch.tested if epoch.tested else None,
            "bits_up": epoch.bits_up,
            "bits_down": epoch.bits_down,
            "seconds": epoch.seconds,
            "max_delay": max(epoch.delays, default=0),
            "workers": epoch.workers,
        }
        self.rows.append(row)
        if self.args.log is not None:
            self.write("--log", self.args.log, lambda path: self._log(path, row))
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self.args.quiet:
            return
        if len(self.rows) == 1:
            self.say(" ".join(f"{name:>13}" for name in COLUMNS))
        self.say(" ".join(f"{_text(row[name]):>13}" for name in COLUMNS))

    def progress(self, done: int, steps: int) -> None:
        """Show the steps of an epoch."""
        if self.args.quiet:
            return
        if self._bar is None:
            lines: dict[str, Any] = {} if sys.stderr.isatty() else {"file": Lines()}
            lines |= {"mininterval": 3.0, "delay": 3.0}
            self._bar = tqdm(total=steps, unit="step", desc=self.title, leave=False, **lines)
        self._bar.update(done - self._bar.n)

    def say(self, text: str) -> None:
        """Show a line."""
        print(text, file=sys.stderr, flush=True)

    def write(self, option: str, path: Path, write: Callable[[Path], object]) -> None:
        """Write a file that an option names; if that is not possible, say so once and go on without it."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)
        except OSError as error:
            if option not in self.lost:
                self.say(f"{option} {path} cannot be written: {error.strerror or error}")
            self.lost.add(option)

    def _log(self, path: Path, row: dict[str, Any]) -> None:
        fresh = len(self.rows) == 1 and not self.args.resume
        with path.open("w" if fresh else "a", newline="") as file:
            if path.suffix == ".csv":
                writer = csv.DictWriter(file, COLUMNS)
                if file.tell() == 0:
                    writer.writeheader()
                writer.writerow(row)
            else:
                file.write(json.dumps(row) + "\n")

    def end(self, result: Result) -> None:
        """Print the result as the last line of standard output, then write the model and the plot."""
        record = result.record
        if not self.args.quiet:
            self.say(_histogram({int(delay): count for delay, count in record["delays"].items()}))
        print(json.dumps(record), flush=True)
        if self.args.output is not None:
            arrays = {p.name: result.model[p.slice].reshape(p.shape) for p in result.layout.parameters}
            self.write("--output", self.args.output, partial(_save, arrays))
        if self.args.plot is not None:
            self.write("--plot", self.args.plot, lambda path: _draw(path, self.title, self.rows))


def _save(arrays: dict[str, Any], path: Path) -> None:
    """Write arrays whole or not at all, unless a device or a link is there, which must stay."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        with path.open("wb") as file:
            np.savez(file, **arrays)
    else:
        named = path if path.suffix == ".npz" else path.with_name(f"{path.name}.npz")
        write_whole(named, lambda file: np.savez(file, **arrays))


def _text(value: float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _histogram(delays: dict[int, int]) -> str:
    """Return the delays that happened as a picture of one line each."""
    found, most = Counter(delays), max(delays.values(), default=1)
    lines = [f"{delay:>5} {count:>9} {'#' * -(-40 * count // most)}" for delay, count in sorted(found.items())]
    return "\n".join(["delay     steps", *lines])


def _draw(path: Path, title: str, rows: list[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    measure = "suboptimality" if rows[-1]["suboptimality"] is not None else "objective"
    values = [max(row[measure], 1e-16) for row in rows]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True, sharey=True)
    gigabits = [(row["bits_up"] + row["bits_down"]) / 1e9 for row in rows]
    seconds = [row["seconds"] for row in rows]
    for one, at, label in zip(axes, (gigabits, seconds), ("Gbit up and down", "s"), strict=True):
        one.plot(at, values, marker="o", markersize=3)
        one.set(xlabel=label, yscale="log")
        one.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("P(x) - P*" if measure == "suboptimality" else "P(x)")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def job(parser: argparse.ArgumentParser, args: argparse.Namespace, make: Callable[[], Algorithm], title: str) -> None:
    """Run a job to its end, on every rank: `make` gives the algorithm, or raises where an argument is bad."""
    try:
        algorithm = make()
    except (TypeError, ValueError) as error:
        refuse(parser, str(error))
    console = Console(args, title)
    result = run(algorithm, partial(load, args), settings_of(args), console, partial(optimum, args))
    if result is not None:
        console.end(result)
    if console.lost and not survives():
        sys.exit(1)  # nobody needs to be ended for it
    leave(1 if console.lost else 0)
