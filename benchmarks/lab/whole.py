"""Whole trainings on real ranks behind links, as a proof that steps and seconds may be measured apart."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass

from benchmarks.common.results import Results, ResultsFile
from benchmarks.lab.accuracy import WORKERS, Training, tuned
from benchmarks.lab.job import results_of
from benchmarks.lab.time import curve_of


@dataclass(frozen=True)
class Whole:
    """One training, on as many hosts as the trainings have workers.

    Attributes:
        task: of `TASKS`.
        stack, scheme: as of a `Cell`.
        mbits: rate of each host's link in Mbit/s.
        factor: of the recipe's learning rate.
        seed: of weights and data.
    """

    task: str
    stack: str
    scheme: str
    mbits: int
    factor: float
    seed: int = 0


CHOSEN = [  # task, stack, scheme, Mbit/s
    ("mlp", "ddp", "DDP, fp16 hook", 1000),
    ("mlp", "ddp", "topk(ratio=0.01)", 1000),
    ("mlp", "horovod", "powersgd(rank=2)", 100),
    ("resnet9", "ddp", "DDP, fp16 hook", 100),
    ("resnet9", "ddp", "powersgd(rank=2)", 100),
    ("transformer", "ddp", "qsgd(bits=4)", 1000),
    ("gpt", "ddp", "powersgd(rank=2)", 1000),
    ("textcnn", "horovod", "Horovod, fp32", 100),
    ("textcnn", "ddp", "DDP, fp32", 100),
    ("textcnn", "ddp", "topk(ratio=0.01)", 100),
]


def chosen(found: Results[Training]) -> list[Whole]:
    """Return the trainings whose learning rates have been chosen."""
    best = tuned(found)
    return [
        Whole(task, stack, scheme, mbits, best[task, curve_of(scheme)])
        for task, stack, scheme, mbits in CHOSEN
        if (task, curve_of(scheme)) in best
    ]


def train_missing(wanted: list[Whole], file: ResultsFile[Whole], data: str) -> None:
    """Do the trainings that the file has no results of.

    Raises:
        Unavailable: where there cannot be hosts.
        RuntimeError: if a job ends before its time.
    """
    there = file.read()
    for whole in wanted:
        if whole not in there:
            settings = {"stack": whole.stack, "data": data, "whole": [asdict(whole)]}
            for result in results_of(settings, WORKERS, whole.mbits):
                file.add(whole, result)
                print(f"{whole}: {result['curve'][-1]}", file=sys.stderr, flush=True)
