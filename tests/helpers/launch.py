"""Start jobs of the parameter servers, wait for them, and read their results."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
MPIRUN = ["mpirun", "--with-ft", "ulfm", "-np"]
LEAST_SQUARES = ROOT / "tests" / "servers" / "least_squares.py"


def start(ranks, program, *arguments, ulfm=True):
    """Start a job in the background, such that it outlives ranks or not."""
    launcher = MPIRUN if ulfm else ["mpirun", "-np"]
    return _begin([*launcher, str(ranks), sys.executable, str(program), *map(str, arguments)])


def start_several(*programs):
    """Start a job whose ranks run different command lines, each of (ranks, program, arguments...), in the background.

    Each line of its output begins with the rank that wrote it.
    """
    command = ["mpirun", "--with-ft", "ulfm", "--output", "tag"]
    for ranks, *line in programs:
        command += ["-np", str(ranks), sys.executable, *map(str, line), ":"]
    return _begin(command[:-1])


def _begin(command):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True
    )


def job(ranks, program, *arguments, timeout=120):
    """Run a job; return its result, or None, and its standard error."""
    return ended(start(ranks, program, *arguments), timeout)


def ended(process, timeout=120):
    """Wait for a job to end; return its result, or None, and its standard error."""
    results, said = all_ended(process, timeout)
    return (results[-1] if results else None), said


def all_ended(process, timeout=120):
    """Wait for several jobs of one start to end; return their results and their standard error."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")], err


def given(algorithm, settings=None, **more):
    """Return a job on the quadratic as the program takes it."""
    return {"algorithm": algorithm, "settings": settings or {}, **more}


def least_squares(ranks, *arguments, **more):
    """Run a job on the quadratic; return its result."""
    result, said = job(ranks, LEAST_SQUARES, json.dumps(given(*arguments, **more)))
    assert result is not None, said
    return result


def least_squares_in_one_start(ranks, jobs):
    """Run jobs on the quadratic, by name, one after another in one start; return their results by name.

    Starting the ranks takes longer than most of the jobs.
    """
    results, said = all_ended(start(ranks, LEAST_SQUARES, json.dumps(list(jobs.values()))), timeout=280)
    assert len(results) == len(jobs), said
    return dict(zip(jobs, results, strict=True))


def pid_of(process, rank):
    """Return the process ID of a rank of a running job."""
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if child.environ().get("OMPI_COMM_WORLD_RANK") == str(rank) and "python" in child.name():
                return child.pid
        except psutil.Error:
            continue
    raise AssertionError(f"there is no rank {rank}")


def wait_for(process, text, seconds=60):
    """Read a job's standard error up to a line with a text, and raise AssertionError if there is none in time."""
    until = time.monotonic() + seconds
    for line in process.stderr:
        if text in line:
            return
        assert time.monotonic() < until, f"the job does not say {text!r}"
    raise AssertionError(f"the job ended and did not say {text!r}")
