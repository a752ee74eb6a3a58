"""Training scripts of the kinds that people write: all ranks end with the same weights, or with an error."""

import copy

import horovod.torch as hvd
import pytest
import torch
from horovod.torch.elastic import TorchState
from torch import nn
from torch_ranks import SPECS, batch, flat, same_on_all_ranks, sgd, small_cnn, train

import hvd_compress.torch as hvdc
from hvd_compress import parse
from hvd_compress.compressors.named import as_compressor
from hvd_compress.reduction import stalls
from hvd_compress.torch.compression import TorchCompression

SPECS = list(dict.fromkeys([*SPECS, "fetchsgd", "topk(feedback=ef21)", "topk(ratio=linear(0.5, 0.1, steps=10))"]))
SMALL = {"dense_below": 0}


def wrapped(spec, seed=0, **settings):
    model = small_cnn(seed)
    return model, hvdc.DistributedOptimizer(sgd(model, spec), model.named_parameters(), compression=spec, **settings)


def spread(model):
    """The largest difference between the ranks' weights."""
    gathered = hvd.allgather(flat(model)[None].contiguous(), name="spread")
    return (gathered.max(dim=0).values - gathered.min(dim=0).values).max().item()


# --- resuming


def broadcast(model, optimizer):
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)


def synced(model, optimizer):
    TorchState(model=model, optimizer=optimizer, step=0).sync()


@pytest.mark.filterwarnings("ignore:rank . had the compressors' state")
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("share", [broadcast, synced])
def test_rank_0_loads_and_broadcasts(spec, share):
    model, optimizer = wrapped(spec)
    train(model, optimizer, 8)
    checkpoint = copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    model, optimizer = wrapped(spec, seed=3)
    if hvd.rank() == 0:
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
    share(model, optimizer)
    train(model, optimizer, 12, start=8)
    assert spread(model) == 0
    assert optimizer._reducer.steps == 20


@pytest.mark.filterwarnings("ignore:rank . had the compressors' state")
@pytest.mark.parametrize("spec", [spec for spec in SPECS if not parse(spec).whole_gradient and spec != "none"])
def test_rank_0_loads_and_broadcasts_under_horovods_own_optimizer(spec):
    def start(seed):
        model = small_cnn(seed)
        bound = TorchCompression(as_compressor(spec)).bind(model.named_parameters())
        return model, bound, hvd.DistributedOptimizer(sgd(model, spec), model.named_parameters(), compression=bound)

    model, bound, optimizer = start(0)
    train(model, optimizer, 8)
    checkpoint = copy.deepcopy((model.state_dict(), optimizer.state_dict(), bound.state_dict()))
    model, bound, optimizer = start(3)
    if hvd.rank() == 0:
        for part, state in zip((model, optimizer, bound), checkpoint, strict=True):
            part.load_state_dict(state)
    broadcast(model, optimizer)
    train(model, optimizer, 12, start=8)
    assert spread(model) == 0


@pytest.mark.filterwarnings("ignore:the state was saved by another rank")
@pytest.mark.parametrize("spec", SPECS)
def test_rank_0s_state_on_all_ranks(spec):
    model, optimizer = wrapped(spec)
    train(model, optimizer, 4)
    everywhere = hvd.broadcast_object((model.state_dict(), optimizer.state_dict()), root_rank=0, name="state")
    for again in (wrapped(spec, seed=3), (model, optimizer)):
        for part, state in zip(again, copy.deepcopy(everywhere), strict=True):
            part.load_state_dict(state)
        train(*again, 6, start=4)
        assert spread(again[0]) == 0


def test_one_rank_that_loads_in_mid_training_is_told():
    model, optimizer = wrapped("powersgd")
    train(model, optimizer, 2)
    state = copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, 2)
    if hvd.rank() == 0:
        optimizer.load_state_dict(state)
    with pytest.raises((hvdc.WorkersDisagree, hvdc.WorkerFailed), match="load_state_dict"):
        train(model, optimizer, 1)


def test_one_rank_that_loads_while_adam_warms_up_is_told():
    model = nn.Linear(40, 40, bias=False)
    torch.nn.init.zeros_(model.weight)
    optimizer = hvdc.CompressedAdam(model.parameters(), named_parameters=model.named_parameters(), warmup_steps=3)

    def step():
        optimizer.zero_grad()
        (model.weight * (hvd.rank() + 1)).sum().backward()
        optimizer.step()

    state = copy.deepcopy(optimizer.state_dict())
    step()
    if hvd.rank() == 0:
        optimizer.load_state_dict(state)
    with pytest.raises((hvdc.WorkersDisagree, hvdc.WorkerFailed), match="load_state_dict"):
        step()


