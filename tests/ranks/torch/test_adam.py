"""Adam with a compressed momentum, on real ranks."""

import copy

import horovod.torch as hvd
import pytest
import torch
from torch import nn
from torch_ranks import LAST, batch, flat, repeats, same_on_all_ranks, small_cnn, train

import hvd_compress.torch as hvdc
from hvd_compress import Layout, Simulation, parse

SPECS = ("onebit", "topk(ratio=0.1)", "sketched_sgd(budget=0.2)", "powersgd")


def adam(model, compression, warmup, **settings):
    return hvdc.CompressedAdam(
        model.parameters(),
        named_parameters=model.named_parameters(),
        warmup_steps=warmup,
        compression=compression,
        **({"lr": 0.01, "eps": 0.01} | settings),  # a variance of a few steps is next to 0 here and there
    )


def test_the_first_phase_is_adamw():
    mine, other = small_cnn(), small_cnn()
    inner = torch.optim.AdamW(other.parameters(), lr=0.01, eps=0.01, weight_decay=0.1)
    expected = train(other, hvdc.DistributedOptimizer(inner, other.named_parameters()), 6)
    assert torch.allclose(train(mine, adam(mine, "onebit", 100, weight_decay=0.1), 6), expected, atol=1e-5)


def change_compression(model, optimizer):
    optimizer.set_compression("topk(ratio=1, feedback=adam(start=3))")


def thaw(model, optimizer):
    for p in model.parameters():
        p.requires_grad_(True)


