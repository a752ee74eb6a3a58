"""The optimizer against Horovod's own, and its arguments."""

import gc
import time
import warnings
from dataclasses import dataclass
from typing import ClassVar

import horovod.torch as hvd
import pytest
import torch
from torch import nn
from torch_ranks import HALF, SPECS, batch, flat, repeats, same_on_all_ranks, sgd, small_cnn, train

import hvd_compress.torch as hvdc
from hvd_compress import EF21, AllReduce, Compressor, Feedback, Reduced, methods


def close_or_equal(ours, theirs):
    """Bit-identical on two ranks; with more, the order of the sum may differ."""
    return torch.equal(ours, theirs) if hvd.size() == 2 else torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("settings", [{}, {"op": hvd.Sum}, {"gradient_predivide_factor": 2.0}, {"groups": 2}])
def test_none_is_horovods_own_optimizer(passes, settings):
    theirs, ours = small_cnn(), small_cnn()
    expected = train(
        theirs,
        hvd.DistributedOptimizer(sgd(theirs), theirs.named_parameters(), backward_passes_per_step=passes, **settings),
        20,
        passes,
    )
    got = train(
        ours,
        hvdc.DistributedOptimizer(sgd(ours), ours.named_parameters(), backward_passes_per_step=passes, **settings),
        20,
        passes,
    )
    assert close_or_equal(got, expected)


def test_fp16_is_horovods_own_fp16():
    theirs, ours = small_cnn(), small_cnn()
    expected = train(
        theirs, hvd.DistributedOptimizer(sgd(theirs), theirs.named_parameters(), compression=hvd.Compression.fp16), 20
    )
    optimizer = hvdc.DistributedOptimizer(sgd(ours), ours.named_parameters(), compression=hvdc.Compression.fp16)
    got = train(ours, optimizer, 20)
    equal = hvd.size() == 2 and optimizer._reducer.transport.tells  # process groups divide before they sum
    assert torch.equal(got, expected) if equal else torch.allclose(got, expected, rtol=0.01, atol=1e-3)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("bucket_bytes", [1, 20_000, 1 << 30])
def test_parameters_stay_the_same_on_all_ranks_and_learn(spec, bucket_bytes):
    model = small_cnn()
    before = flat(model)
    optimizer = hvdc.DistributedOptimizer(
        sgd(model, spec), model.named_parameters(), compression=spec, bucket_bytes=bucket_bytes
    )
    after = train(model, optimizer, 5)
    assert same_on_all_ranks(after)
    assert after.isfinite().all()
    assert not torch.equal(before, after)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_correction_of_what_is_sent_whole_is_momentum(nesterov):
    spec = f"topk(ratio=1.0, feedback=momentum(momentum=0.8, nesterov={nesterov}, masking=False))"
    theirs, ours = small_cnn(), small_cnn()
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.8, nesterov=nesterov)
    expected = train(theirs, hvdc.DistributedOptimizer(optimizer, theirs.named_parameters()), 10)
    rules = [("3.weight", spec.replace("1.0", "0.999999"))]  # the largest matrix, nearly whole; the others plain
    optimizer = hvdc.DistributedOptimizer(sgd(ours, spec), ours.named_parameters(), compression=spec, rules=rules)
    assert torch.allclose(train(ours, optimizer, 10), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("spec", ["dgc", "signum", "topk(feedback=momentum)"])
def test_momentum_is_kept_once(spec):
    model = small_cnn()
    for inner in (sgd(model), torch.optim.Adam(model.parameters())):
        with pytest.raises(
            ValueError, match=r"keeps the momentum itself, so that the optimizer's must be 0; it is 0\.9"
        ):
            hvdc.DistributedOptimizer(inner, model.named_parameters(), compression=spec)
        optimizer = hvdc.DistributedOptimizer(inner, model.named_parameters(), compression="topk")
        with pytest.raises(ValueError, match="keeps the momentum itself"):
            optimizer.set_compression("none", rules=[("3.*", spec)])


def test_every_registered_method_is_offered():
    for name in methods():
        assert callable(getattr(hvdc.Compression, name))


def test_synchronize_then_clip_then_step():
    theirs, ours = small_cnn(), small_cnn()
    for model, optimizer in (
        (theirs, hvd.DistributedOptimizer(sgd(theirs), theirs.named_parameters())),
        (ours, hvdc.DistributedOptimizer(sgd(ours), ours.named_parameters())),
    ):
        for step in range(3):
            images, labels = batch(step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.synchronize()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            with optimizer.skip_synchronize():
                optimizer.step()
    assert close_or_equal(flat(ours), flat(theirs))


def test_step_after_synchronize_without_skip_warns():
    model = small_cnn()
    optimizer = hvdc.DistributedOptimizer(sgd(model), model.named_parameters())
    images, labels = batch(0)
    nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.synchronize()
    with pytest.warns(UserWarning, match="skip_synchronize"):
        optimizer.step()


def test_zero_grad_between_backward_and_step_is_refused():
    model = small_cnn()
    optimizer = hvdc.DistributedOptimizer(sgd(model), model.named_parameters())
    images, labels = batch(1)
    nn.functional.cross_entropy(model(images), labels).backward()
    with pytest.raises(AssertionError, match="race condition"):
        optimizer.zero_grad()
    optimizer.step()
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images), labels).backward()
    with pytest.raises(AssertionError, match="race condition"):
        optimizer.zero_grad()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    assert all((p.grad == 0).all() for p in model.parameters())


