"""Seconds a step, which belong to a model, a method, a number of hosts and their link: real ranks, some tens of steps.

The ranks of all hosts share this machine's cores.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import groupby

from tqdm import tqdm

from benchmarks.common.results import ResultsFile
from benchmarks.lab.job import results_of
from benchmarks.lab.methods import COMPARED
from benchmarks.lab.tasks import TIMED

STACKS = ("horovod", "ddp")
LINKS = (25, 100, 1000, 0)
HOSTS = (4, 2)
ROUNDS = 3
ALONE = "computing alone"
COLLECTIVES = "collectives"
BASELINES = {
    "horovod": ("Horovod, fp32", "Horovod, fp16"),
    "ddp": ("DDP, fp32", "DDP, fp16 hook", "DDP, PowerSGD hook"),
}


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        hosts: their number, each with one rank.
        mbits: rate of each host's link in Mbit/s, in each direction; 0 for no limit.
        stack: who carries it: Horovod over MPI, or DDP over gloo.
        model: of `TIMED`.
        scheme: of `METHODS`, of `BASELINES`, or `ALONE`. `COLLECTIVES`, of no model, measures the network.
        round: number of the repetition.
    """

    hosts: int
    mbits: int
    stack: str
    model: str
    scheme: str
    round: int = 0


def cells() -> list[Cell]:
    """Return all measurements, those of a start of mpirun in a row; first those that decide most."""
    return [
        Cell(count, mbits, stack, model, scheme, number)
        for number in range(ROUNDS)
        for count in HOSTS
        for mbits in sorted(LINKS, key=(1000, 100, 25, 0).index)
        for stack in reversed(STACKS)
        for model, scheme in [
            ("", COLLECTIVES),
            *((model, scheme) for model in TIMED for scheme in (ALONE, *BASELINES[stack], *COMPARED)),
        ]
    ]


def measure_missing(wanted: Iterable[Cell], file: ResultsFile[Cell], data: str) -> None:
    """Do the measurements that the file has no results of, and add them one by one.

    Raises:
        Unavailable: where there cannot be hosts.
        RuntimeError: if a job ends before its time.
    """
    there = file.read()
    missing = [cell for cell in dict.fromkeys(wanted) if cell not in there]
    shown = sys.stderr.isatty()
    with tqdm(total=len(missing), unit="cell", disable=not shown) as progress:
        for (count, mbits, stack, number), group in groupby(
            missing, lambda cell: (cell.hosts, cell.mbits, cell.stack, cell.round)
        ):
            progress.set_description(f"{count} hosts, {mbits or 'no limit'} Mbit/s, {stack}, round {number}")
            cells_here = list(group)
            settings = {"stack": stack, "data": data, "cells": [asdict(cell) for cell in cells_here]}
            for cell, result in zip(cells_here, results_of(settings, count, mbits), strict=True):
                file.add(cell, result)
                progress.update()
                if not shown:
                    seconds = f"{1000 * result['seconds']:.1f} ms" if "seconds" in result else "measured"
                    print(f"{cell}: {seconds}", file=sys.stderr, flush=True)