@pytest.mark.parametrize("change", [None, change_compression, thaw])
@pytest.mark.parametrize("compression", ["none", "topk(ratio=1)"])
def test_without_loss_it_is_adam_with_a_frozen_variance(compression, change):
    """All ranks' gradients are computed here as well, and averaged without any help."""
    model, alone = small_cnn(), small_cnn()
    optimizer, warmup, steps = adam(model, compression, 3), 3, 8
    if change is thaw:
        next(model.parameters()).requires_grad_(False)
    train(model, optimizer, steps)
    if change is not None:  # both phases begin anew
        change(model, optimizer)
        train(model, optimizer, steps, start=steps)
    size = next(model.parameters()).numel()
    frozen = torch.arange(flat(alone).numel()) < (size if change is thaw else 0)
    shared = m = v = summed = updates = torch.zeros(flat(alone).numel())
    for step in range(steps if change is None else 2 * steps):
        gradients = []
        for rank in range(hvd.size()):
            generator = torch.Generator().manual_seed(1000 * step + rank)
            images = torch.randn(16, 1, 8, 8, generator=generator)
            alone.zero_grad()
            nn.functional.cross_entropy(alone(images), images.sum(dim=(1, 2, 3)).abs().long() % 10).backward()
            gradients.append(torch.cat([p.grad.reshape(-1) for p in alone.parameters()]))
        g = torch.stack(gradients).mean(dim=0)
        trained = (~frozen if step < steps else torch.ones_like(frozen)).float()
        shared = 0.9 * (torch.zeros_like(m) if step == steps else shared) + 0.1 * g
        if step % steps < warmup:
            m, v = 0.9 * m + 0.1 * g * trained, v + trained * (0.001 * g * g - 0.001 * v)
            updates, summed = updates + trained, summed + trained
            terms = summed
        else:
            m, summed = shared * trained, summed + trained
            terms = torch.full_like(m, step % steps + 1)
        change_of = 0.01 * m / (1 - 0.9**terms) / ((v / (1 - 0.999**updates)).sqrt() + 0.01)
        offset = 0
        with torch.no_grad():
            for p in alone.parameters():
                here = slice(offset, offset + p.numel())
                p -= torch.where((v > 0) & (trained > 0), change_of, 0.0)[here].view(p.shape)
                offset += p.numel()
    assert torch.allclose(flat(model), flat(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compression", ["onebit", "ef_signsgd", "powersgd"])
def test_what_has_no_gradient_in_the_first_phase_is_only_decayed_in_the_second(compression):
    torch.manual_seed(0)
    embedding = nn.Embedding(200, 16)
    optimizer = adam(embedding, compression, 3, eps=1e-8, weight_decay=0.1)
    decayed = embedding.weight.detach().clone()
    for step in range(8):
        optimizer.zero_grad()
        rows = torch.arange(20) if step < 3 else torch.arange(step, 40)
        (embedding(rows) * (1 + hvd.rank())).square().sum().backward()
        optimizer.step()
        decayed *= 1 - 0.01 * 0.1
    assert torch.equal(embedding.weight[20:], decayed[20:])
    assert not (embedding.weight[:20] == decayed[:20]).any()


@pytest.mark.parametrize("compression", SPECS)
def test_ranks_agree_send_less_and_learn(compression):
    model = small_cnn()
    optimizer = adam(model, compression, 5, lr=0.005)
    images, labels = batch(0, 64)

    def loss():
        return hvd.allreduce(nn.functional.cross_entropy(model(images), labels).detach(), name="loss").item()

    before = loss()
    for step in range(65):
        if step == 5:
            dense = optimizer.compression_stats()["bytes_sent"]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    assert loss() < 0.8 * before
    assert same_on_all_ranks(flat(model))
    sent = optimizer.compression_stats()["bytes_sent"] - dense
    assert sent / 60 < 0.6 * dense / 5


@pytest.mark.parametrize("compression", SPECS)
def test_a_run_resumes_exactly(compression, tmp_path):
    whole_model = small_cnn()
    whole = train(whole_model, adam(whole_model, compression, 2), 8)
    for cut in (1, 5):
        first = small_cnn()
        optimizer = adam(first, compression, 2)
        train(first, optimizer, cut)
        path = tmp_path / f"{hvd.rank()}.pt"
        torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, path)
        second = small_cnn(seed=1)
        resumed = adam(second, compression, 2)
        saved = torch.load(path, weights_only=True)
        second.load_state_dict(saved["model"])
        resumed.load_state_dict(saved["optimizer"])
        assert repeats(train(second, resumed, 8 - cut, start=cut), whole)


@pytest.mark.parametrize("older", [False, True])
def test_rank_0_may_broadcast_what_it_alone_has_loaded(older):
    """All states have the same tensors in both phases, or Horovod would wait for ever; older ones are filled up."""
    model = small_cnn()
    optimizer = adam(model, "onebit", 2)
    trained = train(model, optimizer, 5)
    checkpoint = copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    if older:
        for state in checkpoint["optimizer"]["state"].values():
            del state["exp_avg"]
    again = small_cnn(seed=1)
    resumed = adam(again, "onebit", 2)
    if hvd.rank() == 0:
        again.load_state_dict(checkpoint["model"])
        resumed.load_state_dict(checkpoint["optimizer"])
    hvd.broadcast_parameters(again.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(resumed, root_rank=0)
    assert torch.equal(flat(again), trained)
    expected = optimizer.state_dict()["state"]
    for key, state in resumed.state_dict()["state"].items():
        assert state["step"] == 5
        assert torch.equal(state["exp_avg_sq"], expected[key]["exp_avg_sq"])
        momentum = expected[key]["exp_avg"]
        assert momentum.any()
        assert torch.equal(state["exp_avg"], torch.zeros_like(momentum) if older else momentum)


def test_a_single_process_goes_on_with_adam_from_a_state_of_several():
    model = small_cnn()
    optimizer = adam(model, "onebit", 2)
    train(model, optimizer, 3)
    alone = hvdc.CompressedAdam(
        model.parameters(), named_parameters=model.named_parameters(), warmup_steps=2, process_set=LAST
    )
    alone.load_state_dict(optimizer.state_dict())
    assert alone.param_groups[0]["frozen_after"] == 0


def test_what_makes_no_sense_is_refused():
    model = small_cnn()
    for compression, settings, error, message in (
        ("signsgd", {}, ValueError, "signsgd allows no feedback"),
        ("onebit", {"warmup": 0}, ValueError, r"start must be in \[1, inf\); got 0"),
        ("onebit", {"betas": (1.0, 0.9)}, ValueError, r"betas\[0\] must be in \[0, 1\); got 1.0"),
        ("onebit", {"eps": -1.0}, ValueError, "eps must be at least 0; got -1.0"),
        ("topq", {}, ValueError, "unknown compressor"),
        (3, {}, TypeError, "compression must be one of"),
    ):
        with pytest.raises(error, match=message):
            adam(model, compression, **({"warmup": 5} | settings))
    optimizer = adam(model, "onebit", 5)
    with pytest.raises(ValueError, match=r"must have feedback=adam\(start=5\); got topk"):
        optimizer.set_compression("topk")
    with pytest.raises(ValueError, match="keeps the momentum itself"):
        hvdc.DistributedOptimizer(
            torch.optim.Adam(model.parameters()), model.named_parameters(), "onebit(feedback=adam(start=5))"
        )


def test_momenta_are_those_of_the_paper():
    """What comes out is the mean gradient at first, then the mean of the compressed momenta."""
    simulation = Simulation(parse("topk(ratio=0.25, feedback=adam(start=2))"), Layout.flat(40), 2)
    m, residuals = torch.zeros(40), torch.zeros(2, 40)
    for step in range(5):
        gradients = torch.randn(2, 40, generator=torch.Generator().manual_seed(step))
        mean = torch.from_numpy(simulation.reduce([g.numpy() for g in gradients])[0].mean)
        if step < 2:
            expected = gradients.mean(dim=0)
            m = 0.9 * m + 0.1 * expected
        else:
            corrected = 0.9 * m + 0.1 * gradients + residuals
            sent = torch.zeros(2, 40)
            for row, kept in zip(corrected, sent, strict=True):
                largest = row.abs().topk(10).indices
                kept[largest] = row[largest]
            residuals, m = corrected - sent, sent.mean(dim=0)
            expected = m
        assert torch.allclose(mean, expected, atol=1e-6)
