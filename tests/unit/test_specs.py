"""Specs: what is wrong is named, and what is allowed is listed."""

import pytest

from hvd_compress import EF21, ErrorFeedback, Linear, MomentumCorrection, make, methods, parse, spec
from hvd_compress.compressors.lowrank import PowerSGD
from hvd_compress.compressors.quantize import QSGD
from hvd_compress.compressors.sign import EFSignSGD
from hvd_compress.compressors.sparsify import DGC, RandomK, TopK

GOOD = [
    ("topk", ErrorFeedback(TopK())),
    ("topk()", ErrorFeedback(TopK())),
    (" topk( 0.5 ) ", ErrorFeedback(TopK(0.5))),
    ("topk(ratio=0.5, values=fp16)", ErrorFeedback(TopK(0.5, "fp16"))),
    ("topk(ratio=0.5, values='fp16')", ErrorFeedback(TopK(0.5, "fp16"))),
    ("topk(0.5, feedback=none)", TopK(0.5)),
    ("topk(ratio=1)", ErrorFeedback(TopK(1))),
    ("qsgd(2)", QSGD(2)),
    ("qsgd(feedback=ef)", ErrorFeedback(QSGD())),
    ("powersgd(rank=4, warm_start=False)", ErrorFeedback(PowerSGD(4, False))),
    ("randomk", ErrorFeedback(RandomK())),
    ("topk(values=qsgd)", ErrorFeedback(TopK(values=QSGD()))),
    ("topk(0.001, qsgd(bits=2))", ErrorFeedback(TopK(0.001, QSGD(2)))),
    ("topk(values=ef_signsgd)", ErrorFeedback(TopK(values=EFSignSGD()))),
    ("topk(linear(0.1, 0.01, steps=9, every=3))", ErrorFeedback(TopK(Linear(0.1, 0.01, 9, 3)))),
    ("powersgd(feedback=ef21)", EF21(PowerSGD())),
    ("dgc", MomentumCorrection(DGC())),
    ("qsgd(feedback='momentum(0.5, masking=False)')", MomentumCorrection(QSGD(), 0.5, masking=False)),
    ("randomk(scaled=True)", RandomK(scaled=True)),
]


@pytest.mark.parametrize(("text", "compressor"), GOOD)
def test_good_specs(text, compressor):
    assert parse(text) == compressor
    assert parse(spec(compressor)) == compressor


def test_shortest_spec():
    assert spec(parse("topk(ratio=0.01, values=fp32)")) == "topk"
    assert spec(parse("qsgd(bits=3, feedback=ef)")) == "qsgd(bits=3, feedback=ef)"
    assert spec(parse("dgc(feedback=momentum(0.9))")) == "dgc"
    assert spec(parse("dgc(feedback=momentum(0.5))")) == "dgc(feedback=momentum(momentum=0.5))"


