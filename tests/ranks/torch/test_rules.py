"""Rules: other compressors for some parameters."""

import horovod.torch as hvd
import pytest
import torch
from torch import nn
from torch_ranks import repeats, same_on_all_ranks, sgd, small_cnn, train

import hvd_compress.torch as hvdc
from hvd_compress import spec

RULES = [("0.*", "none"), ("*.weight", "qsgd(bits=8)"), hvdc.Rule(compression=hvdc.Compression.fp16, max_size=10)]


def wrap(model, **settings):
    return hvdc.DistributedOptimizer(sgd(model), model.named_parameters(), **settings)


def used(optimizer):
    return {
        place.name: spec(exchange.compressor)
        for exchange in optimizer._reducer.exchanges
        for place in exchange.layout.parameters
    }


def test_each_parameter_has_the_compressor_of_its_rule():
    model = small_cnn()
    optimizer = wrap(model, compression="topk(ratio=0.1)", rules=RULES)
    assert same_on_all_ranks(train(model, optimizer, 3))
    assert used(optimizer) == {
        "0.weight": "none",
        "0.bias": "none",
        "3.weight": "qsgd(bits=8)",
        "3.bias": "none",
        "5.weight": "qsgd(bits=8)",
        "5.bias": "fp16",
    }


@pytest.mark.parametrize("rules", [[("*", "qsgd")], [("0.weight", "none"), ("*", "qsgd")]])
def test_a_rule_for_all_is_the_compressor_for_all(rules):
    ours, theirs = small_cnn(), small_cnn()
    got = train(ours, wrap(ours, compression="powersgd", rules=rules, dense_below=0), 4)
    biases = [("*.bias", "qsgd"), ("0.weight", "none" if len(rules) > 1 else "qsgd")]
    expected = train(theirs, wrap(theirs, compression="qsgd", rules=biases, dense_below=0), 4)
    assert repeats(got, expected)


def test_a_whole_gradient_method_for_some():
    model = nn.Sequential(*[nn.Linear(40, 40) for _ in range(4)])
    optimizer = wrap(model, rules=[("[01].*", "topk(ratio=0.05, scope=model)")], bucket_bytes=1)
    optimizer.zero_grad()
    model(torch.ones(1, 40)).sum().backward()
    optimizer.step()
    together = [e for e in optimizer._reducer.exchanges if spec(e.compressor).startswith("topk")]
    assert [[p.name for p in e.layout.parameters] for e in together] == [["1.bias", "1.weight", "0.bias", "0.weight"]]


def test_under_horovods_own_optimizer():
    model = small_cnn()
    bound = hvdc.Compression.topk(ratio=0.1).bind(model.named_parameters(), rules=RULES)
    optimizer = hvd.DistributedOptimizer(sgd(model), model.named_parameters(), compression=bound)
    assert same_on_all_ranks(train(model, optimizer, 3))
    assert spec(bound._exchanges["5.weight"].compressor) == "qsgd(bits=8)"
    assert spec(bound._exchanges["5.bias"].compressor) == "fp16"
    saved = bound.state_dict()
    bound.load_state_dict(saved)
    with pytest.raises(ValueError, match=r"saved with topk\(ratio=0.1\) and rules \['0.\*=none', .*; here it is"):
        hvdc.Compression.topk(ratio=0.1).bind(model.named_parameters()).load_state_dict(saved)
    with pytest.raises(ValueError, match=r"topk\(scope=model\) needs the gradient of the whole model"):
        hvdc.Compression.none.bind(model.named_parameters(), rules=[("*", "topk(scope=model)")])


@pytest.mark.parametrize("bound", [False, True])
def test_ranks_that_disagree_on_a_rule(bound):
    model = small_cnn()
    rules = [("0.*", "none"), *([("*.weight", "qsgd")] if hvd.rank() == 0 else [])]
    if bound:
        compression = hvdc.Compression.none.bind(model.named_parameters(), rules=rules)
        optimizer = hvd.DistributedOptimizer(sgd(model), model.named_parameters(), compression=compression)
    else:
        optimizer = wrap(model, rules=rules)
    with pytest.raises(hvdc.WorkersDisagree, match=r"rules, number 2: rank 0: \*.weight=qsgd; ranks? 1.*: nothing"):
        train(model, optimizer, 1)


def test_rules_are_part_of_what_a_state_belongs_to():
    model = small_cnn()
    optimizer = wrap(model, compression="topk", rules=[("0.*", "none")])
    train(model, optimizer, 1)
    with pytest.raises(ValueError, match=r"saved with rules \['0.\*=none'\], and this optimizer has \[\]"):
        wrap(model, compression="topk").load_state_dict(optimizer.state_dict())


BAD = [
    (
        [("embed.*", "topk")],
        ValueError,
        r"rule 'embed.\*' matches none of the 6 parameters: 0.weight, 0.bias",
    ),
    ([("0.Weight", "topk")], ValueError, "matches none"),
    ([("0.*", "topq")], ValueError, r"rule '0.\*': unknown compressor 'topq'; known are"),
    ([("0.*", 3)], TypeError, r"rule '0.\*': compression must be one of"),
    (
        [("0.*", "topk", 3)],
        TypeError,
        r"a list of tuples \(pattern, compression\).*got \('0.\*', 'topk', 3",
    ),
    (("0.*", "topk"), TypeError, r"rules must be a list of tuples \(pattern, compression\).*got '0.\*' in it"),
    ([(0, "topk")], TypeError, "a rule's pattern must be a string; got 0"),
]


@pytest.mark.parametrize(("rules", "error", "message"), BAD, ids=[str(rules) for rules, _, _ in BAD])
def test_bad_rules(rules, error, message):
    model = small_cnn()
    with pytest.raises(error, match=message):
        wrap(model, rules=rules)
    with pytest.raises(error, match=message):
        hvdc.Compression.none.bind(model.named_parameters(), rules=rules)


def test_groups_and_a_rule_for_the_whole_gradient():
    with pytest.raises(ValueError, match="groups cannot be used"):
        wrap(small_cnn(), groups=2, rules=[("*", "topk(scope=model)")])
