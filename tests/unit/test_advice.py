"""The performance model: a step on the virtual clock against closed forms, and what is measured for it."""

import json
import math
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvd_compress import Layout, parse
from hvd_compress.advice.advise import Advice, advise, pays_below
from hvd_compress.advice.costs import bucket_costs
from hvd_compress.advice.model import BucketCosts, Computing, Ring, Round, predict
from hvd_compress.advice.network import Measured
from hvd_compress.advice.traced import traced
from hvd_compress.ops.numpy import NumpyOps
from hvd_compress.reduction.buckets import Bucket, Gradient
from hvd_compress.reduction.trace import SHAPES

COMPUTING = Computing(0.010, 0.020, 0.005)
times = st.floats(0.0, 10.0)
rounds = st.tuples(st.builds(Round, st.just("allreduce"), st.integers(0, 9), times))


class At:
    """A network on which a byte takes a second."""

    def seconds(self, kind, size):
        return float(size)


@pytest.mark.parametrize("hosts", [1, 2, 4, 64])
def test_a_ring_sends_what_its_algorithms_send(hosts):
    ring = Ring(hosts, rate=1e6, latency=1e-3)
    turns = hosts - 1
    assert ring.seconds("allreduce", 4_000_000) == pytest.approx(2 * turns / hosts * 4 + 2 * turns * 1e-3)
    assert ring.seconds("allgather", 4_000_000) == pytest.approx(turns * 4 + turns * 1e-3)


def test_one_bucket_hides_nothing():
    step = predict(COMPUTING, [BucketCosts(7, 1.0, (Round("allreduce", 2, 3.0), Round("allgather", 4, 5.0)))], At())
    assert step.seconds == pytest.approx(0.035 + 1 + 2 + 3 + 4 + 5)
    assert (step.encode, step.decode, step.waiting, step.wire) == pytest.approx((1, 8, 6, 6))


def test_what_the_backward_pass_hides_takes_no_time():
    """The first of two buckets, half of the gradients, is under way while the second half is computed."""
    computing = Computing(1.0, 8.0, 0.5)
    buckets = [BucketCosts(5, 0.0, (Round("allreduce", 3, 0.0),)), BucketCosts(5, 0.0, (Round("allreduce", 2, 0.0),))]
    assert predict(computing, buckets, At()).seconds == pytest.approx(1 + 8 + 2 + 0.5)
    slow = [BucketCosts(5, 0.0, (Round("allreduce", 30, 0.0),)), buckets[1]]
    assert predict(computing, slow, At()).seconds == pytest.approx(1 + 4 + 30 + 2 + 0.5)


def test_decoding_goes_on_beside_the_network():
    buckets = [BucketCosts(1, 0.0, (Round("allgather", 4, 3.0),)), BucketCosts(1, 0.0, (Round("allgather", 4, 3.0),))]
    step = predict(Computing(0.0, 0.0, 0.0), buckets, At())
    assert step.seconds == 4 + 4 + 3  # the second is carried while the first is decoded
    assert step.waiting == 4 + 1


@given(
    st.lists(st.builds(BucketCosts, st.integers(1, 9), times, rounds), min_size=1),
    st.builds(Computing, times, times, times),
)
def test_a_step_is_what_the_thread_does_and_what_it_waits_for(buckets, computing):
    step = predict(computing, buckets, At())
    parts = step.computing + step.encode + step.decode + step.waiting
    assert step.seconds == pytest.approx(parts)
    assert step.waiting <= step.wire + 1e-9
    busy = computing.seconds + sum(b.encode + sum(r.after for r in b.rounds) for b in buckets)
    assert max(busy, step.wire) - 1e-9 <= step.seconds <= busy + step.wire + 1e-9


def test_a_method_pays_below_the_bandwidth_where_both_steps_are_equal():
    """Plain sends 1000 bytes; the method 10, but encodes for a second. On two hosts an AllReduce sends n bytes."""
    nothing = Computing(0.0, 0.0, 0.0)
    plain = [BucketCosts(1, 0.0, (Round("allreduce", 10_000_000, 0.0),))]
    own = [BucketCosts(1, 1.0, (Round("allreduce", 100_000, 0.0),))]
    rate = pays_below(own, [plain], nothing, Ring(2, 1.0))
    assert rate == pytest.approx(9_900_000, rel=0.02)
    assert pays_below(plain, [own], nothing, Ring(2, 1.0)) == 0.0  # it pays above
    assert math.isinf(pays_below([BucketCosts(1, 0.0, ())], [plain], nothing, Ring(2, 1.0)))