@pytest.mark.filterwarnings("ignore:rank . had the compressors' state")
def test_rank_0_alone_has_a_state_of_other_buckets():
    model, optimizer = wrapped("topk", **SMALL)
    train(model, optimizer, 2)
    state = copy.deepcopy(optimizer.state_dict())
    model, optimizer = wrapped("topk", bucket_bytes=100, **SMALL)
    if hvd.rank() == 0:
        optimizer.load_state_dict(state)
    broadcast(model, optimizer)
    with pytest.raises((ValueError, hvdc.WorkerFailed), match="saved for the buckets"):
        train(model, optimizer, 1)


@pytest.mark.filterwarnings("ignore:rank . had the compressors' state")
@pytest.mark.parametrize("spec", ["none", "topk(ratio=0.05)", "dgc(ratio=0.05)", "powersgd", "fetchsgd"])
@pytest.mark.parametrize("new", [False, True])
def test_a_state_of_other_trained_layers(spec, new):
    """Of a run that froze a layer, or of one that did not: what was not sent is not lost."""
    model, optimizer = wrapped(spec)
    train(model, optimizer, 3)
    state = copy.deepcopy(optimizer.state_dict())
    owed = optimizer.compression_stats()["residual_norm"]
    if new:
        model, optimizer = wrapped(spec)
    model[3].requires_grad_(False)
    optimizer.zero_grad()
    train(model, optimizer, 0 if new else 2)
    optimizer.load_state_dict(state)
    if not new:
        assert optimizer.compression_stats()["residual_norm"] == pytest.approx(owed, rel=1e-4)
    train(model, optimizer, 2)
    assert spread(model) == 0
    frozen = copy.deepcopy(optimizer.state_dict())
    model[3].requires_grad_(True)
    train(model, optimizer, 2)
    if hvd.rank() == 0 or new:
        optimizer.load_state_dict(frozen)
    if new:
        train(model, optimizer, 2)
        assert spread(model) == 0
    else:
        with pytest.raises((hvdc.WorkersDisagree, hvdc.WorkerFailed), match="load_state_dict"):
            train(model, optimizer, 1)


@pytest.mark.filterwarnings("ignore:the state was saved by another rank")
def test_ef21_of_another_number_of_workers_begins_anew():
    """The estimates' mean would be wrong for ever."""
    model = nn.Linear(64, 32, bias=False)
    torch.nn.init.zeros_(model.weight)
    optimizer = hvdc.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.0), model.named_parameters(), compression="topk(0.2, feedback=ef21)"
    )

    def mean_after(steps):
        for _ in range(steps):
            optimizer.zero_grad()
            (model.weight * torch.full((32, 64), float(hvd.rank() + 1))).sum().backward()
            optimizer.step()
        return model.weight.grad

    mean_after(3)
    state = optimizer.state_dict()
    for bucket in state["compression"]["buckets"]:
        bucket["state"]["workers"] = hvd.size() + 1
        bucket["state"]["shared"]["estimate"] += 1.0  # what a third worker contributed
    optimizer.load_state_dict(state)
    assert torch.allclose(mean_after(20), torch.full((32, 64), (hvd.size() + 1) / 2), atol=1e-5)


# --- what stands around an optimizer


@pytest.mark.parametrize("spec", ["none", "topk(ratio=0.1)", "powersgd"])
def test_a_scheduler_made_before_wrapping(spec):
    model = small_cnn()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(inner, step_size=2, gamma=0.5)
    calls = []
    patched = inner.step
    inner.step = lambda *args, **kwargs: calls.append(1) or patched(*args, **kwargs)
    optimizer = hvdc.DistributedOptimizer(inner, model.named_parameters(), compression=spec)
    for step in range(4):
        train(model, optimizer, 1, start=step)
        scheduler.step()
        assert spread(model) == 0
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.025)
    assert len(calls) == 4
    optimizer.load_state_dict(optimizer.state_dict())
    scheduler.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0125)
    other = small_cnn()
    reference = hvdc.DistributedOptimizer(torch.optim.SGD(other.parameters(), 0.1), other.named_parameters(), spec)
    later = torch.optim.lr_scheduler.StepLR(reference, step_size=2, gamma=0.5)
    for step in range(4):
        train(other, reference, 1, start=step)
        later.step()
    assert torch.equal(flat(model), flat(other))


