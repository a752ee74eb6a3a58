"""A start of mpirun that does some measurements, on hosts behind links."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from examples.hosts import NETWORK, hosts


def results_of(settings: dict[str, Any], count: int, mbits: int) -> Iterator[dict[str, Any]]:
    """Start `benchmarks.lab.rank` on so many hosts, and yield its results as they come, with machine and load.

    Args:
        settings: of the ranks.
        count: of the hosts, each with one rank; they share this machine's cores.
        mbits: rate of each host's link in Mbit/s, 0 for no limit.

    Raises:
        Unavailable: where there cannot be hosts.
        RuntimeError: if the job ends before its time; the message has the end of its errors.
    """
    given = {"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
    load = round(os.getloadavg()[0], 1)
    with hosts(count, mbits or None) as mpirun:
        exported = [word for name in given for word in ("-x", name)]
        told = json.dumps({**settings, "address": f"{NETWORK}.1"})
        command = [*mpirun, *exported, sys.executable, "-m", "benchmarks.lab.rank", told]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, **pipes, text=True, env={**os.environ, **given}) as job:
            assert job.stdout is not None
            assert job.stderr is not None
            for line in job.stdout:
                if line.startswith("{"):
                    yield json.loads(line) | {"load": load} | machine()
            errors = job.stderr.read()
    if job.returncode:
        raise RuntimeError(f"the job ended with {job.returncode}:\n{errors[-4000:]}")


def machine() -> dict[str, Any]:
    """Return the name of the processor, and the number of cores."""
    with open("/proc/cpuinfo") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return {"processor": names[0] if names else "unknown", "cores": len(os.sched_getaffinity(0))}
