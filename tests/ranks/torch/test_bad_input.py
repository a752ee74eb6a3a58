"""What is wrong raises on every rank, with a message that tells what, and hangs none."""

import copy
from dataclasses import dataclass
from typing import ClassVar

import horovod.torch as hvd
import pytest
import torch
from torch import nn
from torch_ranks import batch, flat, repeats, same_on_all_ranks, sgd, small_cnn, train

import hvd_compress.torch as hvdc
from hvd_compress import AllReduce, Compressor, Reduced


def first_rank():
    return hvd.rank() == 0


def test_ranks_that_disagree_on_the_spec():
    model = small_cnn()
    spec = "topk(ratio=0.02)" if first_rank() else "topk(ratio=0.1)"
    optimizer = hvdc.DistributedOptimizer(sgd(model), model.named_parameters(), compression=spec)
    with pytest.raises(hvdc.WorkersDisagree, match=r"compression: rank 0: topk\(ratio=0.02\); ranks? 1.*ratio=0.1"):
        train(model, optimizer, 1)


def test_ranks_that_disagree_on_the_seed():
    model = small_cnn()
    optimizer = hvdc.DistributedOptimizer(
        sgd(model), model.named_parameters(), compression="randomk", seed=int(first_rank())
    )
    with pytest.raises(hvdc.WorkersDisagree, match=r"seed: rank 0: 1; ranks? 1.*: 0"):
        train(model, optimizer, 1)


def test_ranks_that_disagree_on_the_model():
    model = nn.Linear(8 if first_rank() else 9, 50)
    optimizer = hvdc.DistributedOptimizer(sgd(model), model.named_parameters())
    model(torch.ones(1, model.in_features)).sum().backward()
    with pytest.raises(hvdc.WorkersDisagree, match=r"parameters, number 1: rank 0: weight \(50, 8\).*\(50, 9\)"):
        optimizer.step()


def test_ranks_of_which_one_has_more_parameters():
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(2 if first_rank() else 1)])
    optimizer = hvdc.DistributedOptimizer(sgd(model), model.named_parameters())
    model(torch.ones(1, 4)).sum().backward()
    with pytest.raises(hvdc.WorkersDisagree, match=r"parameters, number 3: rank 0: 1.weight .*; ranks? 1.*: nothing"):
        optimizer.step()


def test_ranks_that_disagree_on_the_order_of_parameters():
    model = small_cnn()
    named = list(model.named_parameters())
    optimizer = hvdc.DistributedOptimizer(sgd(model), named if first_rank() else named[::-1])
    with pytest.raises(hvdc.WorkersDisagree, match=r"parameters, number 1: rank 0: 0.weight .*: 5.bias"):
        train(model, optimizer, 1)


def test_ranks_that_disagree_on_the_dtype():
    model = nn.Linear(8, 50).to(torch.float64 if first_rank() else torch.float32)
    optimizer = hvdc.DistributedOptimizer(sgd(model), model.named_parameters())
    model(torch.ones(1, 8, dtype=model.weight.dtype)).sum().backward()
    with pytest.raises(hvdc.WorkersDisagree, match=r"dtypes, number 1: rank 0: weight torch.float64; .*float32"):
        optimizer.step()


def test_ranks_that_disagree_under_horovods_own_optimizer():
    model = small_cnn()
    bound = hvdc.Compression.topk(ratio=0.02 if first_rank() else 0.1).bind(model.named_parameters())
    optimizer = hvd.DistributedOptimizer(sgd(model), model.named_parameters(), compression=bound)
    with pytest.raises(hvdc.WorkersDisagree, match=r"compression: rank 0: topk\(ratio=0.02\); ranks? 1.*ratio=0.1"):
        train(model, optimizer, 1)


def test_ranks_that_disagree_on_the_version(monkeypatch):
    if first_rank():
        monkeypatch.setattr("hvd_compress.reduction.agreement.__version__", "0.0.0")
    model = small_cnn()
    optimizer = hvdc.DistributedOptimizer(sgd(model), model.named_parameters())
    with pytest.raises(hvdc.WorkersDisagree, match=r"version: rank 0: 0\.0\.0; ranks? 1"):
        train(model, optimizer, 1)