def test_wrapping_again():
    model = small_cnn()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    former = hvdc.DistributedOptimizer(inner, model.named_parameters(), compression="topk")
    scheduler = torch.optim.lr_scheduler.StepLR(former, step_size=1)
    train(model, former, 2)
    with pytest.raises(ValueError, match="already"):
        hvdc.DistributedOptimizer(former, model.named_parameters())
    optimizer = hvdc.DistributedOptimizer(inner, model.named_parameters(), compression="powersgd")
    train(model, optimizer, 2)
    scheduler.step()
    train(model, optimizer, 2)
    assert spread(model) == 0
    other = hvdc.DistributedOptimizer(sgd(model), model.named_parameters(), compression="qsgd")
    train(model, other, 2)
    assert spread(model) == 0
    with pytest.raises(RuntimeError, match="given to another one"):
        train(model, optimizer, 1)
    other.step()
    with pytest.raises(TypeError, match="neither copied nor pickled"):
        copy.deepcopy(other)


def test_rank_0_wraps_once_more_than_the_others():
    model = small_cnn()
    if hvd.rank() == 0:
        evaluated = copy.deepcopy(model)
        hvdc.DistributedOptimizer(sgd(evaluated), evaluated.named_parameters(), compression="topk")
    for spec in ("topk", "powersgd"):
        optimizer = hvdc.DistributedOptimizer(sgd(model, spec), model.named_parameters(), compression=spec)
        train(model, optimizer, 3)
        assert spread(model) == 0


# --- which parameters


@pytest.mark.parametrize("spec", ["topk(ratio=0.1)", "powersgd", "sketched_sgd"])
def test_a_tensor_under_two_names(spec):
    model = small_cnn()
    names = [*model.named_parameters(), ("tied", model[3].weight)]
    optimizer = hvdc.DistributedOptimizer(sgd(model, spec), names, compression=spec, **SMALL)
    train(model, optimizer, 6)
    alone = small_cnn()
    train(alone, hvdc.DistributedOptimizer(sgd(alone, spec), alone.named_parameters(), compression=spec, **SMALL), 6)
    assert torch.equal(flat(model), flat(alone))
    if parse(spec).whole_gradient:
        return
    model = small_cnn()
    bound = TorchCompression(as_compressor(spec)).bind([*model.named_parameters(), ("tied", model[3].weight)])
    train(model, hvd.DistributedOptimizer(sgd(model, spec), model.named_parameters(), compression=bound), 6)
    assert spread(model) == 0
    assert flat(model).isfinite().all()


@pytest.mark.parametrize("spec", SPECS)
def test_parameters_that_become_trainable_later_and_freeze_again(spec):
    model = small_cnn()
    model[3].requires_grad_(False)
    optimizer = hvdc.DistributedOptimizer(sgd(model, spec, momentum=0.0), model.named_parameters(), spec)
    start = model[3].weight.clone()
    train(model, optimizer, 3)
    assert torch.equal(model[3].weight, start)
    model[3].requires_grad_(True)
    train(model, optimizer, 3, start=3)
    assert not torch.equal(model[3].weight, start)
    assert spread(model) == 0
    model[3].requires_grad_(False)
    optimizer.zero_grad()
    start = model[3].weight.clone()
    train(model, optimizer, 3, start=6)
    assert torch.equal(model[3].weight, start)
    copied = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(copied)
    model[3].requires_grad_(True)
    train(model, optimizer, 3, start=9)
    assert spread(model) == 0


