"""A run stopped and resumed is bit-identical to one that was not."""

import copy
import io

import horovod.torch as hvd
import pytest
import torch
from torch_ranks import SPECS, repeats, same_on_all_ranks, sgd, small_cnn, train

import hvd_compress.torch as hvdc
from hvd_compress import parse


def saved_and_loaded(state):
    """Through a file, as a checkpoint goes, and as torch.load reads by default: tensors and plain types only."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def adam(model, spec):
    return torch.optim.Adam(model.parameters(), lr=1e-3)


@pytest.mark.parametrize(
    ("spec", "make"),
    [(spec, make) for spec in SPECS for make in (sgd, adam) if not parse(spec).has_momentum or make is sgd],
)
def test_resumed_is_uninterrupted(spec, make):
    model = small_cnn()
    optimizer = hvdc.DistributedOptimizer(make(model, spec), model.named_parameters(), compression=spec)
    train(model, optimizer, 3)
    checkpoint = saved_and_loaded({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    expected = train(model, optimizer, 3, start=3)

    resumed = small_cnn(seed=5)
    again = hvdc.DistributedOptimizer(make(resumed, spec), resumed.named_parameters(), compression=spec)
    resumed.load_state_dict(checkpoint["model"])
    again.load_state_dict(copy.deepcopy(checkpoint["optimizer"]))  # PyTorch keeps and changes what it is given
    assert repeats(train(resumed, again, 3, start=3), expected)
    assert same_on_all_ranks(expected)

    # The same with an optimizer that has already stepped.
    resumed.load_state_dict(checkpoint["model"])
    again.load_state_dict(checkpoint["optimizer"])
    assert repeats(train(resumed, again, 3, start=3), expected)


@pytest.mark.parametrize("spec", [spec for spec in SPECS if not parse(spec).whole_gradient and spec != "none"])
def test_resumed_is_uninterrupted_under_horovods_own_optimizer(spec):
    from hvd_compress.compressors.named import as_compressor
    from hvd_compress.torch.compression import TorchCompression

    def start(seed):
        model = small_cnn(seed)
        bound = TorchCompression(as_compressor(spec)).bind(model.named_parameters())
        return model, bound, hvd.DistributedOptimizer(sgd(model, spec), model.named_parameters(), compression=bound)

    model, bound, optimizer = start(0)
    train(model, optimizer, 3)
    checkpoint = saved_and_loaded(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "compression": bound.state_dict()}
    )
    expected = train(model, optimizer, 3, start=3)

    resumed, bound, again = start(5)
    resumed.load_state_dict(checkpoint["model"])
    again.load_state_dict(checkpoint["optimizer"])
    bound.load_state_dict(checkpoint["compression"])
    assert repeats(train(resumed, again, 3, start=3), expected)
    with pytest.raises(ValueError, match="the state was saved with"):
        hvdc.Compression.qsgd(bits=2).bind(resumed.named_parameters()).load_state_dict(checkpoint["compression"])


def test_state_before_the_first_step_passes_through():
    model = small_cnn()
    optimizer = hvdc.DistributedOptimizer(sgd(model), model.named_parameters(), compression="powersgd")
    train(model, optimizer, 2)
    state = saved_and_loaded(optimizer.state_dict())
    other = hvdc.DistributedOptimizer(sgd(model), model.named_parameters(), compression="powersgd")
    other.load_state_dict(state)
    again = other.state_dict()["compression"]
    assert again["steps"] == 2
    got, expected = (
        [bucket["state"]["local"]["residual"] for bucket in buckets if bucket["state"]["local"]]
        for buckets in (again["buckets"], state["compression"]["buckets"])
    )
    assert torch.equal(torch.cat(got), torch.cat(expected))


def test_a_state_of_rank_0_loses_its_residual_elsewhere():
    model = small_cnn()
    optimizer = hvdc.DistributedOptimizer(sgd(model), model.named_parameters(), compression="powersgd")
    train(model, optimizer, 2)
    own = optimizer.compression_stats()["residual_norm"]
    state = hvd.broadcast_object(optimizer.state_dict(), 0)
    if hvd.rank() == 0:
        optimizer.load_state_dict(state)
        assert optimizer.compression_stats()["residual_norm"] == own
    else:
        with pytest.warns(UserWarning, match="saved by another rank"):
            optimizer.load_state_dict(state)
        assert optimizer.compression_stats()["residual_norm"] == 0
    assert same_on_all_ranks(train(model, optimizer, 2))


def test_states_that_do_not_fit():
    model, settings = small_cnn(), {"compression": "powersgd", "dense_below": 1}
    optimizer = hvdc.DistributedOptimizer(sgd(model), model.named_parameters(), **settings)
    train(model, optimizer, 1)
    state = optimizer.state_dict()
    other = hvdc.DistributedOptimizer(sgd(model), model.named_parameters(), compression="topk")
    with pytest.raises(ValueError, match=r"saved with compression powersgd, and this optimizer has topk"):
        other.load_state_dict(state)
    other = hvdc.DistributedOptimizer(sgd(model), model.named_parameters(), **settings, bucket_bytes=1)
    train(model, other, 1)
    before = other.compression_stats()["residual_norm"]
    with pytest.raises(ValueError, match="dense_below, groups and sparse_as_dense must be those of the run"):
        other.load_state_dict(state)
    assert other.compression_stats()["residual_norm"] == before != 0


@pytest.mark.parametrize("compression", ["none", "fp16", "bf16"])
def test_buckets_of_a_method_without_state_may_be_others(compression):
    model = small_cnn()
    optimizer = hvdc.DistributedOptimizer(sgd(model), model.named_parameters(), compression=compression)
    train(model, optimizer, 2)
    state = copy.deepcopy(optimizer.state_dict())
    expected = train(model, optimizer, 2)
    model = small_cnn()
    again = hvdc.DistributedOptimizer(sgd(model), model.named_parameters(), compression=compression, bucket_bytes=1)
    train(model, again, 2)
    again.load_state_dict(state)
    assert again.compression_stats()["steps"] == 2
    assert torch.equal(train(model, again, 2), expected)


def test_a_state_from_before_the_first_step_begins_anew():
    model = small_cnn()
    optimizer = hvdc.DistributedOptimizer(sgd(model), model.named_parameters(), compression="powersgd")
    state = optimizer.state_dict()
    train(model, optimizer, 2)
    optimizer.load_state_dict(state)
    assert optimizer.compression_stats()["residual_norm"] == 0


def test_a_state_without_compression_begins_anew():
    model = small_cnn()
    optimizer = hvdc.DistributedOptimizer(sgd(model), model.named_parameters(), compression="powersgd")
    train(model, optimizer, 2)
    plain = sgd(model).state_dict()
    optimizer.load_state_dict(plain)
    stats = optimizer.compression_stats()
    assert stats["steps"] == 0
    assert stats["residual_norm"] == 0


def test_a_state_that_does_not_fit_is_refused_once():
    model, settings = small_cnn(), {"compression": "topk(ratio=0.1)", "dense_below": 1}
    optimizer = hvdc.DistributedOptimizer(sgd(model), model.named_parameters(), **settings)
    train(model, optimizer, 2)
    state = optimizer.state_dict()
    model = small_cnn()
    again = hvdc.DistributedOptimizer(sgd(model), model.named_parameters(), **settings, bucket_bytes=1)
    again.load_state_dict(state)
    with pytest.raises(ValueError, match="the state was saved for the buckets"):
        train(model, again, 1)
    assert same_on_all_ranks(train(model, again, 2))


def test_a_state_without_later_entries_is_loaded():
    model = small_cnn()
    optimizer = hvdc.DistributedOptimizer(sgd(model), model.named_parameters(), compression="topk(ratio=0.1)")
    train(model, optimizer, 2)
    norm, state = optimizer.compression_stats()["residual_norm"], optimizer.state_dict()
    del state["compression"]["carried"], state["compression"]["sparse"]
    optimizer.load_state_dict(state)
    assert optimizer.compression_stats()["residual_norm"] == norm != 0
