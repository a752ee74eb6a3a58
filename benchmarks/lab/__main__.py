"""Does training get shorter with compression? Accuracy against steps, seconds a step, and what they come to.

    python -m benchmarks.lab --data DIR

Each training and each measurement adds a line to a file of results and is not repeated, so the command can be stopped
with Ctrl-C and started again.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from benchmarks.common.results import ResultsFile
from benchmarks.common.study import run_missing
from benchmarks.lab import accuracy

FOLDER = Path("docs", "results")


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
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--processes", type=int, default=cores, help="trainings at a time, each with one thread")
    return parser.parse_args()


def main() -> int:
    """Do what is missing; 130 stands for Ctrl-C."""
    args = arguments()
    file = ResultsFile(args.results / "lab-accuracy.jsonl", accuracy.Training)
    try:
        run_missing(accuracy.tuning(), accuracy.train, file, args.data, args.processes)
        run_missing(accuracy.final(file.read()), accuracy.train, file, args.data, args.processes)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