class Heads(nn.Module):
    """A trunk, and heads that are used in turn."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(40, 40)
        self.heads = nn.ModuleList(nn.Linear(40, 40) for _ in range(3))

    def forward(self, x, which):
        return self.heads[which](self.trunk(x).relu())


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("first", ["all", "one"])
def test_what_no_worker_has_a_gradient_of_does_not_move(spec, first):
    model = Heads()
    optimizer = hvdc.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters(), compression=spec
    )

    def step(number, *heads):
        optimizer.zero_grad()
        torch.manual_seed(10 * number + hvd.rank())
        sum(model(torch.randn(4, 40), head).square().mean() for head in heads).backward()
        optimizer.step()
        assert spread(model) == 0

    for number in range(3):
        step(number, *((0, 1, 2) if first == "all" else (0,)))
    for number in range(3, 9):
        used = number % 2
        before = [flat(head).clone() for head in model.heads]
        step(number, used)
        for i, head in enumerate(model.heads):
            assert torch.equal(flat(head), before[i]) == (i != used) or i == used
    # Of some workers only: the others move it all the same.
    for number in range(9, 13):
        step(number, (number + hvd.rank()) % 3)


def test_zeros_in_gradients_that_only_another_rank_had():
    model = Heads()
    optimizer = hvdc.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters())
    for step in range(6):
        optimizer.zero_grad(set_to_none=step < 3)
        model(torch.randn(4, 40), (step + hvd.rank()) % 3).square().mean().backward()
        optimizer.step()
        assert spread(model) == 0


def test_rows_as_dense_that_nobody_has_in_the_first_step():
    torch.manual_seed(0)
    table, line = nn.Embedding(20, 4, sparse=True), nn.Linear(4, 4)
    model = nn.Sequential(table, line)
    optimizer = hvdc.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters(), "topk", sparse_as_dense=True
    )
    for step in range(4):
        optimizer.zero_grad()
        given = table(torch.tensor([hvd.rank(), 2])) if step else torch.randn(2, 4)
        line(given).square().mean().backward()
        optimizer.step()
        assert spread(model) == 0


@pytest.mark.parametrize(
    "spec", ["topk(ratio=0.05)", "dgc(ratio=0.05)", "qsgd(bits=4, feedback=ef)", "powersgd(rank=1)"]
)
def test_the_residual_of_what_nobody_has_a_gradient_of_waits(spec):
    """Nothing of the gradients is lost: it comes when there are gradients again."""
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.zeros(40, 40)) for _ in range(2)]
    named = [(str(i), w) for i, w in enumerate(weights)]
    settings = "momentum(momentum=0)" if spec.startswith("dgc") else None
    spec = spec if settings is None else f"{spec[:-1]}, feedback={settings})"
    optimizer = hvdc.DistributedOptimizer(torch.optim.SGD(weights, lr=1.0), named, compression=spec)
    given = torch.randn(40, 40, generator=torch.Generator().manual_seed(hvd.rank()))
    mean = hvd.allreduce(given, op=hvd.Average, name="mean")

    def step(*factors):
        optimizer.zero_grad()
        sum((w * given * f).sum() for w, f in zip(weights, factors, strict=True) if f is not None).backward()
        optimizer.step()

    step(1.0, 1.0)
    for _ in range(5):
        before = weights[1].detach().clone()
        step(1.0, None)
        assert torch.equal(weights[1], before)
        assert weights[1].grad is None
    for _ in range(60):
        step(0.0, 0.0)
    tolerance = 0.05 if "qsgd" in spec else 1e-4
    assert torch.allclose(weights[1], -mean, atol=tolerance)
    assert torch.allclose(weights[0], -6 * mean, atol=6 * tolerance)


def test_new_parameters_without_a_name_are_refused():
    for change in ("inner", "groups", "one rank"):
        model = small_cnn()
        inner = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = hvdc.DistributedOptimizer(inner, model.named_parameters(), compression="topk")
        train(model, optimizer, 2)
        layer = nn.Linear(10, 10)
        model.append(layer)
        if change == "groups":
            optimizer.param_groups[0]["params"].extend(layer.parameters())
        elif change == "inner" or hvd.rank() == 1:
            inner.add_param_group({"params": list(layer.parameters())})
        with pytest.raises((ValueError, hvdc.WorkerFailed), match="had not when it was wrapped"):
            train(model, optimizer, 1)


def test_one_rank_alone_freezes():
    model, optimizer = wrapped("topk")
    train(model, optimizer, 2)
    if hvd.rank() == 1:
        model[3].requires_grad_(False)
    with pytest.raises((hvdc.WorkersDisagree, hvdc.WorkerFailed)):
        train(model, optimizer, 2)


# --- between backward and step


@pytest.mark.parametrize("spec", ["none", "topk"])
@pytest.mark.parametrize("steps", [0, 2])
def test_gradients_that_are_changed_before_the_step(spec, steps):
    for change in (
        lambda p: nn.utils.clip_grad_norm_(p, 1e-6),
        lambda p: p.grad.mul_(2),
        lambda p: setattr(p, "grad", None),
        lambda p: setattr(p, "grad", torch.ones_like(p)),
    ):
        model, optimizer = wrapped(spec)
        train(model, optimizer, steps)
        images, labels = batch(9)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        if hvd.rank() == 1:
            change(model[0].weight)
            with pytest.raises(RuntimeError, match="was changed after loss"):
                optimizer.step()
        else:  # it may learn of it in its next step
            with pytest.raises(hvdc.WorkerFailed, match="was changed after loss"):
                step_twice(model, optimizer)


def bound_after_backward(spec):
    """A model and Horovod's own optimizer with a bound compressor, between `backward` and `step`."""
    model = small_cnn()
    bound = TorchCompression(as_compressor(spec)).bind(model.named_parameters())
    optimizer = hvd.DistributedOptimizer(sgd(model, spec), model.named_parameters(), compression=bound)
    train(model, optimizer, 2)
    images, labels = batch(9)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images), labels).backward()
    return model, optimizer


