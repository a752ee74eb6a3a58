"""Several hosts on one machine, each behind a link of a given speed: network namespaces joined by a bridge."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "hvdc"  # of all namespaces and devices: a later process removes by it what a killed one left behind
NETWORK = "10.77.0"  # host i is .i+1, the machine itself, where mpirun runs, .254
LARGEST = 250
LOCK, AGENT = Path(f"/run/{PREFIX}.lock"), Path(f"/run/{PREFIX}.agent")

# What mpirun calls in place of ssh: sh AGENT [-OPTION ...] ADDRESS COMMAND. It gives each host a name of its own, since
# Open MPI takes hosts of the same name for one host.
SCRIPT = f"""while [ "${{1#-}}" != "$1" ]; do shift; done
host={PREFIX}$((${{1##*.}} - 1))
shift
exec ip netns exec $host unshare --uts sh -c 'echo $1 > /proc/sys/kernel/hostname; exec sh -c "$2"' sh $host "$*"
"""


class Unavailable(RuntimeError):
    """Hosts cannot be made on this machine, or not now."""


@contextmanager
def hosts(count: int, mbits: int | None, ulfm: bool = False, ranks_each: int = 1) -> Iterator[list[str]]:
    """Divide the machine into hosts, and give the beginning of an `mpirun` command that puts rank i on host i % count.

    At the end the hosts are removed, with all that runs on them. The ranks inherit the environment.

    Args:
        count: of hosts.
        mbits: rate of each host's link in Mbit/s, in each direction; headers take some 4 % of it. None for no limit.
        ulfm: whether the other ranks go on after one has died. They should then end with `os._exit`, since
            MPI_Finalize may not return; write results before, for `mpirun` may end the slower ranks and return 1.
        ranks_each: ranks on each host. What they send each other does not go over its link.

    Raises:
        Unavailable: without root, iproute2 or a kernel that can do it, and while another process has hosts.
        ValueError: on a `count` or `mbits` out of range.
    """
    for name, value, largest in (("count", count, LARGEST), ("mbits", mbits, 10_000)):
        if value is not None and not 1 <= value <= largest:
            raise ValueError(f"{name} is {value}, must be from 1 to {largest}")
    if os.geteuid() != 0:
        raise Unavailable("hosts need root")
    missing = [name for name in ("ip", "tc", "unshare", "mpirun") if shutil.which(name) is None]
    if missing:
        raise Unavailable(f"hosts need {', '.join(missing)}, not found on PATH")
    with LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unavailable(f"another process has hosts: {LOCK} is locked") from None
        _remove()
        try:
            _make(count, mbits)
            yield _mpirun(count, ulfm, ranks_each)
        finally:
            _remove()


def _make(count: int, mbits: int | None) -> None:
    # A burst is what the link carries in 1 ms, and at least a packet: smaller ones would keep the cores segmenting
    # packets. The queue holds half a second's worth, since several ranks may send to one at a time.
    limit = mbits and f"root tbf rate {mbits}mbit burst {max(2, mbits // 8)}kb latency 500ms"
    AGENT.write_text(SCRIPT)
    _call(f"ip link add {PREFIX} type bridge")
    _call(f"ip address add {NETWORK}.254/24 dev {PREFIX}")
    _call(f"ip link set {PREFIX} up")
    for host in range(count):
        name, port = f"{PREFIX}{host}", f"{PREFIX}p{host}"
        _call(f"ip netns add {name}")
        _call(f"ip link add {port} type veth peer name eth0 netns {name}")
        if limit:
            _call(f"tc qdisc add dev {port} {limit}")
            _call(f"tc -n {name} qdisc add dev eth0 {limit}")
        _call(f"ip link set {port} up master {PREFIX}")
        _call(f"ip -n {name} address add {NETWORK}.{host + 1}/24 dev eth0")
        _call(f"ip -n {name} link set eth0 up")
        _call(f"ip -n {name} link set lo up")


def _mpirun(count: int, ulfm: bool, ranks_each: int) -> list[str]:
    network = f"{NETWORK}.0/24"
    parameters = {
        "plm_rsh_agent": f"sh {AGENT}",
        "oob_tcp_if_include": network,
        "btl": "tcp,self",
        "btl_tcp_if_include": network,
        "btl_tcp_flags": "send,inplace",  # with "put", an exchange of large messages is one after the other
        "mpi_yield_when_idle": "1",  # there are more ranks than cores, which Open MPI cannot know
    }
    if ulfm:  # otherwise asking for a dead rank's address, and MPI_Finalize, never return
        parameters |= {"mpi_add_procs_cutoff": "1024", "async_mpi_finalize": "1"}
    places = ",".join(f"{NETWORK}.{host + 1}:{ranks_each}" for host in range(count))
    command = ["mpirun", "--bind-to", "none", "--map-by", "node", "--host", places]
    command += ["--with-ft", "ulfm"] if ulfm else []
    return command + [word for item in parameters.items() for word in ("--mca", *item)]


def _remove() -> None:
    """Remove all hosts, those of an earlier process as well, and kill what runs on them."""
    names = [line.split()[0] for line in _call("ip netns list").splitlines() if line.startswith(PREFIX)]
    for name in names:
        for process in _call(f"ip netns pids {name}").split():
            with suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)
    devices = [line.split()[0].partition("@")[0] for line in _call("ip -brief link").splitlines()]
    for device in devices:
        if device.startswith(PREFIX):
            _call(f"ip link delete {device}")
    for name in names:
        _call(f"ip netns delete {name}")
    AGENT.unlink(missing_ok=True)


def _call(command: str) -> str:
    # In a session of its own, so that Ctrl-C does not stop it halfway.
    done = subprocess.run(command.split(), capture_output=True, text=True, start_new_session=True)
    if done.returncode:
        raise Unavailable(f"{command!r} failed: {done.stderr.strip()}")
    return done.stdout