@dataclass(frozen=True)
class Failing(Compressor):
    """Averages in two rounds, and fails on rank 1 in the given step and round."""

    name: ClassVar[str] = "failing"
    collectives: ClassVar[tuple[str, ...]] = ("allreduce", "allreduce")
    unbiased: ClassVar[bool] = True

    at_step: int = 0
    at_round: int = 0

    def reduce(self, ops, vector, state):
        for number in range(2):
            if state.rank == 1 and (state.step, number) == (self.at_step, self.at_round):
                raise ZeroDivisionError("a bug in a compressor")
            mean = yield AllReduce(vector)
        return Reduced(mean, lambda total, factor: total + factor * vector)

    def payload_bits(self, layout, kept=None):
        return 0


@pytest.mark.parametrize("at", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("bucket_bytes", [1, 1 << 30])
def test_an_exception_in_a_compressor_surfaces_on_every_rank(at, bucket_bytes):
    model = small_cnn()
    optimizer = hvdc.DistributedOptimizer(
        sgd(model), model.named_parameters(), compression=Failing(*at), bucket_bytes=bucket_bytes
    )
    train(model, optimizer, at[0])
    if hvd.rank() == 1:
        with pytest.raises(ZeroDivisionError, match="a bug in a compressor"):
            train(model, optimizer, 1)
    else:
        with pytest.raises(hvdc.WorkerFailed, match=r"rank 1 failed (in step \d+ )?with ZeroDivisionError: a bug"):
            train(model, optimizer, 1)


def test_an_exception_in_a_bound_compressor_surfaces_on_every_rank():
    from hvd_compress.torch.compression import TorchCompression

    model = nn.Sequential(small_cnn())  # names of its own: Horovod keeps what waits in vain
    bound = TorchCompression(Failing()).bind(model.named_parameters())
    optimizer = hvd.DistributedOptimizer(sgd(model), model.named_parameters(), compression=bound)
    expected = ZeroDivisionError if hvd.rank() == 1 else Exception
    with pytest.raises(expected):
        train(model, optimizer, 1)


@pytest.mark.parametrize("spec", ["none", "fp16", "topk(ratio=0.1)", "qsgd", "powersgd", "randomk(ratio=0.1)"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("bound", [False, True])
def test_non_finite_gradients_reach_every_rank_and_leave_the_state(spec, bad, bound):
    model = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40))
    nn.init.constant_(model[0].weight, 0.01)
    if bound:
        from hvd_compress.compressors.named import as_compressor
        from hvd_compress.torch.compression import TorchCompression

        keeper = TorchCompression(as_compressor(spec)).bind(model.named_parameters())
        optimizer = hvd.DistributedOptimizer(sgd(model), model.named_parameters(), compression=keeper)
    else:
        keeper = optimizer = hvdc.DistributedOptimizer(
            sgd(model), model.named_parameters(), compression=spec, bucket_bytes=1
        )

    poisoned = False
    model[1].weight.register_hook(lambda g: g.index_fill(0, torch.tensor([3]), bad) if poisoned else g)

    def states():
        saved = keeper.state_dict()
        if bound:
            return list(saved["parameters"].values())
        return [bucket["state"] for bucket in saved["compression"]["buckets"]]

    def backward():
        optimizer.zero_grad()
        torch.manual_seed(hvd.rank())
        (model(torch.randn(4, 40)).square().sum() * 1e-3).backward()
        optimizer.synchronize()

    for _ in range(2):
        backward()
    before = states()
    poisoned = hvd.rank() == 1
    backward()
    assert not model[1].weight.grad.isfinite().all()
    after = states()
    if bound and spec in ("none", "fp16"):
        return  # there is no state
    assert before[0]["step"] == 2
    for one, other in zip(before, after, strict=True):
        assert one["step"] == other["step"]
        assert all(torch.equal(one["local"][name], other["local"][name]) for name in one["local"])
        assert all(torch.equal(one["shared"][name], other["shared"][name]) for name in one["shared"])


def test_half_and_double_and_bfloat_gradients():
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        for spec in ("none", "fp16", "topk(ratio=0.1)", "qsgd"):
            torch.manual_seed(0)
            model = nn.Linear(50, 40).to(dtype)
            optimizer = hvdc.DistributedOptimizer(
                torch.optim.SGD(model.parameters(), lr=0.01), model.named_parameters(), compression=spec
            )
            for _ in range(2):
                optimizer.zero_grad()
                torch.manual_seed(hvd.rank())
                model(torch.randn(3, 50).to(dtype)).sum().backward()
                optimizer.step()
            assert model.weight.grad.dtype == dtype
            assert same_on_all_ranks(flat(model).double())


def test_models_of_mixed_dtypes():
    model = nn.ModuleList([nn.Linear(50, 40), nn.Linear(50, 40).double()])
    optimizer = hvdc.DistributedOptimizer(sgd(model), model.named_parameters())
    x = torch.full((1, 50), 1.0 + hvd.rank())
    (model[0](x).sum() + model[1](x.double()).sum()).backward()
    optimizer.step()
    mean = sum(range(1, hvd.size() + 1)) / hvd.size()
    for layer in model:
        assert torch.allclose(layer.weight.grad, torch.full_like(layer.weight, mean))


@pytest.mark.parametrize("spec", ["none", "topk(ratio=0.1)"])
def test_non_contiguous_gradients(spec):
    def gradient(memory_format):
        torch.manual_seed(0)
        model = nn.Conv2d(16, 12, 3).to(memory_format=memory_format)
        optimizer = hvdc.DistributedOptimizer(sgd(model), model.named_parameters(), compression=spec)
        for step in range(3):
            optimizer.zero_grad()
            torch.manual_seed(10 * step + hvd.rank())
            model(torch.randn(2, 16, 8, 8).to(memory_format=memory_format)).square().sum().backward()
            assert model.weight.grad.is_contiguous() == (memory_format == torch.contiguous_format)
            optimizer.step()
        return model.weight.grad

    got, expected = gradient(torch.channels_last), gradient(torch.contiguous_format)
    assert torch.allclose(got, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("spec", ["none", "topk(ratio=0.1)", "qsgd", "powersgd"])
def test_zero_sized_parameters(spec):
    model = nn.ParameterDict({"empty": nn.Parameter(torch.zeros(0, 5)), "full": nn.Parameter(torch.zeros(40, 40))})
    optimizer = hvdc.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=1.0), model.named_parameters(), compression=spec, dense_below=0
    )
    for _ in range(2):
        optimizer.zero_grad()
        (model["full"].sum() + model["empty"].sum()).backward()
        optimizer.step()
    assert model["empty"].grad.shape == (0, 5)
    assert (model["full"].grad != 0).any()


