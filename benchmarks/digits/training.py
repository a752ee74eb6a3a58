"""Training on real ranks, many settings in one start of mpirun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.common.results import ResultsFile
from benchmarks.digits.settings import Setting

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Training:
    """One training, as the file of results names it: a setting's, with one seed."""

    framework: str
    compression: str
    more: str
    ranks: int
    seed: int

    @classmethod
    def of(cls, setting: Setting, framework: str, ranks: int, seed: int) -> Training:
        """Return a setting's training."""
        return cls(framework, setting.compression, setting.more, ranks, seed)


def trained(lines: list[str], ranks: int, framework: str) -> Iterator[dict[str, Any]]:
    """Train with each command line of a framework's example, all in one start, and yield the results as they come.

    Raises:
        RuntimeError: if the job ends before its time; the message has the end of its output.
    """
    command = ["mpirun", "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none", "-np", str(ranks)]
    command += [sys.executable, str(ROOT / "examples" / "train_many.py"), *lines]
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    paths = [str(ROOT / "examples" / framework), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {"OMP_NUM_THREADS": "1", **os.environ, **allowed, "PYTHONPATH": os.pathsep.join(paths)}
    with tempfile.TemporaryFile("w+") as errors:
        # In a session of its own, so that Ctrl-C reaches this process alone.
        job = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=env, cwd=ROOT, start_new_session=True
        )
        assert job.stdout is not None
        try:
            other, count = [], 0
            for line in job.stdout:
                if line.startswith('{"accuracy"'):
                    count += 1
                    yield json.loads(line)
                else:
                    other.append(line)
            if job.wait() or count < len(lines):
                errors.seek(0)
                raise RuntimeError(f"mpirun ended with {job.returncode}:\n{''.join(other)}{errors.read()}"[-4000:])
        finally:
            if job.poll() is None:
                job.terminate()
                try:
                    job.wait(20)
                except subprocess.TimeoutExpired:
                    job.kill()


def train_missing(
    settings: Sequence[Setting], file: ResultsFile[Training], *, framework: str, ranks: int, seeds: int
) -> None:
    """Do the trainings that the file has no results of, and add them to it one by one.

    Raises:
        RuntimeError: if the job ends before its time.
    """
    there = file.read()
    every = [(setting, Training.of(setting, framework, ranks, seed)) for seed in range(seeds) for setting in settings]
    missing = [(setting, training) for setting, training in every if training not in there]
    if not missing:
        return
    shown = sys.stderr.isatty()
    with tqdm(total=len(every), initial=len(every) - len(missing), unit="training", disable=not shown) as progress:
        progress.set_description("starting")
        lines = [setting.line(training.seed) for setting, training in missing]
        results = trained(lines, ranks, framework)
        done = len(every) - len(missing)
        try:
            for line, (setting, training), result in zip(lines, missing, results, strict=True):
                file.add(training, result | {"cores": len(os.sched_getaffinity(0))})
                done += 1
                progress.set_description(setting.compression)
                progress.update()
                if not shown:
                    print(f"{done}/{len(every)} {line}: {result['accuracy']:.4f}", flush=True)
        finally:
            results.close()