def test_more_backward_passes_than_announced_are_refused():
    model = small_cnn()
    optimizer = hvdc.DistributedOptimizer(sgd(model), model.named_parameters())
    train(model, optimizer, 1)
    images, labels = batch(1)
    nn.functional.cross_entropy(model(images), labels).backward()
    with pytest.raises(AssertionError, match="backward_passes_per_step"):
        nn.functional.cross_entropy(model(images), labels).backward()


def test_set_backward_passes_per_step():
    model, other = small_cnn(), small_cnn()
    optimizer = hvdc.DistributedOptimizer(sgd(model), model.named_parameters())
    optimizer.set_backward_passes_per_step(2)
    expected = train(
        other, hvdc.DistributedOptimizer(sgd(other), other.named_parameters(), backward_passes_per_step=2), 3, 2
    )
    assert repeats(train(model, optimizer, 3, 2), expected)


@pytest.mark.parametrize("inner", [torch.optim.LBFGS, torch.optim.SGD])
def test_closures_take_the_same_decisions_everywhere(inner):
    model = small_cnn()
    optimizer = hvdc.DistributedOptimizer(inner(model.parameters(), lr=0.1), model.named_parameters())
    images, labels = batch(0)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        return loss

    losses = [optimizer.step(closure) for _ in range(3)]
    assert same_on_all_ranks(flat(model))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("spec", SPECS)
def test_the_scale_of_the_loss_changes_nothing(spec):
    """Bit for bit: scales are powers of 2."""

    def trained(scaler):
        model = small_cnn()
        optimizer = hvdc.DistributedOptimizer(
            sgd(model, spec), model.named_parameters(), compression=spec, grad_scaler=scaler
        )
        for step in range(6):
            images, labels = batch(step)
            optimizer.zero_grad()
            scaler.scale(nn.functional.cross_entropy(model(images), labels)).backward()
            optimizer.synchronize()
            scaler.unscale_(optimizer)
            with optimizer.skip_synchronize():
                scaler.step(optimizer)
            scaler.update()
        return flat(model), optimizer.compression_stats()["residual_norm"], scaler.get_scale()

    weights, norm, scale = trained(torch.amp.GradScaler("cpu", init_scale=4.0, growth_factor=16.0, growth_interval=2))
    expected, expected_norm, _ = trained(torch.amp.GradScaler("cpu", enabled=False))
    assert scale == 4 * 16**3
    assert torch.equal(weights, expected)
    assert norm == expected_norm


@pytest.mark.parametrize("spec", ["none", "topk(ratio=0.1)", "powersgd"])
def test_a_rank_without_gradients_takes_the_scale_of_the_step(spec):
    model = small_cnn()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_factor=16.0, growth_interval=1)
    optimizer = hvdc.DistributedOptimizer(
        sgd(model, spec), model.named_parameters(), compression=spec, grad_scaler=scaler
    )
    for step in range(5):
        images, labels = batch(step)
        optimizer.zero_grad()
        loss = scaler.scale(nn.functional.cross_entropy(model(images), labels))
        if step % 2 == 0 or hvd.rank() == 0:
            loss.backward()
        optimizer.synchronize()
        scaler.unscale_(optimizer)
        with optimizer.skip_synchronize():
            scaler.step(optimizer)
        scaler.update()
        assert same_on_all_ranks(flat(model))


