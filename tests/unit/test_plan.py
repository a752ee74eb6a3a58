"""Buckets, state, and the comparison of workers."""

import logging

import numpy as np
import pytest

from hvd_compress import Layout, State, parse
from hvd_compress.compressors.feedback import MomentumOfMean
from hvd_compress.reduction.agreement import WorkersDisagree, check_agreement
from hvd_compress.reduction.buckets import PLAIN, Gradient, Rule, choose, divided_as, make_plan
from hvd_compress.transports import split_gathered, split_varying


def plan(gradients, spec="topk(ratio=0.01)", rules=(), bucket_bytes=1 << 30, dense_below=1024):
    return make_plan(gradients, parse(spec), rules, bucket_bytes=bucket_bytes, dense_below=dense_below)


def gradient(name, shape=(100, 100), dtype="float32", **more):
    return Gradient(name, shape, dtype, **more)


def names(buckets):
    return [[p.name for p in bucket.layout.parameters] for bucket in buckets]


def test_small_and_one_dimensional_parameters_go_plain_in_one_bucket():
    gradients = [gradient("w1"), gradient("b1", (10_000,)), gradient("w2"), gradient("small", (20, 20))]
    buckets = plan(gradients)
    assert names(buckets) == [["small", "b1"], ["w2", "w1"]]
    assert buckets[0].compressor == PLAIN
    assert names(plan(gradients, dense_below=400)) == [["small", "w2", "w1"], ["b1"]]
    assert names(plan(gradients, "fp16")) == [["small", "w2", "b1", "w1"]]


def test_what_would_not_get_smaller_goes_plain_with_one_log_line(caplog):
    with caplog.at_level(logging.INFO, "hvd_compress"):
        buckets = plan([gradient("w1"), gradient("w2", (50, 100))], "powersgd(rank=40)")
    assert [bucket.compressor == PLAIN for bucket in buckets] == [True, False]
    assert names(buckets) == [["w2"], ["w1"]]
    assert [r.message for r in caplog.records] == [
        "powersgd(rank=40) would send no fewer bytes than plain fp32 for w2: sent plain"
    ]


def test_the_first_rule_that_matches_decides():
    gradients = [gradient("embed.weight"), gradient("fc.weight"), gradient("fc.bias", (100,)), gradient("norm", (9,))]
    rules = [
        Rule("embed.*", parse("qsgd")),
        Rule("embed.weight", PLAIN),
        Rule("*.bias", parse("fp16"), min_size=100, max_size=100),
        Rule("n*", parse("fp16"), min_size=10),
        Rule("NORM", parse("qsgd")),
    ]
    chosen = {name: bucket.compressor for bucket in plan(gradients, rules=rules) for [name] in names([bucket])}
    assert chosen == {
        "embed.weight": parse("qsgd"),
        "fc.weight": parse("topk(ratio=0.01)"),
        "fc.bias": parse("fp16"),
        "norm": PLAIN,
    }


def test_rules_that_would_send_no_fewer_bytes(caplog):
    with caplog.at_level(logging.INFO, "hvd_compress"):
        buckets = plan([gradient("w1"), gradient("w2")], rules=[Rule("w1", parse("topk(ratio=1)"))])
    assert [bucket.compressor == PLAIN for bucket in buckets] == [False, True]
    assert [r.message for r in caplog.records] == [
        "topk(ratio=1) would send no fewer bytes than plain fp32 for w1: sent plain"
    ]


def test_rules_as_text_and_bad_ones():
    assert str(Rule("a*", parse("topk(ratio=0.1)"))) == "a*=topk(ratio=0.1)"
    assert str(Rule(compression="qsgd", min_size=5)) == "*=qsgd (sizes 5 to any)"
    assert str(Rule("a", "qsgd", max_size=0)) == "a=qsgd (sizes 0 to 0)"
    with pytest.raises(ValueError, match=r"rule 'a': min_size must be at most max_size; got 3 and 2"):
        Rule("a", "qsgd", min_size=3, max_size=2)
    with pytest.raises(TypeError, match="pattern must be a string; got None"):
        Rule(None)


def test_bucket_bytes():
    gradients = [gradient(str(i)) for i in range(5)]
    assert names(plan(gradients, bucket_bytes=80_000)) == [["4", "3"], ["2", "1"], ["0"]]
    assert names(plan(gradients, bucket_bytes=1)) == [["4"], ["3"], ["2"], ["1"], ["0"]]
    assert len(plan(gradients, "topk(scope=model)", bucket_bytes=1)) == 1


