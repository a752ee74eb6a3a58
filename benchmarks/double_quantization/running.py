"""Runs a job, on hosts behind limited links where that is possible, and measures how busy cores and links are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.double_quantization.job import Job
from examples.hosts import PREFIX, hosts

ASYLPG = Path(__file__).parents[2] / "mpi" / "asylpg.py"
TIMEOUT = 900  # seconds until a job is given up


class Use(NamedTuple):
    """The system's counters: ticks of all cores, the busy ones among them, and bytes of each link in each direction."""

    cores: float
    busy: float
    links: list[int]

    @staticmethod
    def now() -> Use:
        """Read the system's counters."""
        ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        ways = sorted(Path("/sys/class/net").glob(f"{PREFIX}p*/statistics/[rt]x_bytes"))
        return Use(sum(ticks), sum(ticks) - ticks[3] - ticks[4], [int(way.read_text()) for way in ways])


def run(job: Job, data: str) -> dict[str, Any]:
    """Do a job.

    Returns:
        How it ended ("target", "epochs" or "failed"), its steps and largest delay, the share of the cores' time that
        was used and the Mbit/s of the busiest link, both from the beginning of the first epoch on, and the curve.

    Raises:
        Unavailable: if hosts cannot be made, although this is root.
        RuntimeError: if the job refuses its arguments or data.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the job is ended, and its hosts are removed
    try:
        return _run(job, data)
    except KeyboardInterrupt:
        os._exit(130)  # otherwise the pool's process would begin the next job


def _run(job: Job, data: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, _mpirun(job) as (mpirun, limited):
        log, out, err = (Path(folder) / name for name in ("log.json", "out", "err"))
        command = [*mpirun, sys.executable, str(ASYLPG), "--quiet", "--log", str(log), *job.arguments(data)]
        with out.open("w") as to, err.open("w") as errors:
            process = subprocess.Popen(command, stdout=to, stderr=errors, start_new_session=True, env=_environment())
            try:
                used = _watch(process, log)
            finally:
                _end(process)
        if process.returncode == 2:
            raise RuntimeError(err.read_text())
        found = [json.loads(line) for line in out.read_text().splitlines() if line.startswith("{")]
        rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    ended = "failed"
    if found:
        value = found[-1]["objective" if found[-1]["suboptimality"] is None else "suboptimality"]
        ended = "target" if job.target is not None and value <= job.target else "epochs"
    result = {"ended": ended, "limited": limited} | used
    result |= {name: found[-1][name] if found else None for name in ("steps", "max_delay")}
    return result | {"curve": [_point(row) for row in rows] or [None]}


@contextmanager
def _mpirun(job: Job) -> Iterator[tuple[list[str], bool]]:
    """Give the beginning of a command, and whether the links are limited."""
    if job.mbits and os.geteuid() == 0:
        count = job.workers if job.together else job.workers + job.servers
        with hosts(count, job.mbits, ulfm=True, ranks_each=2 if job.together else 1) as command:
            yield command, True
    else:
        ranks = str(job.workers + job.servers)
        yield ["mpirun", "--bind-to", "none", "--map-by", ":oversubscribe", "--with-ft", "ulfm", "-np", ranks], False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _watch(process: subprocess.Popen[bytes], log: Path) -> dict[str, Any]:
    """Wait for a job; return how busy cores and links were between the first and the last line of its log."""
    marks: list[tuple[float, Use]] = []
    size, until = 0, time.monotonic() + TIMEOUT
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
        grown = log.stat().st_size if log.exists() else 0
        if grown > size:
            size = grown
            marks = [*marks[:1], (time.monotonic(), Use.now())]
    if len(marks) < 2:
        return {"cores": None, "link": None}
    (began, first), (ended, last) = marks
    mbits = [8e-6 * (b - a) / (ended - began) for a, b in zip(first.links, last.links, strict=True)]
    cores = (last.busy - first.busy) / (last.cores - first.cores)
    return {"cores": round(cores, 3), "link": round(max(mbits), 1) if mbits else None}


def _point(row: dict[str, Any]) -> list[Any]:
    """Return a point of the curve; `sections` names its columns."""
    point = [row["epoch"], row["objective"], row["suboptimality"], row["accuracy"]]
    point += [row["bits_up"] / 1e6, row["bits_down"] / 1e6, row["seconds"]]
    return [value if value is None or isinstance(value, int) else float(f"{value:.6g}") for value in point]
