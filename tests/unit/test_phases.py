"""Where the time of steps goes: each moment in one phase, and a trace that can be read however the process ends."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest
import torch
from timelines import total

from hvd_compress.reduction.phases import COPY, DECODE, ENCODE, OTHER, WIRE, Phases
from hvd_compress.reduction.stats import added, nothing_sent
from hvd_compress.reduction.trace import Event, Trace, joined, trace_of
from hvd_compress.torch.phases import recorder

NAP = 0.02


def test_a_moment_belongs_to_the_call_that_was_entered_last():
    phases = Phases()
    time.sleep(NAP)  # before the clock begins
    began = time.perf_counter()
    with phases.of(COPY):
        phases.due = 1
        with phases.of(ENCODE):
            time.sleep(NAP)
        with phases.of(DECODE):
            time.sleep(NAP)
    time.sleep(NAP)
    with phases.of(OTHER):
        phases.due = 0
        time.sleep(NAP)
    wall, report = time.perf_counter() - began, phases.report()
    for part in ("encode", "decode", "other"):
        assert report[part]["exposed"] >= NAP
    assert report["computing"] >= NAP
    assert report["copy"]["exposed"] <= wall - 4 * NAP
    assert report["encode"]["in_backward"] == report["encode"]["exposed"]
    assert report["other"]["in_backward"] == 0
    assert report["optimizer"] is None
    assert wall - NAP < total(report) <= wall
    assert report["seconds"] == pytest.approx(total(report))
    assert phases.compression_seconds == report["encode"]["exposed"] + report["decode"]["exposed"]


def test_what_is_hidden_of_a_collective_is_that_nobody_waited_for():
    phases = Phases()
    with phases.of(COPY):
        phases.due = 1
        phases.started("bucket", 0, "allreduce")
    time.sleep(NAP)
    with phases.of(OTHER):
        phases.due = 0
        with phases.of(WIRE):
            time.sleep(NAP)
        phases.arrived("bucket")
        time.sleep(NAP)
    report = phases.report()
    assert report["wire"]["hidden"] >= NAP
    assert report["wire"]["exposed"] >= NAP
    assert report["computing"] >= NAP
    assert report["wire"]["hidden"] <= report["seconds"] - report["wire"]["exposed"] - NAP
    assert phases.communication_seconds == report["wire"]["exposed"]


def test_without_a_call_a_worker_waits_once_all_gradients_are_there():
    """So it is in TensorFlow's graphs."""
    phases = Phases()
    with phases.of(OTHER):
        phases.due = 2
    for bucket in "ab":
        with phases.of(OTHER):
            phases.vector_came()
        phases.started(bucket, 0, "allgather")
        time.sleep(NAP)
    for bucket in "ab":
        phases.arrived(bucket)
    time.sleep(NAP)
    with phases.of(OTHER):
        pass
    report = phases.report()
    assert report["wire"]["hidden"] >= NAP
    assert report["wire"]["exposed"] >= NAP
    assert report["computing"] >= 2 * NAP


def test_an_exchange_that_is_dropped_is_waited_for_no_longer():
    phases = Phases()
    with phases.of(OTHER):
        phases.started("bucket", 0, "allgather")
        phases.dropped("bucket")
    hidden = phases.report()["wire"]["hidden"]
    time.sleep(NAP)
    with phases.of(OTHER):
        phases.arrived("bucket")
    assert phases.report()["wire"] == {"exposed": 0.0, "in_backward": 0.0, "hidden": hidden}