def test_measured_points_are_joined_by_lines():
    measured = Measured(4, {"allreduce": [(100, 1.0), (200, 2.0), (400, 3.0)], "allgather": [(100, 5.0), (200, 4.0)]})
    assert measured.seconds("allreduce", 50) == 1.0
    assert measured.seconds("allreduce", 300) == pytest.approx(2.5)
    assert measured.seconds("allreduce", 800) == pytest.approx(5.0)
    assert measured.seconds("allgather", 999) == 4.0  # noise makes no time shorter


def test_a_ring_is_found_again_from_what_it_takes():
    ring = Ring(4, rate=1e6, latency=1e-3)
    measured = Measured(4, {"allreduce": [(size, ring.seconds("allreduce", size)) for size in (1000, 10_000, 100_000)]})
    found = measured.ring(9)
    assert (found.hosts, found.rate, found.latency) == pytest.approx((9, 1e6, 1e-3))


@pytest.mark.parametrize("spec", ["none", "qsgd", "topk(ratio=0.01)", "powersgd", "sketched_sgd", "dgc"])
def test_costs_are_the_rounds_and_bytes_of_a_step(spec):
    compressor = parse(spec)
    layout = Layout.of([("m", (200, 100))])
    (costs,) = bucket_costs([Bucket("0", compressor, layout, "float32", "cpu")], NumpyOps(), workers=3)
    assert [each.kind for each in costs.rounds] == list(compressor.collectives)
    sent = sum(each.bytes for each in costs.rounds)
    if not compressor.varying:
        assert sent == compressor.payload_bits(layout) // 8
    assert costs.encode > 0
    assert all(each.after > 0 for each in costs.rounds)


def advised(rate, **more):
    gradients = [Gradient(f"m{number}", (400, 500), "float32") for number in range(3)]
    ring = Ring(4, rate)
    specs = ["topk(ratio=0.01)", "qsgd(bits=4)"]
    return advise(gradients, COMPUTING, ring, ring, NumpyOps(), workers=4, specs=specs, **more)


def test_the_slower_the_link_the_fewer_bytes_are_advised():
    slow, fast = advised(1e5), advised(1e12)
    assert slow[0].spec == "topk(ratio=0.01)"
    assert fast[0].spec in ("none", "fp16")
    assert {advice.spec for advice in slow} == {"none", "fp16", "topk(ratio=0.01)", "qsgd(bits=4)"}
    by_spec: dict[str, Advice] = {advice.spec: advice for advice in slow}
    assert by_spec["none"].bytes == 3 * 4 * 200_000
    assert 1e5 < by_spec["topk(ratio=0.01)"].pays_below < 1e12
    assert [a.predicted.seconds for a in slow] == sorted(a.predicted.seconds for a in slow)


def test_workers_that_share_a_core_encode_so_much_longer():
    def busy(found):
        return sum(a.predicted.encode + a.predicted.decode for a in found)

    assert busy(advised(1e6, sharing=1000.0)) > 100 * busy(advised(1e6))


def test_nothing_to_advise_on_is_an_error():
    with pytest.raises(ValueError, match="no parameters"):
        advise([], COMPUTING, Ring(2, 1.0), Ring(2, 1.0), NumpyOps(), workers=2)


MODEL = """
import torch
def small():
    model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10))
    return model, lambda: model(torch.ones(4, 256)).square().mean()
def wrong():
    return 3
"""


def command(folder, *args):
    return subprocess.run(["hvd-compress", "advise", *args], capture_output=True, text=True, check=False, cwd=folder)


