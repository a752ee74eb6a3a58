"""Where the time of steps goes: each moment in one phase."""

import threading
import time

import pytest
from timelines import total

from hvd_compress.reduction.phases import COPY, DECODE, ENCODE, OTHER, WIRE, Phases
from hvd_compress.reduction.stats import added, nothing_sent

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
        phases.started("bucket")
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
        phases.started(bucket)
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
        phases.started("bucket")
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