BAD = [
    (
        "topq",
        ValueError,
        "unknown compressor 'topq'; known are: bf16, dgc, ef_signsgd, fetchsgd, fp16, int8, .*, wangni",
    ),
    ("topk(ration=0.1)", ValueError, "topk: unknown setting 'ration'; known are: ratio, values, scope, feedback"),
    ("topk(ratio=0)", ValueError, r"topk: ratio must be in \(0, 1\]; got 0"),
    ("topk(ratio=1.0001)", ValueError, r"topk: ratio must be in \(0, 1\]; got 1.0001"),
    ("topk(ratio=-0.1)", ValueError, r"topk: ratio must be in \(0, 1\]; got -0.1"),
    ("topk(ratio=much)", TypeError, "topk: ratio must be of type float; got 'much'"),
    ("topk(ratio=True)", TypeError, "topk: ratio must be of type float; got True"),
    ("topk(values=fp8)", ValueError, "topk: values must be one of fp32, fp16 or a compressor; got 'fp8'"),
    ("topk(0.1, ratio=0.1)", ValueError, "topk: ratio is given twice"),
    ("topk(1, 2, 3, 4)", ValueError, r"topk: takes 3 settings \(ratio, values, scope\); got 4"),
    ("none(1)", ValueError, r"none: takes 0 settings \(none\); got 1"),
    ("topk(feedback=ef22)", ValueError, "topk: feedback must be one of none, ef, ef21, momentum, adam; got 'ef22'"),
    ("qsgd(bits=1)", ValueError, r"qsgd: bits must be in \[2, 8\]; got 1"),
    ("qsgd(bits=4.0)", TypeError, "qsgd: bits must be of type int; got 4.0"),
    ("powersgd(rank=0)", ValueError, r"powersgd: rank must be in \[1, inf\); got 0"),
    ("powersgd(warm_start=1)", TypeError, "powersgd: warm_start must be of type bool; got 1"),
    ("randomk(scaled=True, feedback=ef)", ValueError, "randomk allows no feedback with these settings: its error"),
    ("", ValueError, "is no compression spec"),
    ("topk(", ValueError, "is no compression spec"),
    ("-" * 5000 + "1", ValueError, "'-.* ...' is no compression spec: it is nested too deep"),
    ("topk(ratio=" + "-" * 5000 + "1)", ValueError, "is nested too deep"),
    ("topk(" + "(" * 3000 + ")" * 3001, ValueError, "is no compression spec"),
    ("topk(0.1", ValueError, "is no compression spec"),
    ("topk.x(1)", ValueError, "is no compression spec"),
    ("__import__('os')", ValueError, "unknown compressor '__import__'"),
    ("topk(ratio=open('x'))", TypeError, "topk: ratio must be of type float; got"),
    ("topk(ratio=1+1)", ValueError, "is neither a number nor a word"),
    ("topk(values=topk)", ValueError, "topk: values must be fp32, fp16 or a quantizer; got TopK"),
    ("topk(values=signsgd)", ValueError, "topk: values must be fp32, fp16 or a quantizer; got SignSGD"),
    ("topk(values=qsgd(bits=9))", ValueError, r"qsgd: bits must be in \[2, 8\]; got 9"),
    ("topk(ratio=linear(0.1, 2, steps=5))", ValueError, r"topk: ratio must be in \(0, 1\]; got 2"),
    ("topk(ratio=linear(0.1, 0.2))", ValueError, "linear: steps is missing; it takes start, end, steps, every"),
    ("topk(ratio=linear(0.1, 0.2, steps=0))", ValueError, r"linear: steps must be in \[1, inf\); got 0"),
    ("topk(ratio=exponential(0, 0.2, steps=5))", ValueError, r"exponential: start must be in \(0, inf\); got 0"),
    ("topk(scope=linear(0.1, 0.2, steps=5))", ValueError, "topk: scope must be one of tensor, model; got Linear"),
    ("topk(feedback=momentum(masking=2))", TypeError, "momentum: masking must be of type bool; got 2"),
    (
        "topk(feedback=momentum(mask=True))",
        ValueError,
        "topk: feedback=momentum: unknown setting 'mask'; known are: mom",
    ),
    ("qsgd(feedback=momentum)", ValueError, "qsgd: feedback=momentum with masking=True makes no sense"),
    ("qsgd(bits=2, feedback=ef)", ValueError, "qsgd allows no feedback with these settings"),
    ("signsgd(feedback=ef)", ValueError, "signsgd allows no feedback: the majority"),
    ("none(feedback=ef)", ValueError, "none allows no feedback: everything is sent"),
    ("topk(**{})", ValueError, "settings are written name=value"),
]


@pytest.mark.parametrize(("text", "error", "message"), BAD, ids=[text[:60] for text, _, _ in BAD])
def test_bad_specs(text, error, message):
    with pytest.raises(error, match=message):
        parse(text)


def test_names_of_methods_are_those_of_their_classes():
    for name, cls in methods().items():
        assert cls.name == name
        assert make(name) is not None


@pytest.mark.parametrize(
    ("text", "keeps"),
    [
        ("fetchsgd", True),
        ("fetchsgd(momentum=0.0)", False),
        ("signum", True),
        ("topk(feedback=momentum)", True),
        ("topk(feedback=momentum(momentum=0.0))", False),
        ("topk(feedback=ef)", False),
        ("sketched_sgd(momentum=0.9)", True),
        ("onebit(feedback=adam(start=3))", True),
    ],
)
def test_a_method_keeps_the_momentum_unless_it_is_zero(text, keeps):
    """With a momentum of 0 the optimizer may have one, or be Adam."""
    assert parse(text).has_momentum == keeps
