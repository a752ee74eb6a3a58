"""Elastic jobs: workers are killed and come in, and the others go on with the same weights."""

from functools import cache
from pathlib import Path

import pytest
from elastic import HOSTS, check_log, elastic_job

pytestmark = pytest.mark.jobs

PROGRAMS = Path(__file__).parent / "programs"
SPECS = ["none", "topk(ratio=0.1)", "powersgd", "qsgd", "sketched_sgd(budget=0.3)", "dgc(ratio=0.1)"]
SPECS += ["topk(feedback=ef21)", "adam onebit"]
NOISE = 0.06  # of the accuracy, between runs whose ranks see other batches


def run(framework, *job):
    return elastic_job(PROGRAMS / f"elastic_{framework}.py", *job)


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_one_of_two_is_killed_and_another_comes(framework, tmp_path):
    script = [[15, "kill", 0], [30, "hosts", HOSTS[:2]]]
    last = check_log(run(framework, tmp_path, "topk(ratio=0.1)", 40, script, 2), 40, [2, 1, 2])
    assert last["lost"] == 1
    assert last["steps"] == 40
    assert last["accuracy"] > 0.6


@pytest.mark.parametrize(
    ("script", "sizes"),
    [
        ([[8, "kill", 0], [30, "hosts", HOSTS[:2]]], [2, 1, 2]),  # before the choice, and again
        ([[20, "kill", 0], [30, "hosts", HOSTS[:2]]], [2, 1, 2]),  # after it
    ],
)
def test_whoever_comes_takes_over_what_the_others_have_chosen(script, sizes, tmp_path):
    last = check_log(run("torch", tmp_path, "auto", 50, script, 2), 50, sizes)
    assert last["steps"] == 50
    assert last["method"] == "qsgd"  # of four bits


@cache
def without_faults(framework, spec, folder):
    folder.mkdir()
    return check_log(run(framework, folder, spec, 100, [], 2), 100, [2])["accuracy"]


FAULTS = {
    "one of two": (2, [[30, "kill", 0], [60, "hosts", HOSTS[:2]]], [2, 1, 2]),
    "one of three": (3, [[30, "kill", 1], [60, "hosts", HOSTS]], [3, 2, 3]),
    "1 to 2": (1, [[30, "hosts", HOSTS[:2]]], [1, 2]),
    "2 to 3": (2, [[30, "hosts", HOSTS]], [2, 3]),
    "five losses": (
        2,
        [event for n in range(5) for event in ([10 + 15 * n, "kill", n % 2], [20 + 15 * n, "hosts", HOSTS[:2]])],
        [2, *5 * [1, 2]],
    ),
}
CASES = [("torch", spec) for spec in [*SPECS, "bound topk(ratio=0.1)", "bound powersgd"]]
CASES += [("keras", spec) for spec in [*SPECS, "tape topk(ratio=0.1)", "tape powersgd"]]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("framework", "spec"), CASES)
def test_weights_stay_equal_and_accuracy_stays(framework, spec, fault, tmp_path, tmp_path_factory):
    ranks, script, sizes = FAULTS[fault]
    last = check_log(run(framework, tmp_path, spec, 100, script, ranks), 100, sizes)
    if "ef21" not in spec:  # whose estimates begin anew at each change
        folder = "-".join([framework, *filter(str.isalnum, spec)])
        assert last["accuracy"] > without_faults(framework, spec, tmp_path_factory.getbasetemp() / folder) - NOISE