@pytest.mark.parametrize("spec", ["none", "topk", "powersgd"])
def test_gradients_that_are_changed_under_horovods_own_optimizer(spec):
    model, optimizer = bound_after_backward(spec)
    nn.utils.clip_grad_norm_(model.parameters(), 1e-6)
    with pytest.raises((RuntimeError, hvdc.WorkerFailed), match="was changed after loss"):
        optimizer.step()
    hvd.barrier()  # what the ranks have told each other goes by names that the next model's gradients have as well


@pytest.mark.parametrize("spec", ["none", "topk", "powersgd", "qsgd"])
def test_gradients_that_one_rank_changes_under_horovods_own_optimizer(spec):
    model, optimizer = bound_after_backward(spec)
    if hvd.rank() == 1:
        model[0].weight.grad.mul_(2)
        with pytest.raises(RuntimeError, match="was changed after loss"):
            optimizer.step()
    else:  # it may learn of it in its next step
        with pytest.raises(RuntimeError, match=r"(?i)mismatched|was changed"):
            step_twice(model, optimizer)


@pytest.mark.parametrize("spec", ["topk", "threshold(0.001)"])
def test_a_gradient_that_is_changed_where_another_is_missing(spec):
    model = Heads()
    optimizer = hvdc.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters(), spec)

    def backward(*heads):
        optimizer.zero_grad()
        sum(model(torch.ones(4, 40), head).square().mean() for head in heads).backward()

    for heads in ((0,), (0, 1, 2)):
        backward(*heads)
        optimizer.step()
    backward(0, 1, 2)
    if hvd.rank() == 1:
        model.trunk.weight.grad.mul_(2)
    with pytest.raises((RuntimeError, hvdc.WorkerFailed), match="was changed after loss"):  # noqa: PT012
        optimizer.step()
        backward(0, 1, 2)  # they may learn of it in their next step
        optimizer.step()


def step_twice(model, optimizer):
    optimizer.step()
    train(model, optimizer, 1)


@pytest.mark.parametrize("spec", SPECS)
def test_clipping_after_synchronize(spec):
    model = small_cnn()
    optimizer = hvdc.DistributedOptimizer(sgd(model, spec, momentum=0.0), model.named_parameters(), spec)
    train(model, optimizer, 2)
    for step in range(2, 5):
        optimizer.zero_grad()
        images, labels = batch(step)
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.synchronize()
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        before = flat(model)
        if parse(spec).stateful:
            with pytest.raises(RuntimeError, match="exchange the means again"):
                optimizer.step()
            assert torch.equal(flat(model), before)
        with optimizer.skip_synchronize():
            optimizer.step()
        assert spread(model) == 0
        assert (flat(model) - before).norm() < 0.02


@pytest.mark.parametrize("spec", [spec for spec in SPECS if parse(spec).has_momentum])
def test_momentum_that_is_set_later(spec):
    model, optimizer = wrapped(spec)
    train(model, optimizer, 2)
    optimizer.param_groups[0]["momentum"] = 0.9
    with pytest.raises(ValueError, match="must be 0"):
        train(model, optimizer, 1)
    optimizer.param_groups[0]["momentum"] = 0.0
    optimizer.step()  # nothing is lost
    train(model, optimizer, 2)
    assert spread(model) == 0