def test_the_command_times_a_model_and_names_the_shortest_step(tmp_path):
    (tmp_path / "mine.py").write_text(MODEL)
    file = tmp_path / "out.json"
    given = ("--hosts", "8", "--only", "topk(ratio=0.01)", "--only", "qsgd", "--json", str(file))
    slow = command(tmp_path, "--model", "mine:small", "--mbits", "1", *given)
    assert slow.returncode == 0, slow.stderr
    assert "topk(ratio=0.01) has the shortest step" in slow.stdout
    report = json.loads(file.read_text())
    assert {row["spec"] for row in report["methods"]} == {"none", "fp16", "topk(ratio=0.01)", "qsgd"}
    none = next(row for row in report["methods"] if row["spec"] == "none")
    assert none["bytes"] == 4 * (256 * 512 + 512 + 512 * 10 + 10)
    assert none["seconds"] > 2 * 7 / 8 * none["bytes"] / (1e6 / 8)  # what the ring AllReduce takes
    fast = command(tmp_path, "--parameters", "1000", "--compute", "500", "--hosts", "8")
    assert "Compression does not pay here" in fast.stdout


def written_trace(path, steps, closing=""):
    """A trace of steps that compute for 6 ms, with 1 ms of the optimizer, beside those of another reducer."""
    events = [
        {"name": "process_name", "ph": "M", "pid": 0, "tid": 0, "args": {"name": "rank 0"}},
        {"name": SHAPES, "ph": "M", "pid": 0, "tid": 0, "args": {"line": "a: step", "shapes": {"w": [300, 200]}}},
        {"name": "thread_name", "ph": "M", "pid": 0, "tid": 1, "args": {"name": "a: step"}},
        {"name": "thread_name", "ph": "M", "pid": 0, "tid": 2, "args": {"name": "a.0: none of w"}},
    ]
    for step in range(1, steps + 1):
        slow = 100 if step <= 2 else 1
        parts = [("computing", 1, 2000), ("wire", 1, 500), ("computing", 1, 4000), ("optimizer", 1, 1000)]
        for name, line, microseconds in [*parts, ("wire", 2, 9000)]:
            args = {"pid": 0, "tid": line, "ts": 0.0, "dur": slow * microseconds, "args": {"step": step}}
            events.append({"name": name, "ph": "X", **args})
    path.write_text("[\n" + ",\n".join(map(json.dumps, events)) + closing)


@pytest.mark.parametrize("closing", ["", "\n]\n", ",\n"])
def test_a_trace_tells_shapes_and_computing(tmp_path, closing):
    written_trace(tmp_path / "trace.json", 5, closing)
    gradients, computing = traced(tmp_path / "trace.json")
    assert gradients == [Gradient("w", (300, 200), "float32")]
    assert (computing.forward, computing.backward, computing.optimizer) == pytest.approx((0.002, 0.004, 0.001))
    done = command(tmp_path, "--trace", "trace.json", "--hosts", "2", "--only", "topk")
    assert "a step computes for 7.0 ms" in done.stdout


def test_what_is_no_trace_is_refused(tmp_path):
    written_trace(tmp_path / "short.json", 2)
    (tmp_path / "other.json").write_text("[{}]")
    (tmp_path / "text.json").write_text("Hello")
    for name, message in (
        ("short", "has 2 steps; more than 2 are needed"),
        ("other", "is no trace of this package"),
        ("text", "is no trace"),
        ("absent", "No such file"),
    ):
        done = command(tmp_path, "--trace", f"{name}.json", "--hosts", "2")
        assert done.returncode == 2
        assert message in done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model", "nowhere:f"], "--model nowhere:f: No module named 'nowhere'"),
        (["--model", "mine:absent"], "--model mine:absent"),
        (["--model", "mine:wrong"], "must return a model and a function that computes its loss; got 3"),
        (["--model", "mine"], "--model must be MODULE:FUNCTION; got 'mine'"),
        (["--parameters", "10"], "--parameters and --compute go together"),
        (["--parameters", "10", "--compute", "-1"], "--compute must be at least 0 and finite; got -1.0"),
        (
            ["--parameters", "10", "--compute", "1", "--mbits", "0"],
            "--mbits must be at least 0.001 and finite; got 0.0",
        ),
        (["--parameters", "10", "--compute", "1", "--only", "best"], "best"),
        ([], "one of the arguments --model --parameters --trace is required"),
    ],
)
def test_bad_arguments_are_named(tmp_path, args, message):
    (tmp_path / "mine.py").write_text(MODEL)
    done = command(tmp_path, "--hosts", "2", *args)
    assert done.returncode == 2
    assert message in done.stderr
