"""The compressors under Horovod's own, unpatched optimizer."""

from itertools import count

import horovod.torch as hvd
import pytest
import torch
from horovod.common.exceptions import HorovodInternalError
from torch import nn
from torch_ranks import batch, flat, repeats, same_on_all_ranks, sgd, small_cnn, train

import hvd_compress.torch as hvdc
from hvd_compress.compressors.named import as_compressor
from hvd_compress.torch.compression import TorchCompression

SPECS = ["none", "fp16", "topk(ratio=0.05)", "randomk(ratio=0.1)", "qsgd", "powersgd"]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("groups", [None, 2])
def test_horovods_own_optimizer_with_a_bound_compressor(spec, groups):
    theirs, ours = small_cnn(), small_cnn()
    bound = TorchCompression(as_compressor(spec)).bind(theirs.named_parameters())
    expected = train(
        ours, hvdc.DistributedOptimizer(sgd(ours), ours.named_parameters(), compression=spec, bucket_bytes=1), 8
    )
    got = train(
        theirs,
        hvd.DistributedOptimizer(sgd(theirs), theirs.named_parameters(), compression=bound, groups=groups),
        8,
    )
    assert same_on_all_ranks(got)
    assert bound.compression_stats()["bytes_sent"] > 0
    if hvd.size() == 2:
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5)
    else:  # where the order of a sum may differ, and with it a random rounding
        assert torch.dist(got, expected) < 0.05 * torch.dist(expected, flat(small_cnn()))


@pytest.mark.parametrize("method", [hvdc.Compression.topk, hvdc.Compression.randomk])
def test_bound_compressor_sums_when_told_so(method):
    def gradient(op):
        model = small_cnn()
        bound = method(ratio=0.1).bind(model.named_parameters(), op=op)
        optimizer = hvd.DistributedOptimizer(sgd(model), model.named_parameters(), compression=bound, op=op)
        images, labels = batch(0)
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.synchronize()
        return torch.cat([p.grad.reshape(-1) for p in model.parameters()])

    assert torch.allclose(gradient(hvd.Sum), hvd.size() * gradient(hvd.Average), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("spec", ["none", "topk", "powersgd", "qsgd"])
def test_a_parameter_without_coordinates(spec):
    layer = nn.Linear(40, 40)
    layer.nothing = nn.Parameter(torch.zeros(0, 3))
    bound = TorchCompression(as_compressor(spec)).bind(layer.named_parameters(), dense_below=0)
    optimizer = hvd.DistributedOptimizer(sgd(layer, spec), layer.named_parameters(), compression=bound)
    for step in range(3):
        optimizer.zero_grad()
        (layer(torch.full((2, 40), hvd.rank() + step + 1.0)).square().mean() + layer.nothing.sum()).backward()
        optimizer.step()
    assert same_on_all_ranks(flat(layer))


@pytest.mark.parametrize("name", ["none", "fp16"])
def test_stateless_compressors_replace_horovods_class_unbound(name):
    theirs, ours = small_cnn(), small_cnn()
    settings = {"compression": getattr(hvd.Compression, name)}
    expected = train(theirs, hvd.DistributedOptimizer(sgd(theirs), theirs.named_parameters(), **settings), 5)
    settings = {"compression": getattr(hvdc.Compression, name)}
    assert repeats(train(ours, hvd.DistributedOptimizer(sgd(ours), ours.named_parameters(), **settings), 5), expected)


def test_unbound_state_under_horovods_optimizer_says_to_bind():
    model = small_cnn()
    optimizer = hvd.DistributedOptimizer(sgd(model), model.named_parameters(), compression=hvdc.Compression.topk())
    images, labels = batch(0)
    with pytest.raises(RuntimeError, match=r"bind it: compression = compression.bind\(model.named_parameters\(\)\)"):
        nn.functional.cross_entropy(model(images), labels).backward()
    del optimizer


_numbers = count()


def alone(spec, sparse=False):
    """A model of names that no other test has, since after an error collectives may be pending; and what trains it."""
    torch.manual_seed(0)
    model, number = nn.Sequential(nn.Embedding(40, 30, sparse=sparse), nn.Linear(30, 40)), next(_numbers)
    named = [(f"alone.{number}.{name}", p) for name, p in model.named_parameters()]
    bound = TorchCompression(as_compressor(spec)).bind(named)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), named, compression=bound)

    def backward():
        optimizer.zero_grad()
        model(torch.arange(3) + hvd.rank()).square().sum().backward()

    return model, bound, optimizer, backward


@pytest.mark.parametrize("spec", ["none", "topk(ratio=0.1)", "powersgd"])
def test_one_rank_that_loads_is_told_beside_a_sparse_gradient(spec):
    _, bound, optimizer, backward = alone(spec, sparse=True)
    for _ in range(2):
        state = bound.state_dict()
        backward()
        optimizer.step()
    if hvd.rank() == 0:
        bound.load_state_dict(state)
    with pytest.raises((hvdc.WorkersDisagree, HorovodInternalError), match=r"load_state_dict|Mismatched"):  # noqa: PT012
        backward()
        optimizer.step()


@pytest.mark.parametrize("spec", ["none", "topk(ratio=0.1)", "powersgd", "signsgd"])
@pytest.mark.parametrize("which", [0, -1])
def test_a_gradient_that_one_rank_changes_after_backward(spec, which):
    model, _, optimizer, backward = alone(spec)
    backward()
    optimizer.step()
    backward()
    if hvd.rank() == 0:
        list(model.parameters())[which].grad.mul_(2)
    with pytest.raises((RuntimeError, HorovodInternalError), match=r"was changed after|Mismatched"):  # noqa: PT012
        optimizer.step()
        backward()  # they learn of it in their next step
        optimizer.step()