@pytest.mark.parametrize("spec", [spec for spec in SPECS if parse(spec).has_momentum])
@pytest.mark.parametrize("steps", [0, 2])
def test_momentum_that_one_rank_sets_later(spec, steps):
    model, optimizer = wrapped(spec)
    train(model, optimizer, steps)
    if hvd.rank() == 1:
        optimizer.param_groups[0]["momentum"] = 0.9
        with pytest.raises(ValueError, match="must be 0"):
            train(model, optimizer, 1)
    else:  # it may learn of it in its next step
        with pytest.raises(hvdc.WorkerFailed, match="must be 0"):
            train(model, optimizer, 2)


def test_momentum_that_one_rank_sets_where_gradients_are_missing():
    model = Heads()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = hvdc.DistributedOptimizer(sgd, model.named_parameters(), "dgc", dense_below=0)

    def step(head):
        optimizer.zero_grad()
        model(torch.ones(4, 40), head).square().mean().backward()
        optimizer.step()

    for _ in range(3):
        step(hvd.rank())
    if hvd.rank() == 1:
        optimizer.param_groups[0]["momentum"] = 0.9
    with pytest.raises(ValueError if hvd.rank() == 1 else hvdc.WorkerFailed, match="must be 0"):  # noqa: PT012
        step(0)
        step(0)


@pytest.mark.parametrize("spec", SPECS)
def test_a_discriminator_whose_gradients_are_thrown_away(spec):
    def run(ignoring):
        torch.manual_seed(0)
        generator, discriminator = nn.Linear(40, 40), nn.Linear(40, 40)
        optimizers = [
            hvdc.DistributedOptimizer(torch.optim.SGD(m.parameters(), lr=0.05), m.named_parameters(), compression=spec)
            for m in (generator, discriminator)
        ]
        for step in range(4):
            torch.manual_seed(10 * step + hvd.rank())
            real, noise = torch.randn(4, 40), torch.randn(4, 40)
            optimizers[1].zero_grad()
            loss = (discriminator(real) - 1).square().mean() + discriminator(generator(noise).detach()).square().mean()
            loss.backward()
            optimizers[1].step()
            optimizers[0].zero_grad()
            if ignoring:
                with optimizers[1].ignore_gradients():
                    (discriminator(generator(noise)) - 1).square().mean().backward()
            else:
                discriminator.requires_grad_(False)
                (discriminator(generator(noise)) - 1).square().mean().backward()
                discriminator.requires_grad_(True)
            optimizers[0].step()
            assert spread(generator) == spread(discriminator) == 0
        return torch.cat([flat(generator), flat(discriminator)])

    assert torch.equal(run(True), run(False))
    assert same_on_all_ranks(run(True))


# --- ranks that do not come


def test_a_rank_that_skips_a_batch_is_named(monkeypatch, caplog):
    model, optimizer = wrapped("topk")
    train(model, optimizer, 3)
    monkeypatch.setattr(stalls._office(), "warn_after", 0.5)
    monkeypatch.setattr(stalls._office(), "fail_after", 2.0)
    hvd.barrier()
    if hvd.rank() == 1:
        hvd.allreduce(torch.zeros(1), name="the others have raised")
        return
    with pytest.raises(hvdc.WorkersStalled, match=r"waited . s for other ranks in step 4: .*rank 1 has ended step 3, "):
        train(model, optimizer, 1)
    hvd.allreduce(torch.zeros(1), name="the others have raised")
    [warning] = [record.message for record in caplog.records if "has waited" in record.message]
    assert warning.startswith(f"rank {hvd.rank()} has waited")


@pytest.mark.parametrize("value", ["x", "-1", "nan"])
def test_times_that_are_none(monkeypatch, value):
    monkeypatch.setenv("HVD_COMPRESS_STALL_SECONDS", value)
    with pytest.raises(ValueError, match=f"HVD_COMPRESS_STALL_SECONDS must be .*got '{value}'"):
        stalls.seconds_of("HVD_COMPRESS_STALL_SECONDS", 60)


def test_join_refuses_what_gathers():
    for spec in ("topk", "qsgd"):
        model, optimizer = wrapped(spec)
        train(model, optimizer, 2)
        with pytest.raises(RuntimeError, match=f"does not work with {spec}.* or use one of none, fp16, randomk"):
            hvd.join()
