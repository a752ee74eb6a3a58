"""`DistributedGradientTape`: a tape whose gradients are averaged over Horovod's processes, compressed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf

from hvd_compress.reduction.buckets import Rule
from hvd_compress.reduction.settings import BUCKET_BYTES, DENSE_BELOW, Settings
from hvd_compress.tensorflow.compression import Compression, TensorFlowCompression
from hvd_compress.tensorflow.reducer import reducer_of, reduction_settings, unique
from hvd_compress.transports.horovod import check_one_given
from hvd_compress.transports.horovod_tensorflow import GraphTransport


class _Distributed:
    """The method that replaces that of the tape's own class."""

    _settings: Settings
    _where: tuple[Any, GraphTransport | None]

    @tf.autograph.experimental.do_not_convert
    def gradient(self, target: Any, sources: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the gradients, as the tape that is wrapped does, averaged over the workers.

        Raises:
            WorkersDisagree: in the first step, if the workers differ in version, settings or model.
        """
        gradients = super().gradient(target, sources, *args, **kwargs)  # type: ignore[misc]
        flat = tf.nest.flatten(sources)
        given = dict(zip(map(id, flat), tf.nest.flatten(gradients), strict=True))  # a source that comes twice: once
        reducer = reducer_of(unique(flat), self._settings, *self._where)
        means = dict(zip(given, reducer.reduce(list(given.values())), strict=True))
        return tf.nest.pack_sequence_as(sources, [means[id(source)] for source in flat])


def DistributedGradientTape(
    gradtape: tf.GradientTape,
    compression: TensorFlowCompression | str = Compression.none,
    op: int = hvd.Average,
    gradient_predivide_factor: float = 1.0,
    process_set: Any = hvd.global_process_set,
    sparse_as_dense: bool = False,
    *,
    bucket_bytes: int = BUCKET_BYTES,
    dense_below: int = DENSE_BELOW,
    seed: int = 0,
    rules: Iterable[Rule | tuple[str, Any]] | None = None,
    nonfinite: str = "warn",
    transport: GraphTransport | None = None,
) -> Any:
    """Wrap a tape so that `gradient` averages over Horovod's processes, compressed.

    The state, of residuals for instance, belongs to the variables: it is found again by each tape that is given the
    same variables and settings. `set_compression` changes the compressor in mid-training. With a single process nothing
    is sent.

    Args:
        gradtape: any ``tf.GradientTape``.
        compression: ``hvd_compress.tensorflow.Compression.topk(ratio=0.01)``, or a spec such as ``"topk(ratio=0.01)"``.
        op: ``hvd.Average`` or ``hvd.Sum``.
        gradient_predivide_factor: with ``hvd.Average``, divides before the sum and multiplies after the mean.
        process_set: the Horovod processes to average over.
        sparse_as_dense: exchange sparse gradients as dense ones.
        bucket_bytes: largest size of a bucket of gradients, in bytes, at least 1; methods of the whole gradient have
            one bucket.
        dense_below: parameters with fewer coordinates than this, and those with one axis, are sent uncompressed.
        seed: of the compressors' random numbers, the same on all workers.
        rules: exceptions: tuples (pattern, compression), or `hvd_compress.tensorflow.Rule` objects; the first that
            matches a variable's name and size decides, whatever `dense_below` says.
        nonfinite: what comes of gradients that are not finite, on any worker: "warn" (all workers warn once, and the
            means are not finite) or "error" (all raise NonFiniteGradients).
        transport: who carries the collectives instead of Horovod: any
            `hvd_compress.transports.horovod_tensorflow.GraphTransport`.

    Raises:
        ValueError: if an argument's value is not allowed.
        TypeError: if `compression` is none, or `rules` holds anything but rules.
    """
    settings = reduction_settings(
        compression, op, gradient_predivide_factor, sparse_as_dense, bucket_bytes, dense_below, seed, rules, nonfinite
    )
    check_one_given(transport, process_set)
    where = (process_set, transport)
    wrapped = type(gradtape)
    tape: Any = object.__new__(
        type(wrapped.__name__, (_Distributed, wrapped), {"_settings": settings, "_where": where})
    )
    tape.__dict__.update(gradtape.__dict__)
    return tape
