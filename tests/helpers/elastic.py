"""Start elastic jobs of Horovod on one machine, whose hosts come and go."""

import json
import os
import signal
import socket
import subprocess
import sys

HOSTS = ["localhost", "127.0.0.1", socket.gethostname()]  # each with one rank


def elastic_job(program, folder, spec, steps, script, ranks, timeout=150):
    """Run a program of `faults/programs/`, from so many ranks on; return the lines that it logged."""
    (folder / "hosts").write_text("".join(f"{host}:1\n" for host in HOSTS[:ranks]))
    discover = folder / "discover"
    discover.write_text(f"#!/bin/sh\ncat {folder / 'hosts'}\n")
    discover.chmod(0o755)
    command = ["horovodrun", "--gloo", "-np", str(ranks), "--min-np", "1", "--max-np", str(len(HOSTS))]
    command += ["--host-discovery-script", str(discover), "--network-interface", "lo"]
    command += ["--blacklist-cooldown-range", "1", "2", sys.executable, str(program), str(folder), spec]
    command += [str(steps), json.dumps(script)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HOROVOD_ELASTIC_TIMEOUT": "100", "TF_CPP_MIN_LOG_LEVEL": "3"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, start_new_session=True
    ) as process:
        try:
            said, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, said
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()]


def check_log(lines, steps, sizes):
    """Check that all ranks had the same weights after each step, and their numbers; return the last line."""
    *taken, last = lines
    assert taken[-1]["step"] == steps
    for line in taken:
        assert len(line["digests"]) == line["size"]
        assert len(set(line["digests"])) == 1, line
    runs = [line["size"] for line in taken]
    assert [size for i, size in enumerate(runs) if i == 0 or size != runs[i - 1]] == sizes
    return last
