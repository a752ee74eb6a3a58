"""A study: runs whose results are kept in a file, and a document that is written from what is there.

It can be stopped with Ctrl-C and started again: what has a result is not run again.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from tqdm import tqdm

from benchmarks.common.results import Results, ResultsFile, Setting, chosen, described


@dataclass(frozen=True)
class Experiment(Generic[Setting]):
    """What one section of a document is about.

    Attributes:
        runs: returns the settings of its runs.
        show: returns the section, and draws its pictures into a folder.
    """

    runs: Callable[[], list[Setting]]
    show: Callable[[Results[Setting], Path], str]


@dataclass(frozen=True)
class Study(Generic[Setting]):
    """Experiments that make up one document.

    Attributes:
        module: what `python -m` starts.
        description: of the command.
        document: the file's name, without its suffix; the results are beside it.
        head: the beginning of the document.
        kind: the dataclass of a run's settings.
        run: does a run, given its settings and the folder of the data, and returns its results. It has a "curve".
        experiments: by name, in the order of the sections.
        data: the folders that the data's folder must have.
        parallel: whether several runs may go on at a time.
    """

    module: str
    description: str
    document: str
    head: str
    kind: type[Setting]
    run: Callable[[Setting, str], dict[str, Any]]
    experiments: dict[str, Experiment[Setting]]
    data: str
    parallel: bool = True


def main(study: Study[Setting]) -> int:
    """Do the runs that are missing, and write the document; 130 stands for Ctrl-C."""
    args = _arguments(study)
    file = ResultsFile(args.results, study.kind)
    if not args.draw:
        settings = [setting for name in args.only for setting in study.experiments[name].runs()]
        try:
            run_missing(settings, study.run, file, args.data, args.processes)
        except KeyboardInterrupt:
            print("stopped; the same command goes on from here", file=sys.stderr)
            return 130
    _write(study, file.read(), args.output)
    return 0


def _arguments(study: Study[Any]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m {study.module}",
        description=study.description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    folder, names = Path("docs", "results"), list(study.experiments)
    parser.add_argument("--data", metavar="DIR", required=True, help=f"folder with the folders {study.data}")
    parser.add_argument(
        "--results", type=Path, default=folder / f"{study.document}.jsonl", help="file with a line for each run"
    )
    parser.add_argument("--output", type=Path, default=folder / f"{study.document}.md", help="the document")
    parser.add_argument(
        "--only", nargs="+", action="extend", choices=names, help="the experiments to run (if none: all)"
    )
    parser.add_argument("--draw", action="store_true", help="run nothing: write the document from the results so far")
    parser.set_defaults(processes=1)
    if study.parallel:
        cores = len(os.sched_getaffinity(0))
        parser.add_argument("--processes", type=int, default=cores, help="runs at a time, each with one thread")
    args = parser.parse_args()
    args.only = args.only or names
    return args


def _write(study: Study[Setting], found: Results[Setting], output: Path) -> None:
    """Write the document: of each experiment whose runs are all there the section."""
    output.parent.mkdir(parents=True, exist_ok=True)
    parts = [study.head]
    for name, experiment in study.experiments.items():
        settings = experiment.runs()
        own = chosen(settings, found)
        if len(own) == len(settings):
            parts.append(experiment.show(own, output.parent))
        else:
            print(f"{name}: {len(own)} of {len(settings)} runs are there; its section is left out", file=sys.stderr)
    output.write_text("\n".join(parts))
    print(f"written: {output}")


def run_missing(
    settings: Sequence[Setting],
    run: Callable[[Setting, str], dict[str, Any]],
    file: ResultsFile[Setting],
    data: str,
    processes: int,
    told: Callable[[dict[str, Any]], Any] = lambda result: result["curve"][-1],
) -> None:
    """Do the runs that the file has no results of, several at a time, each process one after the other.

    Where nobody looks on, each is reported in a line, with what is `told` of its result.

    Raises:
        KeyboardInterrupt: on Ctrl-C or SIGTERM; what is done is kept.
    """
    there = file.read()
    missing = [setting for setting in dict.fromkeys(settings) if setting not in there]
    if not missing:
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, so that no process is left behind
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_ignore_interrupts)
    shown = sys.stderr.isatty()
    try:
        futures = {pool.submit(run, setting, data): setting for setting in missing}
        for number, future in enumerate(tqdm(as_completed(futures), total=len(futures), unit="run", disable=not shown)):
            setting, result = futures[future], future.result()
            file.add(setting, result)
            if not shown:
                text = f"{number + 1}/{len(futures)} {described(setting)}: {told(result)}"
                print(text, file=sys.stderr, flush=True)
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its processes