def with_a_bad_gradient(spec, nonfinite):
    model = small_cnn()
    optimizer = hvdc.DistributedOptimizer(
        sgd(model, spec), model.named_parameters(), compression=spec, nonfinite=nonfinite, dense_below=0
    )
    train(model, optimizer, 2)
    if hvd.rank() == 1:
        model[3].weight.register_hook(lambda gradient: gradient * float("inf"))
    return model, optimizer


@pytest.mark.parametrize("spec", SPECS)
def test_a_gradient_that_is_not_finite_is_said_once_on_all_ranks(spec):
    model, optimizer = with_a_bad_gradient(spec, "warn")
    before = optimizer.compression_stats()["residual_norm"]
    with pytest.warns(RuntimeWarning, match=r"step 3: the gradients of .*3\.weight.* are not finite; rank: 1\. So"):
        train(model, optimizer, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, 1)
    stats = optimizer.compression_stats()
    assert stats["nonfinite_steps"] == 2
    assert stats["residual_norm"] == before


@pytest.mark.parametrize("spec", SPECS)
def test_a_gradient_that_is_not_finite_is_an_error_if_asked_for(spec):
    model, optimizer = with_a_bad_gradient(spec, "error")
    weights = flat(model)
    for step in (3, 4):
        with pytest.raises(hvdc.NonFiniteGradients, match=rf"step {step}: .*3\.weight.*; rank: 1\."):
            train(model, optimizer, 1)
    assert torch.equal(flat(model), weights)


def test_grad_scaler_skips_the_step_of_non_finite_gradients():
    model = small_cnn()
    optimizer = hvdc.DistributedOptimizer(sgd(model), model.named_parameters(), compression="topk(ratio=0.1)")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    kept = []
    for step in range(4):
        images, labels = batch(step)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        if step == 2 and hvd.rank() == 1:
            loss = loss * float("inf")
        scaler.scale(loss).backward()
        optimizer.synchronize()
        scaler.unscale_(optimizer)
        with optimizer.skip_synchronize():
            scaler.step(optimizer)
        scaler.update()
        kept.append((flat(model), scaler.get_scale(), optimizer.compression_stats()["residual_norm"]))
    assert torch.equal(kept[1][0], kept[2][0])
    assert kept[2][1] == kept[1][1] / 2
    assert kept[2][2] == kept[1][2]
    assert not torch.equal(kept[2][0], kept[3][0])
    assert same_on_all_ranks(kept[3][0])


