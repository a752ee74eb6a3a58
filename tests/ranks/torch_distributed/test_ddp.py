"""The communication hook of DistributedDataParallel: the optimizer's results, DDP's features, errors on all ranks."""

import contextlib
import copy
import io
import warnings
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch_training import RANK, RANKS, SPECS, batch, flat, sgd, small_cnn, train

import hvd_compress.torch as hvdc
from hvd_compress import AllReduce, Compressor, Reduced
from hvd_compress.torch import ddp

WAYS = {
    "": {},
    "views": {"gradient_as_bucket_view": True},
    "unused": {"find_unused_parameters": True},
    "static": {"static_graph": True},
    "small buckets": {"bucket_cap_mb": 0.001},
}


RESUMED = ["none", "topk(ratio=0.05)", "powersgd", "qsgd", "sketched_sgd", "topk(feedback=ef21)"]


def wrapped(spec, seed=0, way="", **settings):
    model = DistributedDataParallel(small_cnn(seed), **WAYS[way])
    return model, ddp.register(model, spec, bucket_bytes=20_000, **settings)


def equal_on_all_ranks(model):
    weights = [torch.empty_like(flat(model)) for _ in range(RANKS)]
    dist.all_gather(weights, flat(model))
    return all(torch.equal(weights[0], other) for other in weights)


def same_but_for_the_order_of_sums(weights, others):
    """More than two ranks may add a coordinate in another order where it lies in another bucket."""
    return torch.equal(weights, others) if RANKS == 2 else torch.allclose(weights, others, rtol=1e-4, atol=1e-5)


def by_optimizer(spec, steps=20, **settings):
    model = small_cnn()
    optimizer = hvdc.DistributedOptimizer(
        sgd(model, spec), model.named_parameters(), spec, transport="torch.distributed", bucket_bytes=20_000, **settings
    )
    return train(model, optimizer, steps)


@pytest.mark.parametrize("spec", SPECS)
def test_the_weights_are_the_optimizer_s_and_the_same_on_all_ranks(spec):
    model, _ = wrapped(spec)
    train(model, sgd(model, spec), 20)
    assert equal_on_all_ranks(model)
    assert same_but_for_the_order_of_sums(flat(model), by_optimizer(spec))


@pytest.mark.parametrize("way", list(WAYS)[1:])
@pytest.mark.parametrize("spec", ["none", "topk(ratio=0.05, scope=model)", "powersgd"])
def test_ddp_s_own_settings_change_nothing(spec, way):
    model, _ = wrapped(spec, way=way)
    assert same_but_for_the_order_of_sums(train(model, sgd(model), 10), by_optimizer(spec, 10))


@pytest.mark.parametrize("way", WAYS)
def test_none_is_plain_ddp(way):
    plain = DistributedDataParallel(small_cnn(), **WAYS[way])
    expected = train(plain, sgd(plain), 20)
    model, compression = wrapped("none", way=way)
    got = train(model, sgd(model), 20)
    assert same_but_for_the_order_of_sums(got, expected)
    assert compression.compression_stats()["steps"] == 20


@pytest.mark.parametrize("spec", ["none", "fp16", "topk(ratio=0.05)"])
def test_buckets_are_ddp_s_own_where_any_will_do(spec):
    model, compression = wrapped(spec, way="small buckets")
    train(model, sgd(model), 3)
    theirs = [int(size) for size in model._get_ddp_logging_data()["rebuilt_bucket_sizes"].split(", ")]
    ours = [4 * exchange.layout.size for exchange in compression._reducer.exchanges]
    assert len(theirs) > 1
    assert (ours == theirs) is (spec != "topk(ratio=0.05)")


@pytest.mark.parametrize("spec", ["none", "topk(ratio=0.05)", "powersgd"])
def test_accumulation_without_synchronization(spec):
    model, compression = wrapped(spec)
    optimizer = sgd(model)
    for step in range(3):
        optimizer.zero_grad()
        for part in range(3):
            with model.no_sync() if part < 2 else contextlib.nullcontext():
                images, labels = batch(3 * step + part)
                nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    assert equal_on_all_ranks(model)
    assert compression.compression_stats()["steps"] == 3
    reference = small_cnn()
    own = hvdc.DistributedOptimizer(
        sgd(reference), reference.named_parameters(), spec, 3, transport="torch.distributed", bucket_bytes=20_000
    )
    assert same_but_for_the_order_of_sums(flat(model), train(reference, own, 3, passes=3))


