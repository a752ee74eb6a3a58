"""Another compressor in mid-training."""

import io

import horovod.torch as hvd
import pytest
import torch
from torch import nn
from torch_ranks import LAST, batch, flat, repeats, same_on_all_ranks, sgd, small_cnn, train

import hvd_compress.torch as hvdc

SPECS = ["none", "fp16", "topk(ratio=0.05)", "topk(ratio=0.05, scope=model)", "randomk(ratio=0.1)", "qsgd", "powersgd"]


def wrap(model, spec, **settings):
    return hvdc.DistributedOptimizer(sgd(model), model.named_parameters(), compression=spec, **settings)


def gradients(model, optimizer, step):
    """Return this rank's own gradients and the means that came of them."""
    optimizer.zero_grad()
    images, labels = batch(step)
    own = torch.autograd.grad(nn.functional.cross_entropy(model(images), labels), list(model.parameters()))
    nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.synchronize()
    return torch.cat([g.reshape(-1) for g in own]), torch.cat([p.grad.reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize("before", SPECS)
@pytest.mark.parametrize("after", ["none", "topk(ratio=0.1)", "powersgd"])
@pytest.mark.parametrize("bucket_bytes", [1, 1 << 30])
def test_any_after_any(before, after, bucket_bytes):
    model = small_cnn()
    optimizer = wrap(model, before, bucket_bytes=bucket_bytes)
    train(model, optimizer, 3)
    optimizer.set_compression(after)
    train(model, optimizer, 3, start=3)
    optimizer.set_compression(before, rules=[("5.*", "qsgd")])
    assert same_on_all_ranks(train(model, optimizer, 2, start=6))
    stats = optimizer.compression_stats()
    assert stats["steps"] == 8
    assert stats["dense_bytes"] == 8 * 4 * flat(model).numel()


@pytest.mark.parametrize("predivide", [1.0, 2.0])
@pytest.mark.parametrize("before", ["topk(ratio=0.02)", "topk(ratio=0.02, scope=model)", "powersgd(rank=1)"])
def test_nothing_is_lost(before, predivide):
    model = small_cnn()
    optimizer = wrap(model, before, gradient_predivide_factor=predivide)
    owed, got = torch.zeros_like(flat(model)), torch.zeros_like(flat(model))
    for step in range(4):
        if step == 3:
            assert not torch.allclose(got, hvd.allreduce(owed, name="owed"), rtol=1e-2, atol=1e-3)
            norm = optimizer.compression_stats()["residual_norm"]
            optimizer.set_compression("none")
            assert optimizer.compression_stats()["residual_norm"] == pytest.approx(norm) != 0
        own, mean = gradients(model, optimizer, step)
        owed += own
        got += mean
    assert torch.allclose(got, hvd.allreduce(owed, name="owed"), rtol=1e-4, atol=1e-5)
    assert optimizer.compression_stats()["residual_norm"] == 0
    own, mean = gradients(model, optimizer, 4)  # and it is added but once
    assert torch.allclose(mean, hvd.allreduce(own, name="owed"), rtol=1e-4, atol=1e-5)


def test_the_seconds_and_bytes_go_on_counting():
    model = small_cnn()
    optimizer = wrap(model, "powersgd")
    train(model, optimizer, 2)
    before = optimizer.compression_stats()
    optimizer.set_compression("topk(ratio=0.1)")
    now = optimizer.compression_stats()
    assert now["residual_norm"] == pytest.approx(before.pop("residual_norm"))
    assert all(now[key] == pytest.approx(value) for key, value in before.items() if key != "collectives")
    assert now["collectives"] == before["collectives"]


def test_a_step_that_is_not_finite_keeps_what_is_carried():
    model = small_cnn()
    optimizer = wrap(model, "topk(ratio=0.02)")
    for step in range(2):
        gradients(model, optimizer, step)
    optimizer.set_compression("none")
    norm = optimizer.compression_stats()["residual_norm"]
    weight = model[5].bias
    hook = weight.register_hook(lambda g: g * (float("nan") if hvd.rank() == 1 else 1))
    for step in range(2):
        gradients(model, optimizer, step)
        assert not weight.grad.isfinite().all()
        assert optimizer.compression_stats()["residual_norm"] == norm != 0
    hook.remove()
    gradients(model, optimizer, 2)
    assert optimizer.compression_stats()["residual_norm"] == 0


@pytest.mark.parametrize("stepped", [False, True])
def test_a_checkpoint_holds_what_is_carried(stepped):
    model = small_cnn()
    optimizer = wrap(model, "topk(ratio=0.02)")
    train(model, optimizer, 3)
    optimizer.set_compression("powersgd", rules=[("0.*", "none")])
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    norm = optimizer.compression_stats()["residual_norm"]
    expected = train(model, optimizer, 3, start=3)

    resumed = small_cnn(seed=5)
    again = wrap(resumed, "powersgd", rules=[("0.*", "none")])
    if stepped:
        train(resumed, again, 2)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    assert again.compression_stats()["residual_norm"] == norm != 0
    assert repeats(train(resumed, again, 3, start=3), expected)


def test_what_another_rank_carries_is_left_out():
    model = small_cnn()
    optimizer = wrap(model, "topk(ratio=0.02)")
    train(model, optimizer, 2)
    optimizer.set_compression("none")
    state = hvd.broadcast_object(optimizer.state_dict(), 0)
    if hvd.rank() == 0:
        optimizer.load_state_dict(state)
    else:
        with pytest.warns(UserWarning, match="saved by another rank"):
            optimizer.load_state_dict(state)
    assert (optimizer.compression_stats()["residual_norm"] == 0) == (hvd.rank() > 0)
    assert same_on_all_ranks(train(model, optimizer, 2))


def test_a_loaded_state_is_carried_as_well():
    model = small_cnn()
    optimizer = wrap(model, "topk(ratio=0.02)")
    train(model, optimizer, 2)
    again = wrap(model, "topk(ratio=0.02)")
    again.load_state_dict(optimizer.state_dict())
    again.set_compression("none")
    norms = [o.compression_stats()["residual_norm"] for o in (again, optimizer)]
    assert norms[0] == pytest.approx(norms[1]) != 0
    assert again.compression_stats()["steps"] == 2


@pytest.mark.parametrize("after", ["none", "topk(ratio=0.5)", "qsgd"])
def test_sparse_residuals_are_carried(after):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(60, 30))
    optimizer = hvdc.DistributedOptimizer(torch.optim.SGD([weight], lr=1.0), [("w", weight)], compression="topk(0.2)")

    def step(rows):
        values = torch.randn(len(rows), 30)
        indices = torch.tensor([rows], dtype=torch.int64).reshape(1, -1)
        weight.grad = torch.sparse_coo_tensor(indices, values, weight.shape, check_invariants=True)
        own = weight.grad.to_dense()
        optimizer.synchronize()
        return own, weight.grad.to_dense()

    owed, got = step([1, 2, 3, 4])
    optimizer.set_compression(after)
    saved = optimizer.state_dict()
    optimizer = hvdc.DistributedOptimizer(torch.optim.SGD([weight], lr=1.0), [("w", weight)], compression=after)
    optimizer.load_state_dict(saved)
    for rows in ([2, 9], *[[]] * 8):
        own, mean = step(rows)
        owed, got = owed + own, got + mean
    tolerance = 1.0 if after == "qsgd" else 1e-5
    assert torch.allclose(got, hvd.allreduce(owed, name="owed"), atol=tolerance)
    assert (got[[1, 2, 3, 4, 9]] != 0).any(dim=1).all()


def test_between_steps_only():
    model = small_cnn()
    optimizer = wrap(model, "powersgd")
    images, labels = batch(0)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        with pytest.raises(RuntimeError, match="call it between steps"):
            optimizer.set_compression("topk")
        optimizer.step()
    with pytest.raises(ValueError, match="unknown compressor 'topq'"):
        optimizer.set_compression("topq")
    with pytest.raises(ValueError, match="rule 'x' matches none"):
        optimizer.set_compression("topk", rules=[("x", "none")])
    train(model, optimizer, 1)
    optimizer.synchronize()
    optimizer.set_compression("qsgd")  # before the step of gradients that are synchronized


def test_ranks_that_disagree_on_the_new_compressor():
    model = small_cnn()
    optimizer = wrap(model, "powersgd")
    train(model, optimizer, 2)
    optimizer.set_compression("topk", rules=[("5.*", "qsgd(bits=8)" if hvd.rank() else "qsgd")])
    with pytest.raises(hvdc.WorkersDisagree, match=r"rules, number 1: rank 0: 5.\*=qsgd; ranks? 1.*qsgd\(bits=8\)"):
        train(model, optimizer, 1)


@pytest.mark.parametrize("before", ["none", "topk(ratio=0.1)", "powersgd"])
@pytest.mark.parametrize("caller", [0, 1])
def test_a_rank_that_did_not_call_it(before, caller):
    model = small_cnn()
    optimizer = wrap(model, before, dense_below=0)
    train(model, optimizer, 2)
    if hvd.rank() == caller:
        optimizer.set_compression("qsgd")
        with pytest.raises(hvdc.WorkersDisagree, match=r"not all called set_compression\(\)"):
            train(model, optimizer, 1)
    else:
        with pytest.raises((hvdc.WorkerFailed, hvdc.WorkersDisagree), match=r"not all called set_compression\(\)"):
            train(model, optimizer, 1)


def test_a_single_process_checks_its_arguments_too():
    optimizer = wrap(small_cnn(), "none", process_set=LAST)
    optimizer.set_compression("topk")
    with pytest.raises(ValueError, match="unknown compressor"):
        optimizer.set_compression("topq")


@pytest.mark.parametrize("before", ["topk(ratio=0.02)", "powersgd(rank=1)", "qsgd(feedback=ef)"])
@pytest.mark.parametrize("op", [hvd.Average, hvd.Sum])
def test_nothing_is_lost_under_horovods_own_optimizer(before, op):
    model = small_cnn()
    bound = hvdc.Compression.none.bind(model.named_parameters(), op=op)
    bound.set_compression(before)  # before the first step, too
    optimizer = hvd.DistributedOptimizer(sgd(model), model.named_parameters(), compression=bound, op=op)
    owed, got = torch.zeros_like(flat(model)), torch.zeros_like(flat(model))
    for step in range(4):
        if step == 3:
            assert not torch.allclose(got, hvd.allreduce(owed, name="owed", op=op), rtol=1e-2, atol=1e-3)
            bound.set_compression("none")
            state = bound.state_dict()
            assert bound.compression_stats()["residual_norm"] > 0
            bound.load_state_dict(state)
        own, mean = gradients(model, optimizer, step)
        owed += own
        got += mean
    assert torch.allclose(got, hvd.allreduce(owed, name="owed", op=op), rtol=1e-4, atol=1e-4)
    own, mean = gradients(model, optimizer, 4)  # and it is added but once
    assert torch.allclose(mean, hvd.allreduce(own, name="owed", op=op), rtol=1e-4, atol=1e-4)
    assert bound.compression_stats()["residual_norm"] == 0
    with pytest.raises(ValueError, match="whole model at once"):
        bound.set_compression("topk(scope=model)")


@pytest.mark.parametrize("caller", [0, 1])
def test_a_rank_that_did_not_call_it_under_horovods_own_optimizer(caller):
    model = small_cnn()
    bound = hvdc.Compression.topk(ratio=0.1).bind(model.named_parameters(), dense_below=0)
    optimizer = hvd.DistributedOptimizer(sgd(model), model.named_parameters(), compression=bound)
    train(model, optimizer, 2)
    if hvd.rank() == caller:
        bound.set_compression("qsgd")
        with pytest.raises(hvdc.WorkersDisagree, match=r"not all called set_compression\(\)"):
            train(model, optimizer, 1)
    else:
        with pytest.raises(Exception, match=r"Mismatched|not all called"):
            train(model, optimizer, 1)


def test_the_number_of_backward_passes_stays():
    model = small_cnn()
    optimizer = wrap(model, "topk(ratio=0.1)")
    optimizer.set_backward_passes_per_step(2)
    train(model, optimizer, 1, passes=2)
    optimizer.set_compression("qsgd")
    assert same_on_all_ranks(train(model, optimizer, 2, passes=2, start=1))


def test_bound_it_is_told_before_the_first_step_as_well():
    model = nn.Sequential(small_cnn())  # names of its own: Horovod keeps what is pending
    bound = hvdc.Compression.topk(ratio=0.1).bind(model.named_parameters())
    if hvd.rank() == 0:
        bound.set_compression("qsgd")
    optimizer = hvd.DistributedOptimizer(sgd(model), model.named_parameters(), compression=bound)
    with pytest.raises(hvdc.WorkersDisagree, match="compression: rank 0: qsgd"):
        train(model, optimizer, 1)