class Branches(nn.Module):
    """Uses one of two layers, and never the third."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(40, 40) for _ in range(3)])

    def forward(self, x, which):
        return self.layers[which](x)


@pytest.mark.parametrize("spec", ["none", "topk(ratio=0.1)", "powersgd", "qsgd"])
@pytest.mark.parametrize("bucket_bytes", [1, 1 << 30])
def test_unused_parameters_and_gradients_of_some_ranks_only(spec, bucket_bytes):
    model = Branches()
    optimizer = hvdc.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        model.named_parameters(),
        compression=spec,
        bucket_bytes=bucket_bytes,
    )
    unused = model.layers[2].weight.detach().clone()
    for step in range(4):
        optimizer.zero_grad()
        model(torch.ones(2, 40), (hvd.rank() + step) % 2).sum().backward()
        optimizer.step()
    assert same_on_all_ranks(flat(model))
    assert torch.equal(model.layers[2].weight, unused)
    assert model.layers[2].weight.grad is None


def test_missing_gradients_count_as_zero():
    model = Branches()
    optimizer = hvdc.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=1.0), model.named_parameters())
    before = model.layers[0].weight.detach().clone()
    model(torch.ones(1, 40), min(hvd.rank(), 1)).sum().backward()
    optimizer.step()
    assert torch.allclose(before - model.layers[0].weight, torch.full((40, 40), 1 / hvd.size()), atol=1e-6)


def test_process_set_of_some_ranks():
    model = small_cnn()
    optimizer = hvdc.DistributedOptimizer(
        sgd(model), model.named_parameters(), compression="topk(ratio=0.1)", process_set=HALF
    )
    after = train(model, optimizer, 3)
    if HALF.included() and HALF.size() > 1:
        gathered = hvd.allgather(after[None], name="half", process_set=HALF)
        assert all(torch.equal(row, gathered[0]) for row in gathered)
        assert optimizer.compression_stats()["bytes_sent"] > 0
    else:
        assert optimizer.compression_stats()["bytes_sent"] == 0
    assert not same_on_all_ranks(after)


def test_communication_begins_during_the_backward_pass():
    model = small_cnn()
    optimizer = hvdc.DistributedOptimizer(sgd(model), model.named_parameters(), compression="powersgd", bucket_bytes=1)
    train(model, optimizer, 1)
    if optimizer._reducer.transport.ordered:
        pytest.skip("there a bucket waits for those before it")
    launched = []
    model[0].weight.register_hook(lambda g: launched.append([e.launched for e in optimizer._reducer.exchanges]))
    images, labels = batch(1)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images), labels).backward()
    assert sum(launched[0]) >= len(launched[0]) - 2  # all but the first layer's weight and bias
    assert all(e.launched for e in optimizer._reducer.exchanges)
    optimizer.step()
    assert not any(e.launched for e in optimizer._reducer.exchanges)


@dataclass(frozen=True)
class ManyRounds(Compressor):
    """Averages five times over, and takes its time on some ranks and rounds."""

    name: ClassVar[str] = "many_rounds"
    collectives: ClassVar[tuple[str, ...]] = ("allreduce",) * 5
    unbiased: ClassVar[bool] = True

    def reduce(self, ops, vector, state):
        mean = vector
        for number in range(5):
            time.sleep(0.002 * ((state.rank + number + vector.shape[0]) % 3))
            mean = yield AllReduce(mean)
        return Reduced(mean, lambda total, factor: total + factor * vector)

    def payload_bits(self, layout, kept=None):
        return 0


def test_methods_of_many_rounds_in_many_buckets():
    model = nn.Sequential(*[nn.Linear(40, 40) for _ in range(5)])
    optimizer = hvdc.DistributedOptimizer(
        sgd(model), model.named_parameters(), compression=ManyRounds(), bucket_bytes=1
    )
    for step in range(5):
        optimizer.zero_grad()
        torch.manual_seed(10 * step + hvd.rank())
        model(torch.randn(2, 40)).square().sum().backward()
        time.sleep(0.01 * ((hvd.rank() + step) % 2))
        optimizer.step()
    assert same_on_all_ranks(flat(model))


def test_broadcast_optimizer_state_needs_no_step_of_all_ranks():
    model = small_cnn()
    optimizer = hvdc.DistributedOptimizer(sgd(model, lr=0.1 * (1 + hvd.rank())), model.named_parameters())
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_wrapped_class_and_its_schedulers():
    model = small_cnn()
    optimizer = hvdc.DistributedOptimizer(torch.optim.Adam(model.parameters()), model.named_parameters())
    assert isinstance(optimizer, torch.optim.Adam)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    train(model, optimizer, 2)
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)
    with pytest.raises(NotImplementedError, match="wrap it anew"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})


def test_an_optimizer_takes_over_the_parameters_of_one_that_is_gone():
    model = small_cnn()
    train(model, hvdc.DistributedOptimizer(sgd(model), model.named_parameters(), compression="qsgd"), 3)
    gc.collect()
    train(model, hvdc.DistributedOptimizer(sgd(model), model.named_parameters(), compression="powersgd"), 3)
    assert same_on_all_ranks(flat(model))


def test_two_optimizers_side_by_side():
    one, two = small_cnn(0), small_cnn(1)
    first = hvdc.DistributedOptimizer(sgd(one), one.named_parameters(), compression="topk(ratio=0.1)")
    second = hvdc.DistributedOptimizer(sgd(two), two.named_parameters(), compression="powersgd")
    for step in range(3):
        images, labels = batch(step)
        for model, optimizer in ((one, first), (two, second)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
        second.step()
        first.step()
    assert same_on_all_ranks(flat(one))
    assert same_on_all_ranks(flat(two))


@pytest.mark.parametrize("spec", SPECS)
def test_stats_count_what_payload_bits_promise(spec):
    model = nn.Linear(64, 50, bias=False)
    optimizer = hvdc.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters(), compression=spec
    )
    for step in range(3):
        torch.manual_seed(100 * step + hvd.rank())
        optimizer.zero_grad()
        model(torch.randn(4, 64)).square().sum().backward()
        optimizer.step()
    stats = optimizer.compression_stats()
    compressor = optimizer._reducer.compressor
    from hvd_compress import Layout

    beside = ("agreement",)
    sent = sum(entry["sent"] for kind, entry in stats["collectives"].items() if kind not in beside)
    if not compressor.varying:
        assert 8 * sent == 3 * compressor.payload_bits(Layout.of([("weight", (50, 64))]))
    assert stats["bytes_sent"] == sent + sum(stats["collectives"][kind]["sent"] for kind in beside)
    assert stats["dense_bytes"] == 3 * 4 * 64 * 50
    assert stats["ratio"] == stats["dense_bytes"] / stats["bytes_sent"]
    assert stats["steps"] == 3
    assert stats["compression_seconds"] > 0
    assert stats["communication_seconds"] > 0
    if spec != "threshold":  # below which there may be something, or nothing
        assert (stats["residual_norm"] > 0) == (isinstance(compressor, Feedback) and not isinstance(compressor, EF21))


def test_arguments_in_horovods_order():
    theirs, ours = small_cnn(), small_cnn()
    names = [{parameter: name for name, parameter in model.named_parameters()} for model in (theirs, ours)]
    rest = (1, hvd.Average, 1.0, 2, None, False)
    with pytest.warns(DeprecationWarning, match="num_groups"):
        of_horovod = hvd.DistributedOptimizer(sgd(theirs), theirs.named_parameters(), hvd.Compression.none, *rest)
    with pytest.warns(DeprecationWarning, match="groups=2"):
        optimizer = hvdc.DistributedOptimizer(sgd(ours), ours.named_parameters(), hvdc.Compression.none, *rest)
    assert [of_horovod._parameter_names, optimizer._parameter_names] == names
    assert close_or_equal(train(ours, optimizer, 5), train(theirs, of_horovod, 5))
    assert len(optimizer._reducer.all) == 2


def test_a_spec_that_was_parsed_is_bound_to_horovods_own_optimizer():
    model = small_cnn()
    compression = hvdc.Compression.parse("topk(ratio=0.1)").bind(model.named_parameters())
    optimizer = hvd.DistributedOptimizer(sgd(model), model.named_parameters(), compression=compression)
    assert same_on_all_ranks(train(model, optimizer, 5))
    assert compression.compression_stats()["ratio"] > 2


@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize("spec", ["none", "fp16", "topk(ratio=0.1)", "qsgd", "powersgd"])
def test_parameters_of_bfloat16(spec, bound):
    """Horovod's own broadcasts and sums do not know it."""
    torch.manual_seed(hvd.rank())
    model = nn.Sequential(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 40)).to(torch.bfloat16)
    of_root = hvd.broadcast(flat(model.float()), 0, name="of_root")
    model.bfloat16()
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    assert torch.equal(flat(model.float()), of_root)
    model.bfloat16()
    named, inner = list(model.named_parameters()), sgd(model, spec)
    if bound:
        compression = hvdc.Compression.parse(spec).bind(named)
        optimizer = hvd.DistributedOptimizer(inner, named, compression=compression)
    else:
        optimizer = hvdc.DistributedOptimizer(inner, named, spec)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 40, dtype=torch.bfloat16)).float().square().mean().backward()
        optimizer.step()
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    assert model[0].weight.grad.dtype == torch.bfloat16
    after = flat(model.float())
    assert same_on_all_ranks(after)
    assert not torch.equal(after, of_root)


@pytest.mark.parametrize("spec", ["none", "topk(ratio=0.1)"])
def test_resuming_on_one_rank_leaves_the_parameters_together(spec):
    """Horovod makes the others' states by a step, in which weight decay moves their parameters."""
    model = small_cnn()
    inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    optimizer = hvdc.DistributedOptimizer(inner, model.named_parameters(), spec)
    train(model, optimizer, 3)
    saved, again = optimizer.state_dict(), small_cnn(1 + hvd.rank())
    inner = torch.optim.SGD(again.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    optimizer = hvdc.DistributedOptimizer(inner, again.named_parameters(), spec)
    if hvd.rank() == 0:
        again.load_state_dict(model.state_dict())
        optimizer.load_state_dict(saved)
    hvd.broadcast_parameters(again.state_dict(), root_rank=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of residuals that begin at zero
        hvd.broadcast_optimizer_state(optimizer, root_rank=0)
        assert torch.equal(flat(again), flat(model))
        assert same_on_all_ranks(train(again, optimizer, 3))