class Branches(nn.Module):
    """Uses one of two layers, or none of them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.left, self.right = nn.Linear(40, 40), nn.Linear(40, 40), nn.Linear(40, 40)

    def forward(self, x, branches):
        x = self.first(x)
        for branch in branches:
            x = getattr(self, branch)(x)
        return x


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("spec", ["none", "topk(ratio=0.05)", "powersgd", "topk(ratio=0.05, scope=model)"])
def test_parameters_that_are_not_used(spec, views):
    """By one rank, by none in a step, by none at all: as by the optimizer, whose tests say what that is."""

    def run(by_ddp):
        model, spread = Branches(), ["left", "right"]
        if by_ddp:
            model = DistributedDataParallel(model, find_unused_parameters=True, gradient_as_bucket_view=views)
            ddp.register(model, spec, dense_below=0)
            optimizer = sgd(model)
        else:
            optimizer = hvdc.DistributedOptimizer(
                sgd(model), model.named_parameters(), spec, transport="torch.distributed", dense_below=0
            )
        for step, branches in enumerate([spread, spread[RANK % 2 :][:1], ["left"], [], spread, ["right"]]):
            optimizer.zero_grad()
            x = torch.randn(4, 40, generator=torch.Generator().manual_seed(10 * step + RANK))
            model(x, branches).square().mean().backward()
            optimizer.step()
        assert equal_on_all_ranks(model)
        return flat(model)

    assert same_but_for_the_order_of_sums(run(True), run(False))


@pytest.mark.parametrize("spec", ["none", "topk(ratio=0.1)", "qsgd"])
def test_sparse_gradients(spec):
    def run(by_ddp):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(200, 30, sparse=True), nn.Flatten(), nn.Linear(90, 10))
        if by_ddp:
            model = DistributedDataParallel(model)
            ddp.register(model, spec, dense_below=0)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        else:
            optimizer = hvdc.DistributedOptimizer(
                torch.optim.SGD(model.parameters(), lr=0.1),
                model.named_parameters(),
                spec,
                transport="torch.distributed",
                dense_below=0,
            )
        for step in range(5):
            optimizer.zero_grad()
            words = torch.randint(200, (8, 3), generator=torch.Generator().manual_seed(10 * step + RANK))
            model(words).square().mean().backward()
            optimizer.step()
        assert equal_on_all_ranks(model)
        return flat(model)

    assert torch.allclose(run(True), run(False), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("spec", ["none", "topk(ratio=0.1)"])
def test_dtypes(spec, dtype):
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 10)).to(dtype))
    ddp.register(model, spec)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = flat(model)
    for step in range(5):
        optimizer.zero_grad()
        x = torch.randn(8, 40, generator=torch.Generator().manual_seed(10 * step + RANK)).to(dtype)
        model(x).square().mean().backward()
        assert all(p.grad.dtype == dtype for p in model.parameters())
        optimizer.step()
    assert equal_on_all_ranks(model)
    assert not torch.equal(flat(model), before)


def test_grad_scaler_skips_the_step_of_non_finite_gradients():
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    model, compression = wrapped("topk(ratio=0.05)", grad_scaler=scaler)
    optimizer = sgd(model)
    for step in range(6):
        before = flat(model)
        optimizer.zero_grad()
        images, labels = batch(step)
        loss = nn.functional.cross_entropy(model(images), labels)
        if step == 3 and RANK == 0:
            loss = loss * torch.inf
        with pytest.warns(RuntimeWarning, match="are not finite") if step == 3 else contextlib.nullcontext():
            scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(flat(model), before) == (step == 3)
    assert scaler.get_scale() == 4.0
    assert equal_on_all_ranks(model)
    assert compression.compression_stats()["nonfinite_steps"] == 1


@pytest.mark.parametrize("spec", ["none", "topk(ratio=0.05)", "powersgd"])
def test_ranks_with_fewer_batches_join(spec):
    def run(compressed):
        model = DistributedDataParallel(small_cnn())
        if compressed:
            ddp.register(model, spec, bucket_bytes=20_000)
        with model.join():
            train(model, sgd(model), 6 if RANK else 3)
        assert equal_on_all_ranks(model)
        return flat(model)

    plain, got = run(False), run(True)
    if spec == "none":
        assert torch.allclose(got, plain, rtol=1e-5, atol=1e-6)
    else:
        assert got.isfinite().all()


@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_a_mean_that_overflows_where_a_rank_has_joined(factor):
    module = nn.Linear(40, 40, bias=False)
    model = DistributedDataParallel(module)
    compression = ddp.register(model, "fp16", gradient_predivide_factor=factor)
    with model.join(), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for step in range(4 if RANK else 2):
            module.zero_grad()
            model(torch.full((1, 40), 1e6 if step == 3 else 1.0)).sum().backward()
    if RANK:
        assert not module.weight.grad.isfinite().any()
    assert compression.compression_stats()["nonfinite_steps"] == 1


@pytest.mark.parametrize("after", ["none", "fp16", "qsgd", "topk(ratio=0.5)"])
@pytest.mark.parametrize("to_none", [False, True])
def test_what_was_not_sent_is_kept_where_nobody_uses_the_parameter(after, to_none):
    def sent_in_the_end(pauses):
        model = DistributedDataParallel(Branches(), find_unused_parameters=True)
        plain = [("first.*", "none"), ("*.bias", "none")]
        compression = ddp.register(model, "topk(ratio=0.05)", rules=plain, dense_below=0)

        def step(*branches, factor=1.0):
            model.zero_grad(set_to_none=to_none)
            x = torch.randn(4, 40, generator=torch.Generator().manual_seed(RANK))
            (model(x, branches).square().mean() * factor).backward()

        step("left", "right")
        step("left", "right")
        for spec in ("topk(ratio=0.05)", after) if pauses else ():
            compression.set_compression(spec, plain)
            step()
            step()
        compression.set_compression("none")
        step("left", "right", factor=0.0)
        return torch.stack([model.module.left.weight.grad, model.module.right.weight.grad])

    expected = sent_in_the_end(pauses=False)
    assert expected.norm() > 0
    assert torch.allclose(sent_in_the_end(pauses=True), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("views", [False, True])
def test_who_has_a_gradient_that_is_not_finite(views):
    model = DistributedDataParallel(small_cnn(), gradient_as_bucket_view=views)
    ddp.register(model, "none")
    train(model, sgd(model), 3)
    images, labels = batch(0)
    loss = nn.functional.cross_entropy(model(images), labels) * (torch.nan if RANK == 1 else 1)
    with pytest.warns(RuntimeWarning, match="are not finite; rank: 1. So"):
        loss.backward()


def test_a_layer_that_is_frozen_in_between():
    model = DistributedDataParallel(small_cnn(), find_unused_parameters=True)
    model.module[0].requires_grad_(False)
    before = model.module[0].weight.clone()
    ddp.register(model, "topk(ratio=0.05)")
    train(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1), 3)
    assert torch.equal(model.module[0].weight, before)
    assert equal_on_all_ranks(model)


def test_two_models_with_a_layer_in_common():
    torch.manual_seed(0)
    common = nn.Linear(40, 40)
    models = [DistributedDataParallel(nn.Sequential(common, nn.Linear(40, size))) for size in (10, 20)]
    for model in models:
        ddp.register(model, "topk(ratio=0.1)", dense_below=0)
    optimizer = torch.optim.SGD({p for model in models for p in model.parameters()}, lr=0.1)
    for step in range(6):
        optimizer.zero_grad()
        x = torch.randn(4, 40, generator=torch.Generator().manual_seed(10 * step + RANK))
        models[step % 2](x).square().mean().backward()
        optimizer.step()
    assert all(equal_on_all_ranks(model) for model in models)


def test_a_model_can_be_saved_whole():
    model, _ = wrapped("topk(ratio=0.05)")
    train(model, sgd(model), 2)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(flat(torch.load(file, weights_only=False)), flat(model))


def test_gradients_with_a_graph_of_their_own():
    model = small_cnn()
    optimizer = hvdc.DistributedOptimizer(
        sgd(model), model.named_parameters(), "topk(ratio=0.05)", transport="torch.distributed"
    )
    for step in range(3):
        optimizer.zero_grad()
        images, labels = batch(step)
        nn.functional.cross_entropy(model(images), labels).backward(create_graph=True)
        optimizer.step()
    assert equal_on_all_ranks(model)


def test_a_change_of_compression_says_nothing(caplog):
    model, compression = wrapped("topk(ratio=0.05)")
    train(model, sgd(model), 2)
    compression.set_compression("powersgd")
    train(model, sgd(model), 2)
    assert not caplog.records


@pytest.mark.parametrize("spec", ["topk(ratio=0.05)", "powersgd"])
@pytest.mark.parametrize("kind", ["checkpoint", "tied", "frozen", "compiled"])
def test_models_of_other_kinds(kind, spec):
    class Layers(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.ModuleList(nn.Linear(40, 40) for _ in range(3))
            if kind == "tied":
                self.layers[1].weight = self.layers[0].weight
            if kind == "frozen":
                self.layers[0].requires_grad_(False)

        def forward(self, x):
            for layer in self.layers:
                x = checkpoint(layer, x, use_reentrant=False) if kind == "checkpoint" else layer(x)
            return x

    model = DistributedDataParallel(Layers())
    ddp.register(model, spec, dense_below=0)
    called = torch.compile(model, backend="eager") if kind == "compiled" else model
    optimizer, before = torch.optim.SGD(model.parameters(), lr=0.1), flat(model)
    for step in range(5):
        optimizer.zero_grad()
        called(torch.randn(8, 40, generator=torch.Generator().manual_seed(10 * step + RANK))).square().mean().backward()
        optimizer.step()
    assert equal_on_all_ranks(model)
    assert not torch.equal(flat(model), before)


def test_two_models_that_take_turns():
    def run(by_ddp):
        models, optimizers = [small_cnn(), small_cnn(1)], []
        for number, spec in enumerate(["topk(ratio=0.05)", "powersgd"]):
            if by_ddp:
                models[number] = DistributedDataParallel(models[number])
                ddp.register(models[number], spec)
                optimizers.append(sgd(models[number]))
            else:
                named = models[number].named_parameters()
                optimizers.append(
                    hvdc.DistributedOptimizer(sgd(models[number]), named, spec, transport="torch.distributed")
                )
        for step in range(6):
            for number in (0, 1, 1) if step % 2 else (1, 0):
                train(models[number], optimizers[number], 1, start=step)
        assert all(map(equal_on_all_ranks, models))
        return torch.cat(list(map(flat, models)))

    assert same_but_for_the_order_of_sums(run(True), run(False))


@pytest.mark.parametrize(
    "spec", ["none", "topk(ratio=0.05)", "powersgd", "qsgd", "sketched_sgd", "topk(feedback=ef21)"]
)
def test_a_run_resumes_exactly(spec):
    model, compression = wrapped(spec)
    optimizer = sgd(model, spec)
    train(model, optimizer, 5)
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), compression.state_dict()], file)
    expected = train(model, optimizer, 5, start=5)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    model, compression = wrapped(spec, seed=1)
    optimizer = sgd(model, spec)
    model.load_state_dict(states[0])
    optimizer.load_state_dict(states[1])
    compression.load_state_dict(states[2])
    assert torch.equal(train(model, optimizer, 5, start=5), expected)
    assert compression.compression_stats()["steps"] == 10


def test_another_compression_in_mid_training():
    model, compression = wrapped("topk(ratio=0.05)")
    optimizer = sgd(model)
    train(model, optimizer, 3)
    owed = compression.compression_stats()["residual_norm"]
    compression.set_compression("powersgd", rules=[("3.*", "qsgd")])
    assert compression.compression_stats()["residual_norm"] == pytest.approx(owed)
    train(model, optimizer, 3, start=3)
    assert equal_on_all_ranks(model)
    assert compression.compression_stats()["steps"] == 6


def test_one_rank_alone_takes_another_compression():
    model, compression = wrapped("topk(ratio=0.05)")
    optimizer = sgd(model)
    train(model, optimizer, 3)
    if RANK == 0:
        compression.set_compression("powersgd")
    with pytest.raises(hvdc.WorkersDisagree, match="not all called set_compression"):
        train(model, optimizer, 1)


def test_ranks_that_disagree():
    model, _ = wrapped("topk(ratio=0.02)" if RANK == 0 else "topk(ratio=0.1)")
    with pytest.raises(hvdc.WorkersDisagree, match=r"compression: rank 0: topk\(ratio=0.02\); ranks? 1.*ratio=0.1"):
        train(model, sgd(model), 1)


def test_processors_of_different_kinds_are_refused_where_they_would_round_means_differently(monkeypatch):
    for spec in ("powersgd", "sketched_sgd(heavymix=True)"):
        _, compression = wrapped(spec)
        assert compression._reducer.processors == "cpu"
    for spec in ("topk", "sketched_sgd", "qsgd"):
        _, compression = wrapped(spec)
        assert compression._reducer.processors == "any"
    model, _ = wrapped("powersgd")
    monkeypatch.setattr(ddp.BucketReducer, "processors", "cuda" if RANK else "cpu")
    with pytest.raises(hvdc.WorkersDisagree, match=r"processors: rank 0: cpu; ranks? 1.*cuda"):
        train(model, sgd(model), 1)


@dataclass(frozen=True)
class Failing(Compressor):
    """Fails on the last rank in its third step, in its first or its second round."""

    where: int = 1
    name: ClassVar[str] = "failing"
    wire: ClassVar[str] = ""
    collectives: ClassVar[tuple[str, ...]] = ("allreduce", "allreduce")
    stateful: ClassVar[bool] = True

    def reduce(self, ops, vector, state):
        for number in range(3):
            if state.rank == RANKS - 1 and state.step == 2 and number == self.where:
                raise ZeroDivisionError("a bug")
            if number < 2:
                mean = yield AllReduce(ops.copy(vector))
        return Reduced(mean, None)

    def payload_bits(self, layout, kept=None):
        return 8 * layout.size  # or it would be left out for plain


@pytest.mark.parametrize("where", [0, 1, 2])
def test_an_exception_on_one_rank_is_one_on_all(where):
    model = DistributedDataParallel(small_cnn())
    ddp.register(model, "none", rules=[hvdc.Rule("*", Failing(where))])
    optimizer = sgd(model)
    train(model, optimizer, 2)
    own = RANK == RANKS - 1
    with pytest.raises(
        ZeroDivisionError if own else hvdc.WorkerFailed,
        match="a bug" if own else rf"rank {RANKS - 1} failed in step \d+ with ZeroDivisionError: a bug",
    ):
        train(model, optimizer, 2)


def test_non_finite_gradients_can_be_an_error():
    model, _ = wrapped("topk(ratio=0.05)", nonfinite="error")
    images, labels = batch(0)
    with pytest.raises(hvdc.NonFiniteGradients, match="rank: 1"):
        (nn.functional.cross_entropy(model(images), labels) * (torch.inf if RANK == 1 else 1)).backward()


def test_what_cannot_be_registered():
    model = small_cnn()
    with pytest.raises(TypeError, match="model must be a DistributedDataParallel; got Sequential"):
        ddp.register(model, "topk")
    model, _ = wrapped("none")
    with pytest.raises(RuntimeError, match="register_comm_hook"):
        ddp.register(model, "topk")
    with pytest.raises(ValueError, match="matches none of the 6 parameters"):
        ddp.register(DistributedDataParallel(small_cnn()), "topk", rules=[("nobody", "none")])


def test_a_process_alone_sends_nothing():
    alone = [dist.new_group([rank]) for rank in range(RANKS)][RANK]
    model = DistributedDataParallel(small_cnn(), process_group=alone)
    compression = ddp.register(model, "topk(ratio=0.05)")
    expected = train(other := copy.deepcopy(small_cnn()), sgd(other), 3)
    assert torch.equal(train(model, sgd(model), 3), expected)
    assert compression.compression_stats()["bytes_sent"] == 0
    compression.set_compression("powersgd")
    compression.load_state_dict(compression.state_dict())