def test_a_model_of_zero_sized_parameters_alone():
    weight = nn.Parameter(torch.zeros(0, 5))
    optimizer = hvdc.DistributedOptimizer(torch.optim.SGD([weight], lr=1.0), [("weight", weight)])
    weight.sum().backward()
    optimizer.step()
    assert weight.grad.shape == (0, 5)


def test_integer_gradients_under_horovods_own_optimizer():
    weight = nn.Parameter(torch.zeros(40, 40))
    bound = hvdc.Compression.topk(ratio=0.1).bind([("weight", weight)])
    with pytest.raises(TypeError, match=r"real floating dtype; .* torch.int32"):
        bound.compress(torch.zeros(40, 40, dtype=torch.int32))
    with pytest.raises(LookupError, match="no bound parameter"):
        bound.compress(torch.zeros(40, 40))


def test_complex_parameters_are_refused():
    weight = nn.Parameter(torch.zeros(4, dtype=torch.complex64))
    with pytest.raises(TypeError, match=r"real floating dtype; weight is of torch.complex64"):
        hvdc.DistributedOptimizer(torch.optim.SGD([weight], lr=1.0), [("weight", weight)])


def test_a_gradient_that_becomes_sparse_later():
    model = nn.Embedding(60, 30)
    optimizer = hvdc.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=1.0), model.named_parameters())
    model(torch.tensor([1])).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    model.sparse = True
    with pytest.raises(ValueError, match=r"the gradient of weight is sparse.*sparse_as_dense=True"):
        model(torch.tensor([1])).sum().backward()


BAD_ARGUMENTS = [
    ({"compression": "topk(ratio=0)"}, ValueError, r"topk: ratio must be in \(0, 1\]; got 0"),
    ({"compression": "topk(ratio=1.5)"}, ValueError, r"topk: ratio must be in \(0, 1\]; got 1.5"),
    ({"compression": "topq"}, ValueError, "unknown compressor 'topq'; known are: .*topk"),
    ({"compression": 3}, TypeError, "compression must be one of"),
    ({"compression": hvd.Compression.fp16}, TypeError, "compression must be one of"),
    ({"op": hvd.Adasum}, ValueError, "op must be hvd.Average"),
    ({"op": hvd.Sum, "gradient_predivide_factor": 2.0}, ValueError, "gradient_predivide_factor not supported"),
    ({"gradient_predivide_factor": 0.0}, ValueError, "must be above 0; got 0"),
    ({"backward_passes_per_step": 0}, ValueError, "backward_passes_per_step must be > 0; got 0"),
    ({"bucket_bytes": 0}, ValueError, "bucket_bytes must be at least 1; got 0"),
    ({"dense_below": -1}, ValueError, "dense_below must be at least 0; got -1"),
    ({"groups": -1}, ValueError, "groups must be a number of at least 0"),
    ({"groups": [["x"]]}, ValueError, "groups must be a number or a list of lists of parameters"),
    ({"groups": 2, "compression": "topk(scope=model)"}, ValueError, "needs the whole gradient"),
]