def test_groups_devices_and_dtypes():
    gradients = [gradient("a", group=0), gradient("b", group=1), gradient("c", group=0), gradient("d")]
    assert names(plan(gradients, bucket_bytes=1)) == [["d"], ["c", "a"], ["b"]]
    mixed = [gradient("a"), gradient("b", dtype="float16"), gradient("c", device="cuda:0")]
    assert names(plan(mixed)) == [["c"], ["b", "a"]]
    assert names(plan(mixed, "none")) == [["c"], ["b"], ["a"]]
    assert [bucket.dtype for bucket in plan(mixed, "none")] == ["float32", "float16", "float32"]


def test_workers_that_agree():
    check_agreement([{"version": "1", "parameters": ["a", "b"]}] * 3)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([{"v": 2}, {"v": 1}], "the workers disagree on v: ranks 0, 2: 1; rank 1: 2"),
        ([{"v": [1]}, {"v": 1}], r"the workers disagree on v: ranks 0, 2: 1; rank 1: \[1\]"),
    ],
)
def test_workers_that_disagree(others, message):
    with pytest.raises(WorkersDisagree, match=message):
        check_agreement([{"v": 1}, *others])


def test_workers_whose_lists_differ():
    with pytest.raises(WorkersDisagree, match="parameters, number 2: rank 0: b; rank 1: c; rank 2: nothing"):
        check_agreement([{"parameters": ["a", "b"]}, {"parameters": ["a", "c"]}, {"parameters": ["a"]}])


def test_state_is_a_transaction():
    state = State(Layout.flat(3), rank=1, workers=2)
    state.local["x"] = 1
    assert state.local["x"] == 1
    assert state.state_dict()["local"] == {}
    state.rollback()
    assert "x" not in state.local
    assert state.step == 0
    state.local["x"] = 2
    state.commit()
    state.local["x"] = 3
    assert list(state.local) == ["x"]
    assert len(state.local) == 1
    state.rollback()
    assert state.local["x"] == 2
    assert state.step == 1
    with pytest.raises(TypeError, match="never deleted"):
        del state.local["x"]


def test_state_of_another_rank_brings_no_local_arrays():
    state = State(Layout.flat(3), rank=1, workers=2)
    state.local["residual"], state.shared["q"] = 1, 2
    state.commit()
    other = State(Layout.flat(3), rank=0, workers=2)
    assert not other.load_state_dict(state.state_dict())
    assert dict(other.local) == {}
    assert dict(other.shared) == {"q": 2}
    assert other.step == 1


def test_gathered_bytes_are_checked():
    data = np.arange(6, dtype=np.uint8)
    assert [part.tolist() for part in split_gathered(data, 3)] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(ValueError, match="6 bytes came in from 4 workers"):
        split_gathered(data, 4)

    def framed(*lengths, body=2):
        parts = [np.frombuffer(length.to_bytes(8, "little") + bytes(body), np.uint8) for length in lengths]
        return np.concatenate(parts)

    assert [len(part) for part in split_varying(framed(2, 2), 2)] == [2, 2]
    for hostile in (framed(2, 3), framed(1, 2), framed(2**63, 2), framed(2), data[:0], data):
        with pytest.raises(ValueError, match="are not 2 payloads"):
            split_varying(hostile, 2)


def test_what_is_sent_plain_has_the_momentum_that_the_compressor_keeps():
    for text, momentum in (("dgc", 0.9), ("sketched_sgd(momentum=0.5)", 0.5), ("fetchsgd(momentum=0.7)", 0.7)):
        gradient = Gradient("bias", (50,), "float32")
        assert choose(gradient, parse(text), 1024) == MomentumOfMean(momentum)
    assert choose(gradient, parse("sketched_sgd(momentum=0)"), 1024) == parse("none")


def test_given_buckets_are_used_where_any_will_do():
    gradients = [gradient("w1"), gradient("b1", (100,)), gradient("w2"), gradient("b2", (100,)), gradient("b3", (100,))]
    shapes = {g.name: g.shape for g in gradients}
    layouts = [
        Layout.of((name, shapes.get(name, (1,))) for name in group.split()) for group in ("b2 w2", "b1 b3", "w1")
    ]

    def divided(spec, *given):
        return names(divided_as(given or layouts, plan(gradients, spec, bucket_bytes=40_400)))

    assert divided("none") == divided("fp16") == [["b2", "w2"], ["b1", "b3"], ["w1"]]
    assert divided("topk(ratio=0.01)") == [["b1", "b3"], ["w2"], ["b2"], ["w1"]]
    assert divided("none", layouts[2]) == [["w1"], ["b3", "b2"], ["w2", "b1"]]
    assert divided("none", Layout.of([("w1", shapes["w1"]), ("of another model", (3,))])) == divided("none", Layout(()))
