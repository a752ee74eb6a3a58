"""One tensor, compressed."""

import horovod.tensorflow as hvd
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_ranks import same_on_all_ranks

import hvd_compress.tensorflow as hvdc


def own(step=0):
    return np.random.default_rng([step, hvd.rank()]).standard_normal(2000).astype(np.float32)


@pytest.mark.parametrize("op", [hvd.Average, hvd.Sum])
def test_none_is_horovods_own(op):
    expected = hvd.allreduce(tf.constant(own()), op=op, name=f"theirs.{op}")
    assert np.allclose(hvdc.allreduce(own(), f"ours.{op}", op=op), expected, atol=1e-6)


@pytest.mark.parametrize("graph", [True, False])
def test_what_is_not_sent_is_kept_under_the_name(graph):
    def reduce(tensor):
        return hvdc.allreduce(tensor, f"kept.{graph}", hvdc.Compression.topk(ratio=0.1))

    reduce = tf.function(reduce) if graph else reduce
    total = sum(np.asarray(reduce(tf.constant(own()))) for _ in range(30))
    assert same_on_all_ranks(total)
    mean = np.asarray(hvd.allreduce(tf.constant(own()), name="mean"))
    assert np.abs(total / 30 - mean).max() < 0.5 * np.abs(mean).max()
    once = np.asarray(hvdc.allreduce(own(), f"another.{graph}", hvdc.Compression.topk(ratio=0.1)))
    assert np.count_nonzero(once) <= 200 * hvd.size()


def test_what_is_wrong_is_refused():
    hvdc.allreduce(own(), "shape")
    with pytest.raises(ValueError, match=r"shape was a tensor of shape \(2000,\) and dtype float32 before; got \(3,\)"):
        hvdc.allreduce(own()[:3], "shape")
    with pytest.raises(TypeError, match="integers: tensors must be of a floating dtype; got int32"):
        hvdc.allreduce(tf.range(3), "integers")
    with pytest.raises(ValueError, match="op must be"):
        hvdc.allreduce(own(), "max", op=hvd.Max)
