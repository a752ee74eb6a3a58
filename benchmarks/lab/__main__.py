"""Does training get shorter with compression? Accuracy against steps, seconds a step, and what they come to.

    python -m benchmarks.lab --data DIR

Each training and each measurement adds a line to a file of results and is not repeated, so the command can be stopped
with Ctrl-C and started again. Seconds are to be measured with nothing else on the machine.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from benchmarks.common.results import ResultsFile
from benchmarks.common.study import run_missing
from benchmarks.lab import accuracy, document, quick, steps, virtual, whole
from examples.hosts import Unavailable

FOLDER = Path("docs", "results")
PARTS = ("accuracy", "steps", "whole", "costs")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lab",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--data", metavar="DIR", required=True, help="folder with the folders mnist, cifar10, multi30k and rt-polarity"
    )
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of the files of results")
    parser.add_argument(
        "--only",
        nargs="+",
        action="extend",
        choices=PARTS,
        help="what to do (if none: all): trainings with simulated workers; seconds a step, and whole trainings, on "
        "hosts behind links; what the methods cost, for the virtual clock",
    )
    parser.add_argument("--output", type=Path, default=FOLDER / "training-time.md", help="the document")
    parser.add_argument(
        "--quick", action="store_true", help="do only one row, with one seed, and print it: some minutes"
    )
    parser.add_argument("--draw", action="store_true", help="run nothing: write the document from the results so far")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--processes", type=int, default=cores, help="simulated trainings at a time, one thread each")
    args = parser.parse_args()
    args.only = args.only or PARTS
    return args


def main() -> int:
    """Do what is missing; 2 stands for a machine without hosts, 130 for Ctrl-C."""
    args = arguments()
    trainings = ResultsFile(args.results / "lab-accuracy.jsonl", accuracy.Training)
    cells = ResultsFile(args.results / "lab-steps.jsonl", steps.Cell)
    wholes = ResultsFile(args.results / "lab-whole.jsonl", whole.Whole)
    costs = ResultsFile(args.results / "lab-costs.jsonl", virtual.Cost)
    parts = () if args.draw else args.only
    try:
        if args.quick:
            quick.reproduce(trainings.read(), cells.read(), args.data, args.processes)
            return 0
        if "accuracy" in parts:
            run_missing(accuracy.tuning(), accuracy.train, trainings, args.data, args.processes)
            run_missing(accuracy.final(trainings.read()), accuracy.train, trainings, args.data, args.processes)
        if "steps" in parts:
            steps.measure_missing(steps.cells(), cells, args.data)
        if "whole" in parts:
            whole.train_missing(whole.chosen(trainings.read()), wholes, args.data)
        if "costs" in parts:
            run_missing(virtual.costs(), virtual.measure, costs, args.data, 1, lambda result: result["computing"])
    except Unavailable as error:
        print(f"benchmarks.lab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    document.write(args.output, trainings.read(), cells.read(), wholes.read(), costs.read())
    print(f"written: {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
