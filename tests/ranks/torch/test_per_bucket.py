"""What each bucket sends and keeps, and what TensorBoard is given of a step."""

import math

import horovod.torch as hvd
import pytest
from torch_ranks import sgd, small_cnn, train

import hvd_compress.torch as hvdc
from hvd_compress.torch.tensorboard import add_compression


def trained(spec, **settings):
    model = small_cnn()
    optimizer = hvdc.DistributedOptimizer(sgd(model), model.named_parameters(), spec, **settings)
    train(model, optimizer, 3)
    return model, optimizer


@pytest.mark.parametrize("spec", ["topk(ratio=0.1)", "powersgd", "qsgd"])
def test_buckets_account_for_all_that_is_sent(spec):
    model, optimizer = trained(spec, bucket_bytes=4096)
    stats = optimizer.compression_stats(per_bucket=True)
    assert "buckets" not in optimizer.compression_stats()
    buckets = stats["buckets"]
    assert sorted(name for bucket in buckets for name in bucket["parameters"]) == sorted(
        name for name, _ in model.named_parameters()
    )
    assert sum(bucket["coordinates"] for bucket in buckets) == sum(p.numel() for p in model.parameters())
    carried = sum(stats["collectives"].get(kind, {"sent": 0})["sent"] for kind in ("allreduce", "allgather"))
    assert sum(bucket["bytes_sent"] for bucket in buckets) == carried > 0
    assert math.hypot(*(bucket["residual_norm"] for bucket in buckets)) == pytest.approx(stats["residual_norm"])
    assert (stats["residual_norm"] > 0) == (spec != "qsgd")
    assert any(bucket["compression"].startswith(spec.partition("(")[0]) for bucket in buckets)


def test_tensorboard_shows_what_is_sent(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from torch.utils.tensorboard import SummaryWriter

    _, optimizer = trained("topk(ratio=0.1)")
    stats = optimizer.compression_stats(phases=True)
    with SummaryWriter(tmp_path / str(hvd.rank())) as writer:
        add_compression(writer, stats, 3)
    events = event_accumulator.EventAccumulator(str(tmp_path / str(hvd.rank()))).Reload()
    for tag, value in (("bytes_sent", stats["bytes_sent"]), ("phases/encode", stats["phases"]["encode"]["exposed"])):
        [event] = events.Scalars(f"compression/{tag}")
        assert (event.step, event.value) == (3, pytest.approx(value))
