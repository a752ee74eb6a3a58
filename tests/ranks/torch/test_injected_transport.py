"""An optimizer over a transport that it is given, here MPI's, which matches collectives by their order."""

import horovod.torch as hvd
import pytest
import torch
from torch import nn
from torch_ranks import HALF, batch, same_on_all_ranks, sgd, small_cnn, train

import hvd_compress.torch as hvdc
from hvd_compress.ops.torch import TorchOps


@pytest.fixture(scope="module")
def transport():
    if not hvd.mpi_enabled():
        pytest.skip("under Gloo there are no MPI ranks")
    from hvd_compress.transports.mpi import MPITransport

    return MPITransport(ops=TorchOps())


@pytest.mark.parametrize("bucket_bytes", [1, 1 << 30])
@pytest.mark.parametrize("spec", ["none", "topk(ratio=0.05)", "powersgd", "sketched_sgd", "threshold(threshold=0.01)"])
def test_it_trains_as_over_horovod(spec, bucket_bytes, transport):
    over_mpi, over_horovod = small_cnn(), small_cnn()
    optimizer = hvdc.DistributedOptimizer(
        sgd(over_mpi), over_mpi.named_parameters(), spec, bucket_bytes=bucket_bytes, transport=transport
    )
    got = train(over_mpi, optimizer, 5)
    assert same_on_all_ranks(got)
    expected = train(
        over_horovod,
        hvdc.DistributedOptimizer(sgd(over_horovod), over_horovod.named_parameters(), spec, bucket_bytes=bucket_bytes),
        5,
    )
    assert torch.allclose(got, expected, rtol=1e-3, atol=1e-5)
    assert optimizer.compression_stats()["bytes_sent"] > 0


def test_errors_and_changes_of_compression_reach_all(transport):
    model = small_cnn()
    optimizer = hvdc.DistributedOptimizer(sgd(model), model.named_parameters(), "topk(ratio=0.05)", transport=transport)
    train(model, optimizer, 2)
    optimizer.set_compression("qsgd")
    assert same_on_all_ranks(train(model, optimizer, 2, start=2))
    optimizer.set_compression("none") if hvd.rank() == 0 else None
    error = hvdc.WorkersDisagree if hvd.rank() == 0 else hvdc.WorkerFailed
    with pytest.raises(error, match=r"not all called set_compression\(\)"):
        train(model, optimizer, 1)


def test_a_transport_has_its_own_workers(transport):
    model = small_cnn()
    with pytest.raises(ValueError, match="either transport or process_set"):
        hvdc.DistributedOptimizer(sgd(model), model.named_parameters(), transport=transport, process_set=HALF)


def test_rows_and_unused_layers_keep_one_order(transport):
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {"rows": nn.Embedding(50, 30, sparse=True), "used": nn.Linear(30, 40), "at_times": nn.Linear(40, 40)}
    )
    optimizer = hvdc.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), 0.1), model.named_parameters(), "topk", bucket_bytes=1, transport=transport
    )
    for step in range(3):
        optimizer.zero_grad()
        hidden = model["used"](model["rows"](torch.arange(step, step + 4)))
        if step != 1 or hvd.rank() != 1:
            hidden = model["at_times"](hidden)
        hidden.square().sum().backward()
        optimizer.step()
    assert same_on_all_ranks(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))


def test_a_closure_s_loss_keeps_its_shape(transport):
    model = small_cnn()
    optimizer = hvdc.DistributedOptimizer(sgd(model), model.named_parameters(), "topk", transport=transport)

    def closure():
        optimizer.zero_grad()
        images, labels = batch(0)
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        return loss

    assert optimizer.step(closure).shape == ()


def test_adam_in_two_phases_asks_the_transport_for_its_workers(transport):
    model = small_cnn()
    optimizer = hvdc.CompressedAdam(
        model.parameters(), named_parameters=model.named_parameters(), warmup_steps=2, transport=transport
    )
    assert same_on_all_ranks(train(model, optimizer, 4))
    assert optimizer.param_groups[0]["frozen_after"] == 2
