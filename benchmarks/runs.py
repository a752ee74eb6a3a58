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
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from hvd_compress import parse


class Kept(Protocol):
    """The settings of something that leaves a file: a frozen dataclass."""

    def path(self, folder: Path) -> Path:
        """Return where the result is kept."""


Setting = TypeVar("Setting", bound=Kept)


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
        words = f"{self.task}-{self.compression}-w{self.workers}-s{self.seed}"
        return folder / file_name(words, settings_of(self) | {"compression": repr(parse(self.compression))})


def settings_of(run: Any) -> dict[str, Any]:
    """Return the settings that are not at their defaults."""
    return {item.name: getattr(run, item.name) for item in fields(run) if getattr(run, item.name) != item.default}


def file_name(words: str, settings: dict[str, Any]) -> str:
    """Return a name for people, with a digest of the settings."""
    digest = hashlib.blake2b(json.dumps(settings).encode(), digest_size=4).hexdigest()
    return re.sub(r"[^\w.]+", "-", words).strip("-")[:120] + f"-{digest}.json"


def add_arguments(
    parser: argparse.ArgumentParser, folder: str, data: str = "mnist, cifar10 and multi30k", parallel: bool = True
) -> None:
    """Add what every comparison takes: `data` says which folders the data's has."""
    parser.add_argument("--data", metavar="DIR", required=True, help=f"folder with the folders {data}")
    parser.add_argument("--results", type=Path, default=Path(folder), help="folder for one file a training")
    parser.set_defaults(processes=1)
    if parallel:
        cores = len(os.sched_getaffinity(0))
        parser.add_argument("--processes", type=int, default=cores, help="trainings at a time, one thread each")
    parser.add_argument("--draw", action="store_true", help="train nothing: tables and pictures from what is there")


def train_missing(
    runs: Sequence[Setting], train: Callable[[Setting, str], dict[str, Any]], args: argparse.Namespace
) -> None:
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
            part.write_text(_text(asdict(run) | result))
            part.replace(path)  # whole or not at all
            if not shown:
                text = f"{number + 1}/{len(futures)} {path.stem}: {result['curve'][-1]}"
                print(text, file=sys.stderr, flush=True)
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def _text(record: dict[str, Any]) -> str:
    """Return a JSON object with a line for each entry, and for each item of a list."""
    entries = []
    for name, value in record.items():
        text = json.dumps(value)
        if isinstance(value, list) and value:
            text = "[\n" + ",\n".join(f"  {json.dumps(item)}" for item in value) + "\n ]"
        entries.append(f" {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(entries) + "\n}\n"


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends what is running


def results(runs: Iterable[Setting], folder: Path) -> dict[Setting, dict[str, Any]]:
    """Return what is there of the runs."""
    return {run: json.loads(run.path(folder).read_text()) for run in runs if run.path(folder).exists()}
