"""How the tests start jobs of the parameter servers."""

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


def start(ranks, program, *arguments):
    """Start a job, and leave it alone."""
    command = [*MPIRUN, str(ranks), sys.executable, str(program), *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True
    )


def job(ranks, program, *arguments, timeout=120):
    """Run a job to its end; return its result and what it said."""
    return ended(start(ranks, program, *arguments), timeout)


def ended(process, timeout=120):
    """Return a job's result, or None, and what it said."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    lines = [line for line in out.splitlines() if line.startswith("{")]
    return (json.loads(lines[-1]) if lines else None), err


def least_squares(ranks, algorithm, settings=None, **more):
    """Run a job on the quadratic; return its result."""
    result, said = job(ranks, LEAST_SQUARES, json.dumps({"algorithm": algorithm, "settings": settings or {}, **more}))
    assert result is not None, said
    return result


def pid_of(process, rank):
    """Return the process of a rank of a running job."""
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if child.environ().get("OMPI_COMM_WORLD_RANK") == str(rank) and "python" in child.name():
                return child.pid
        except psutil.Error:
            continue
    raise AssertionError(f"there is no rank {rank}")


def wait_for(process, text, seconds=60):
    """Read what a job says until it says something."""
    until = time.monotonic() + seconds
    for line in process.stderr:
        if text in line:
            return
        assert time.monotonic() < until, f"the job does not say {text!r}"
    raise AssertionError(f"the job ended and did not say {text!r}")
