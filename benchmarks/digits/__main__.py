"""Train the digits with every compression method, and write a table of what each one reaches.

    python -m benchmarks.digits

Each training adds a line to a file of results and is not repeated, so the command can be stopped with Ctrl-C and
started again. To begin anew, remove the file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.common.results import ResultsFile
from benchmarks.digits.document import DEFAULTS, document, row_of
from benchmarks.digits.settings import all_settings
from benchmarks.digits.training import Training, train_missing


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.digits",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--framework", choices=("torch", "tensorflow"), help="whose example to train")
    parser.add_argument("--ranks", type=int, help="workers to train on")
    parser.add_argument("--seeds", type=int, help="trainings with each setting")
    parser.set_defaults(**DEFAULTS)
    parser.add_argument(
        "--results",
        type=Path,
        help="file with a line for each training (if none: results/digits.jsonl, or digits-tensorflow.jsonl)",
    )
    parser.add_argument(
        "--output", type=Path, help="the document (if none: docs/results/digits.md, or digits-tensorflow.md)"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="train only settings with one of these in their spec, and print the table",
    )
    args = parser.parse_args()
    for name in ("ranks", "seeds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1; got {getattr(args, name)}")
    name = "digits" if args.framework == "torch" else f"digits-{args.framework}"
    args.results = args.results or Path("results", f"{name}.jsonl")
    args.output = args.output or Path("docs", "results", f"{name}.md")
    return args


def main() -> int:
    """Train what is missing and write the tables; 130 stands for Ctrl-C."""
    args = arguments()
    settings = all_settings(args.framework)
    if args.only:
        settings = [s for s in settings if s is settings[0] or any(name in s.compression for name in args.only)]
    file = ResultsFile(args.results, Training)
    try:
        train_missing(settings, file, framework=args.framework, ranks=args.ranks, seeds=args.seeds)
        found = file.read()
    except KeyboardInterrupt:
        done = len(file.read())
        print(f"stopped; {done} trainings are in {args.results}, the same command goes on from there", file=sys.stderr)
        return 130
    except (OSError, RuntimeError, ValueError) as error:
        print(f"digits: {error}", file=sys.stderr)
        return 1
    runs = {
        setting: [found[Training.of(setting, args.framework, args.ranks, seed)] for seed in range(args.seeds)]
        for setting in settings
    }
    text = document([row_of(setting, own) for setting, own in runs.items()], runs, args)
    if args.only:
        print(text)
    else:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text)
        print(f"table: {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