def test_the_phases_add_up_where_threads_call_at_the_same_time():
    phases = Phases()

    def calls():
        for _ in range(300):
            with phases.of(OTHER), phases.of(ENCODE):
                time.sleep(0)

    with phases.of(OTHER):
        began = time.perf_counter()
    threads = [threading.Thread(target=calls) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with phases.of(OTHER):
        wall = time.perf_counter() - began
    assert total(phases.report()) == pytest.approx(wall, rel=0.1)


def test_an_optimizer_counts_once_the_clock_has_begun():
    phases = Phases()
    for begun in (False, True):
        phases.optimizer_begins()
        time.sleep(NAP)
        phases.optimizer_ends()
        report = phases.report()
        assert (report["optimizer"] is not None) == begun
        with phases.of(OTHER):
            pass
    assert report["optimizer"] >= NAP


def test_an_optimizer_may_call_another_and_fail():
    phases = Phases()
    with phases.of(OTHER):
        pass
    phases.optimizer_begins()
    time.sleep(NAP)
    phases.optimizer_begins()
    time.sleep(NAP)
    phases.optimizer_ends()
    time.sleep(NAP)
    phases.optimizer_ends()
    seconds = phases.report()["optimizer"]
    assert seconds >= 3 * NAP
    phases.optimizer_begins()  # and does not end
    with phases.of(OTHER):
        pass
    computing = phases.report()["computing"]
    time.sleep(NAP)
    phases.optimizer_begins()
    phases.optimizer_ends()
    assert phases.report()["computing"] >= computing + NAP


def test_the_phases_of_two_reducers_are_added():
    stats = []
    for _ in range(2):
        phases = Phases()
        with phases.of(ENCODE):
            time.sleep(NAP)
        stats.append({**nothing_sent(), "phases": phases.report()})
    assert added(*stats)["phases"]["encode"]["exposed"] >= 2 * NAP
    assert added(*stats)["phases"]["optimizer"] is None
    assert nothing_sent(phases=True)["phases"]["seconds"] == 0


# --- the trace

PROGRAM = """
import os, signal, sys, time
from hvd_compress.reduction.phases import ENCODE, Phases
phases = Phases()
assert phases.open_trace(3) is None
for step in range(60):
    with phases.of(ENCODE, 'a "bucket"'):
        time.sleep(0.02)
    phases.end_step(step + 1)
if sys.argv[1] == "fork" and not os.fork():
    sys.exit()
if sys.argv[1] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "_exit":
    os._exit(0)
"""


@pytest.mark.parametrize("end", ["return", "_exit", "kill", "fork"])
def test_a_trace_is_valid_however_the_process_ends(end, tmp_path):
    env = {**os.environ, "HVD_COMPRESS_TIMELINE": str(tmp_path / "trace.%r.json")}
    subprocess.run([sys.executable, "-c", PROGRAM, end], env=env, check=end != "kill", timeout=60)
    text = (tmp_path / "trace.3.json").read_text()
    whole = end in ("return", "fork")
    assert text.endswith("]\n") == whole
    events = json.loads(text if whole else text + "]")
    names = [event["args"]["name"] for event in events if event["name"] == "thread_name"]
    assert set(names) == {"step", 'a "bucket"'}
    complete = [event for event in events if event["ph"] == "X"]
    encoded = [e["args"]["step"] for e in complete if e["name"] == "encode" and e["tid"] == names.index('a "bucket"')]
    assert encoded == list(range(1, 1 + len(encoded)))
    assert len(encoded) == 60 if whole else encoded  # the last second is missing
    assert {event["pid"] for event in events} == {3}
    assert all(event["dur"] >= 0 and event["ts"] > 0 for event in complete)


def test_without_a_placeholder_rank_0_alone_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("HVD_COMPRESS_TIMELINE", str(tmp_path / "one.json"))
    assert trace_of(1) is None
    assert not list(tmp_path.iterdir())
    assert trace_of(0) is trace_of(0) is not None


def test_nothing_is_written_unless_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.delenv("HVD_COMPRESS_TIMELINE", raising=False)
    monkeypatch.chdir(tmp_path)
    assert trace_of(0) is None
    assert Phases().open_trace(0) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["no/such/folder/trace.json", "/dev/full"])
def test_a_file_that_cannot_be_written_is_named(name, monkeypatch):
    monkeypatch.setenv("HVD_COMPRESS_TIMELINE", name)
    for _ in range(2):
        error = Phases().open_trace(0)
        assert str(error).startswith(f"HVD_COMPRESS_TIMELINE: {name} cannot be written: No ")


def test_a_disk_that_fills_up_ends_the_trace_and_not_the_training(tmp_path, caplog):
    trace = Trace(str(tmp_path / "trace.json"), 0)
    os.dup2(os.open("/dev/full", os.O_WRONLY), trace._file)
    for _ in range(2):
        trace.add(Event(ENCODE, "step", 1.0, 2.0, 0))
        trace.write()
    assert caplog.text.count("is written no further: No space left on device") == 1


def test_events_of_one_phase_that_follow_each_other_are_one():
    one, two, three = (Event(WIRE, "step", t, t + 1, 0) for t in (0.0, 1.0, 2.5))
    other = Event(ENCODE, "bucket", 0.5, 1.0, 0)
    assert joined([one, other, two, three]) == [Event(WIRE, "step", 0.0, 2.0, 0), other, three]


def test_optimizers_may_be_made_while_another_thread_steps(monkeypatch):
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    optimizer, kept = torch.optim.SGD([parameter]), [recorder() for _ in range(200)]
    steps = threading.Thread(target=lambda: [optimizer.step() for _ in range(300)])
    failed = []
    monkeypatch.setattr(threading, "excepthook", lambda told: failed.append(told.exc_value))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        steps.start()
        while steps.is_alive():
            if len(kept) < 5000:
                kept.append(recorder())
    finally:
        sys.setswitchinterval(interval)
    assert not failed
