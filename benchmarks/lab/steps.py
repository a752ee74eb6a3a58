"""Seconds a step, which belong to a model, a method, a number of hosts and their link: real ranks, some tens of steps.

The ranks of all hosts share this machine's cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from tqdm import tqdm

from benchmarks.common.hosts import NETWORK, hosts
from benchmarks.common.results import ResultsFile
from benchmarks.lab.methods import COMPARED
from benchmarks.lab.tasks import TIMED

STACKS = ("horovod", "ddp")
LINKS = (25, 100, 1000, 0)
HOSTS = (4, 2)
ROUNDS = 3
ALONE = "computing alone"
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
        scheme: of `METHODS`, of `BASELINES`, or `ALONE`.
        round: number of the repetition.
    """

    hosts: int
    mbits: int
    stack: str
    model: str
    scheme: str
    round: int = 0


def cells() -> list[Cell]:
    """Return all measurements, those of a start of mpirun in a row."""
    return [
        Cell(count, mbits, stack, model, scheme, number)
        for number in range(ROUNDS)
        for count in HOSTS
        for mbits in LINKS
        for stack in STACKS
        for model in TIMED
        for scheme in (ALONE, *BASELINES[stack], *COMPARED)
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
            for cell, result in _measured(list(group), data):
                file.add(cell, result)
                progress.update()
                if not shown:
                    print(f"{cell}: {1000 * result['seconds']:.1f} ms", file=sys.stderr, flush=True)


def _measured(group: list[Cell], data: str) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Measure cells of the same hosts, link and stack, all in one start of mpirun."""
    first = group[0]
    settings = {"address": f"{NETWORK}.1", "data": data, "cells": [asdict(cell) for cell in group]}
    env = {**os.environ, "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
    with hosts(first.hosts, first.mbits or None) as mpirun:
        exported = [word for name in ("GLOO_SOCKET_IFNAME", "OMP_NUM_THREADS") for word in ("-x", name)]
        command = [*mpirun, *exported, sys.executable, "-m", "benchmarks.lab.rank", json.dumps(settings)]
        load = os.getloadavg()[0]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as job:
            assert job.stdout is not None
            results = (json.loads(line) for line in job.stdout if line.startswith("{"))
            for cell, result in zip(group, results, strict=False):
                yield cell, result | {"load": round(load, 1)} | machine()
    if job.returncode:
        raise RuntimeError(f"the job ended with {job.returncode}")


def machine() -> dict[str, Any]:
    """Return the name of the processor, and the number of cores."""
    with open("/proc/cpuinfo") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return {"processor": names[0] if names else "unknown", "cores": len(os.sched_getaffinity(0))}
