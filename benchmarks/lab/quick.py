"""One row of the document in some minutes: a method's time to accuracy behind one link, beside the baseline's."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.common.results import Results, ResultsFile
from benchmarks.common.study import run_missing
from benchmarks.lab import accuracy
from benchmarks.lab.accuracy import WORKERS, Training
from benchmarks.lab.methods import PLAIN
from benchmarks.lab.steps import Cell, measure_missing
from benchmarks.lab.tasks import TASKS
from benchmarks.lab.time import Times, curve_of, steps_to
from benchmarks.lab.whole import Whole, train_missing

TASK, MBITS, STACK = "textcnn", 100, "ddp"
SCHEMES = ("DDP, fp32", "DDP, fp16 hook", "topk(ratio=0.01)")


def reproduce(known: Results[Training], known_cells: Results[Cell], data: str, processes: int) -> None:
    """Train with one seed, measure the steps, train the last scheme from start to end, and print all of it.

    Args:
        known: the results of the study, whose learning rates are taken where there are some.
        known_cells: its seconds a step, to be compared with.
        data: folder of the data.
        processes: trainings at a time.

    Raises:
        Unavailable: where there cannot be hosts.
    """
    study = Times(known, known_cells)
    factors = {scheme: study.factors.get((TASK, curve_of(scheme)), 1.0) for scheme in SCHEMES}
    runs = {scheme: Training(TASK, curve_of(scheme), factors[scheme]) for scheme in SCHEMES}
    with tempfile.TemporaryDirectory() as folder:
        trainings = ResultsFile(Path(folder, "accuracy.jsonl"), Training)
        cells = ResultsFile(Path(folder, "steps.jsonl"), Cell)
        wholes = ResultsFile(Path(folder, "whole.jsonl"), Whole)
        run_missing(list(runs.values()), accuracy.train, trainings, data, processes)
        measure_missing([Cell(WORKERS, MBITS, STACK, TASK, scheme) for scheme in SCHEMES], cells, data)
        last = Whole(TASK, STACK, SCHEMES[-1], MBITS, factors[SCHEMES[-1]])
        train_missing([last], wholes, data)
        found, times, whole = trainings.read(), Times({}, cells.read()), wholes.read()[last]
    plain = found[Training(TASK, PLAIN, factors[SCHEMES[0]])]
    goal = study.target(TASK) or plain["curve"][-1][1] - 0.01
    title = f"{TASKS[TASK].title}, {WORKERS} hosts, {MBITS} Mbit/s, to {100 * goal:.1f} %"
    table = Table("scheme", "steps", "ms a step", "in the study", "seconds", "whole training, seconds", title=title)
    for scheme in SCHEMES:
        steps = steps_to(found[runs[scheme]]["curve"], goal, True)
        step = times.seconds[WORKERS, MBITS, STACK, TASK, scheme]
        before = study.seconds.get((WORKERS, MBITS, STACK, TASK, scheme))
        measured = ""
        if scheme == SCHEMES[-1]:
            seconds = steps_to([(spent, score) for _, spent, score in whole["curve"]], goal, True)
            measured = "not reached" if seconds is None else f"{seconds:.1f}"
        table.add_row(
            scheme,
            "not reached" if steps is None else f"{steps:.0f}",
            f"{1000 * step:.0f}",
            "" if before is None else f"{1000 * before:.0f}",
            "" if steps is None else f"{steps * step:.1f}",
            measured,
        )
    Console().print(table)
