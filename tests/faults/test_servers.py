"""Parameter servers of which a rank stops or sends nonsense: it is named, and the others go on or end."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from launch import ended, pid_of, start, wait_for

pytestmark = pytest.mark.jobs

PROGRAM = Path(__file__).parent / "programs" / "servers.py"
SGD = {"kind": "SGD", "algorithm": {"batch": 8, "epoch_steps": 40}}
ASYNCHRONOUS = {"kind": "SGD", "algorithm": {"batch": 8, "epoch_steps": 40, "asynchronous": True}}
ASYLPG = {"algorithm": {"batch": 8, "epoch_steps": 200}}


def begin(ranks, job, faults=None, **settings):
    settings = {"batch": 8, "epochs": 6, **settings}
    return start(ranks, PROGRAM, json.dumps({**job, "settings": settings, "faults": faults or {}}))


# The message before which a worker stops; none of these has a server waiting for an answer to a model.
STALLS = {
    "before the first step": (SGD, {"kind": "PART", "after": 2}),
    "between steps": (SGD, {"kind": "MODEL", "after": 50}),
    "between epochs": (ASYNCHRONOUS, {"kind": "SNAPSHOT", "after": 3}),
    "asynchronous": (ASYNCHRONOUS, {"kind": "MODEL", "after": 3}),
    "at the end": (SGD, {"kind": "BYE", "after": 1}),
}


@pytest.mark.parametrize(
    "where", [name if name == "between steps" else pytest.param(name, marks=pytest.mark.slow) for name in STALLS]
)
def test_a_worker_that_stalls_and_owes_nothing_is_done_without(where):
    job, stop = STALLS[where]
    process = begin(4, job, {"2": {**stop, "stop": True}}, timeout=1)
    result, said = ended(process)
    assert result is not None, said
    assert said.count("worker 2 was silent") == said.count("was silent") == 1
    assert result["epochs"] == 6
    assert result["workers_left"] == (3 if where == "at the end" else 2)


@pytest.mark.parametrize(
    ("stop", "name"),
    [
        ({"0": {"kind": "MODEL", "after": 50}}, "server 0, the coordinator,"),
        ({"1": {"kind": "MODEL", "after": 50}}, "server 1"),
        *(
            pytest.param(stop, name, marks=pytest.mark.slow)
            for stop, name in [
                ({"0": {"kind": "START", "to": 1, "after": 2}}, "server 0, the coordinator,"),
                ({"0": {"kind": "BYE", "after": 1}}, "server 0, the coordinator,"),
                ({"1": {"kind": "REPORT", "after": 2}}, "server 1"),
                ({"1": {"kind": "SNAPSHOT", "to": 2, "after": 2}}, "server 1"),
            ]
        ),
    ],
)
def test_a_server_that_stalls_is_named_and_ends_the_job(stop, name):
    """No worker is blamed, although all of them are waited for."""
    process = begin(4, SGD, {rank: {**fault, "stop": True} for rank, fault in stop.items()}, timeout=1.5, servers=2)
    result, said = ended(process)
    assert result is None
    assert process.returncode
    assert f"{name} was silent for" in said
    assert "--resume" in said
    assert "worker" not in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_rank_that_dies_while_data_are_loaded_is_named():
    process = begin(4, {**ASYLPG, "SIGKILL": [2]})
    result, said = ended(process)
    assert result is None
    assert process.returncode
    assert said.count("rank 2 is gone") == 3
    assert "Traceback" not in said


def test_a_rank_that_is_stopped_while_data_are_loaded_is_named():
    process = begin(4, {**ASYLPG, "SIGSTOP": [2]}, timeout=1)
    wait_for(process, "waiting for rank 2 for 1 s")
    os.kill(pid_of(process, 2), signal.SIGCONT)
    result, said = ended(process)
    assert result is not None, said


@pytest.mark.slow
@pytest.mark.parametrize("rank", range(5))
def test_stopped_from_outside_each_rank_is_named(rank):
    name = ["server 0, the coordinator,", "server 1", "worker 2", "worker 3", "worker 4"][rank]
    process = begin(5, ASYLPG, epochs=8, timeout=1.5, servers=2, slow=0.004)
    wait_for(process, "epoch 1")
    time.sleep(0.1 * rank)
    os.kill(pid_of(process, rank), signal.SIGSTOP)
    result, said = ended(process)
    assert f"{name} was silent for" in said
    assert (result is None) == (rank < 2)


@pytest.mark.slow
def test_a_rank_that_was_stopped_for_longer_than_the_timeout_blames_nobody():
    process = begin(4, ASYLPG, epochs=8, timeout=1.5, slow=0.004)
    wait_for(process, "epoch 1")
    coordinator, others = pid_of(process, 0), [pid_of(process, rank) for rank in (1, 2, 3)]
    for pid in [coordinator, *others]:  # as when the machine sleeps
        os.kill(pid, signal.SIGSTOP)
    time.sleep(3)
    for pid in [coordinator, *others]:
        os.kill(pid, signal.SIGCONT)
    result, said = ended(process)
    assert result is not None, said
    assert "silent" not in said
    assert result["workers_left"] == 3


GIB = 1 << 30
# What each worker sends among sensible messages, and why it is refused.
NONSENSE = {
    2: ({"kind": "PUSH", "to": 0, "length": 64 * GIB}, f"announced {64 * GIB} bytes in a message of kind PUSH, of at"),
    3: ({"kind": "PUSH", "to": 1, "length": 16 * GIB}, f"announced {16 * GIB} bytes in a message of kind PUSH, of at"),
    4: ({"kind": "MODEL", "to": 0, "round": 1000}, "the last that can have begun is"),
    5: ({"kind": "SNAPSHOT", "to": 1, "round": 1000}, "the last that can have begun is"),
    6: ({"kind": "PART", "to": 1, "round": 2}, "not yet due"),
    7: ({"kind": "SNAPSHOT", "to": 1, "round": 2, "times": 300}, "not yet due"),
    8: ({"kind": "MODEL", "to": 0, "times": 300}, "while others are not answered"),
    9: ({"kind": "PUSH", "to": 0, "tag": 77}, "with tag 77, which are no message"),
    10: ({"kind": "PUSH", "to": 0, "tag": 1}, "of kind START, which is not for it to send here"),
    11: ({"kind": "PUSH", "to": 0, "cut": 5}, "sent 5 bytes with tag"),
    12: ({"kind": "PUSH", "to": 0, "zeros": 1 << 20}, "which are no message"),
    13: ({"kind": "PUSH", "to": 0, "length": 3}, "and announced 3"),
}


@pytest.mark.parametrize("ranks", [7, pytest.param(15, marks=pytest.mark.slow)])
def test_workers_that_send_nonsense_are_named_and_the_last_one_goes_on(ranks):
    faulty = range(2, ranks - 1)
    process = begin(
        ranks, SGD, {str(rank): {"after": 2, **NONSENSE[rank][0]} for rank in faulty}, timeout=20, servers=2
    )
    result, said = ended(process)
    assert result is not None, said
    assert (result["epochs"], result["workers"], result["workers_left"]) == (6, ranks - 2, 1)
    for rank in faulty:
        refused = [line for line in said.splitlines() if f"rank {rank}: a server has refused a message: " in line]
        assert len(refused) == 1, (rank, said)
        assert NONSENSE[rank][1] in refused[0]
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "fault", "reason"),
    [
        (1, {"kind": "REPORT", "length": 64 * GIB}, f"rank 1 announced {64 * GIB}"),
        (1, {"kind": "REPORT", "payload": "{}"}, "a REPORT that is none"),
        (1, {"kind": "REPORT", "payload": "[" * 3000}, "a REPORT that is no JSON"),
        (1, {"kind": "MODEL", "to": 2, "length": 16 * GIB}, f"rank 1 announced {16 * GIB}"),
        (0, {"kind": "MODEL", "to": 2, "length": 64 * GIB}, f"rank 0 announced {64 * GIB}"),
        (0, {"kind": "START", "to": 1, "payload": '{"round": 5}'}, "a START that describes no round"),
        (0, {"kind": "START", "to": 2, "payload": "[1e999"}, "a START that is no JSON"),
    ],
)
def test_a_server_that_sends_nonsense_is_named(rank, fault, reason):
    process = begin(3, SGD, {str(rank): {"after": 2, **fault}}, timeout=20, servers=2)
    result, said = ended(process)
    assert result is None
    assert process.returncode
    assert f"server {rank} sent a message that was refused: {reason}" in said
    assert "Traceback" not in said
