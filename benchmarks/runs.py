"""Trainings that leave a file each, so that a comparison can be stopped, resumed and drawn from what is there."""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hvd_compress import parse


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        task, model: as in examples/torch/train.py.
        compression: a compressor's spec.
        workers: their number.
        batch: examples a step, of all workers together.
        epochs: passes over the training data.
        lr: the largest learning rate; it rises from 0 for the first `warmup` of the steps and falls to 0 at the end.
        seed: of weights, data and compressor.
        width: channels of the first layer of resnet9, 64 in the published network; of a Transformer's vectors.
        limit: training examples, 0 for all.
        warmup: the part of the steps in which the learning rate rises.
        decay: weight decay.
        augment: whether images are flipped and shifted at random.
        optimizer: "sgd", with a momentum of 0.9 unless the compressor keeps it, or "adam".
        all_compressed: whether small parameters, and those of one axis, are compressed as well.
        clip_residual: largest norm of a worker's residual, in norms of its gradient; 0 for no limit.
    """

    task: str
    model: str
    compression: str
    workers: int
    batch: int
    epochs: int
    lr: float
    seed: int = 0
    width: int = 64
    limit: int = 0
    warmup: float = 0.0
    decay: float = 0.0
    augment: bool = False
    optimizer: str = "sgd"
    all_compressed: bool = False
    clip_residual: float = 0.0

    def path(self, folder: Path) -> Path:
        """Return where the result is kept: a name for people, and a digest of the settings.

        The compressor's settings are all in it, so that a result is of its defaults of that time; of the others those
        that are not at their defaults, so that a further one leaves the names as they are.
        """
        words = re.sub(r"[^\w.]+", "-", f"{self.task}-{self.compression}-w{self.workers}-s{self.seed}").strip("-")
        defaults = {item.name: item.default for item in fields(self)}
        settings = {name: value for name, value in asdict(self).items() if value != defaults[name]}
        settings["compression"] = repr(parse(self.compression))
        digest = hashlib.blake2b(json.dumps(settings).encode(), digest_size=4).hexdigest()
        return folder / f"{words[:120]}-{digest}.json"


def add_arguments(parser: argparse.ArgumentParser, folder: str) -> None:
    """Add what every comparison takes."""
    parser.add_argument(
        "--data", metavar="DIR", required=True, help="folder with the folders mnist, cifar10 and multi30k"
    )
    parser.add_argument("--results", type=Path, default=Path(folder), help="folder for one file a training")
    parser.add_argument(
        "--processes", type=int, default=len(os.sched_getaffinity(0)), help="trainings at a time, one thread each"
    )
    parser.add_argument("--draw", action="store_true", help="train nothing: tables and pictures from what is there")


def train_missing(runs: Sequence[Run], train: Callable[[Run, str], dict[str, Any]], args: argparse.Namespace) -> None:
    """Do the runs that have no file yet, several at a time.

    Raises:
        KeyboardInterrupt: on Ctrl-C or SIGTERM; what is done is kept.
    """
    args.results.mkdir(parents=True, exist_ok=True)
    missing = [run for run in dict.fromkeys(runs) if not run.path(args.results).exists()]
    if not missing:
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, for no training must be left behind
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(args.processes, mp_context=context, initializer=_ignore_interrupts)
    shown = sys.stderr.isatty()
    try:
        futures = {pool.submit(train, run, args.data): run for run in missing}
        for number, future in enumerate(tqdm(as_completed(futures), total=len(futures), unit="run", disable=not shown)):
            run, result = futures[future], future.result()
            path = run.path(args.results)
            part = path.with_suffix(".part")
            part.write_text(json.dumps(asdict(run) | result, indent=1) + "\n")
            part.replace(path)  # whole or not at all
            if not shown:
                text = f"{number + 1}/{len(futures)} {path.stem}: {result['curve'][-1]:.4f}"
                print(text, file=sys.stderr, flush=True)
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends what is running


def results(runs: Iterable[Run], folder: Path) -> dict[Run, dict[str, Any]]:
    """Return what is there of the runs."""
    return {run: json.loads(run.path(folder).read_text()) for run in runs if run.path(folder).exists()}