@pytest.mark.parametrize(("settings", "error", "message"), BAD_ARGUMENTS, ids=[str(b[0]) for b in BAD_ARGUMENTS])
def test_bad_arguments(settings, error, message):
    model = small_cnn()
    with pytest.raises(error, match=message):
        hvdc.DistributedOptimizer(sgd(model), model.named_parameters(), **settings)


def test_bad_names():
    model = small_cnn()
    named = list(model.named_parameters())
    with pytest.raises(ValueError, match="sequence of tuples"):
        hvdc.DistributedOptimizer(sgd(model), model.parameters())
    with pytest.raises(ValueError, match=r"unique. Found duplicates: 0.weight"):
        hvdc.DistributedOptimizer(sgd(model), [*named, named[0]])
    with pytest.raises(ValueError, match=r"were not named. Their shapes: \(8, 1, 3, 3\)"):
        hvdc.DistributedOptimizer(sgd(model), named[1:])
    with pytest.raises(ValueError, match="were not named"):
        hvdc.DistributedOptimizer(sgd(model), [])


def test_whole_gradient_methods_cannot_be_bound():
    with pytest.raises(ValueError, match=r"use hvd_compress\.torch\.DistributedOptimizer"):
        hvdc.Compression.topk(scope="model").bind(small_cnn().named_parameters())


def test_ratio_one_is_sent_plain():
    theirs, ours = small_cnn(), small_cnn()
    expected = train(theirs, hvdc.DistributedOptimizer(sgd(theirs), theirs.named_parameters()), 3)
    optimizer = hvdc.DistributedOptimizer(sgd(ours), ours.named_parameters(), compression="topk(ratio=1)")
    assert repeats(train(ours, optimizer, 3), expected)
    assert "allgather" not in optimizer.compression_stats()["collectives"]


def test_a_later_batch_still_works_after_other_tests_failed():
    model = small_cnn()
    optimizer = hvdc.DistributedOptimizer(sgd(model), model.named_parameters(), compression="powersgd")
    assert same_on_all_ranks(train(model, optimizer, 2))
    images, _ = batch(0)
    assert model(images).isfinite().all()


def broken(change):
    """Return a damaged state of a top-k run, what it is for, and its optimizer."""
    model = small_cnn()
    optimizer = hvdc.DistributedOptimizer(sgd(model), model.named_parameters(), compression="topk", dense_below=0)
    train(model, optimizer, 2)
    state = copy.deepcopy(optimizer.state_dict())
    change(state["compression"])
    return optimizer, state


def first_local(state):
    return next(bucket["state"]["local"] for bucket in state["buckets"] if bucket["state"]["local"])


DAMAGE = {
    "residual of bucket 1 .* must be of shape": lambda s: first_local(s).update(residual=torch.zeros(3)),
    "residual of bucket 1 .* is not finite": lambda s: first_local(s)["residual"].fill_(float("nan")),
    "the state of bucket 0 .* has no entry 'local'": lambda s: s["buckets"][0]["state"].pop("local"),
    "the step of bucket 0 .* at least 0; got -5": lambda s: s["buckets"][0]["state"].update(step=-5),
    "steps must be a number of steps, at least 0; got -1": lambda s: s.update(steps=-1),
    "what is carried for 0.weight is not finite": lambda s: s["carried"].update(
        {"0.weight": torch.full((8, 1, 3, 3), float("inf"))}
    ),
    "has no entry 'buckets'": lambda s: s.pop("buckets"),
    r"residual of bucket 1 \(3.weight, 0.weight\) must be": lambda s: s["buckets"][1]["parameters"].pop(0),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_a_damaged_state_is_refused_when_it_is_loaded(message):
    optimizer, state = broken(DAMAGE[message])
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
