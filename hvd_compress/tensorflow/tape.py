"""`DistributedGradientTape`: a tape whose gradients are averaged over Horovod's processes, compressed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf

from hvd_compress.reduction.buckets import Rule
from hvd_compress.reduction.groups import as_groups
from hvd_compress.reduction.settings import BUCKET_BYTES, DENSE_BELOW, Settings
from hvd_compress.tensorflow.compression import Compression, TensorFlowCompression
from hvd_compress.tensorflow.reducer import reducer_of, reduction_settings, unique
from hvd_compress.tensorflow.variables import times
from hvd_compress.transports.horovod import check_devices, check_one_given
from hvd_compress.transports.horovod_tensorflow import GraphTransport


class _Distributed:
    """The method that replaces that of the tape's own class."""

    _settings: Settings
    _where: tuple[Any, GraphTransport | None, int | list[list[Any]]]
    _local: dict[int, Any]  # sources whose gradients stay with this worker, by identity
    _scale_local: bool

    def register_local_source(self, source: Any) -> None:
        """Let the gradient of a source be this worker's own, as Horovod's tape does. All workers must do so alike.

        It is divided by the number of workers unless the tape was made with ``scale_local_gradients=False``.
        """
        self._local[id(source)] = source

    @tf.autograph.experimental.do_not_convert
    def gradient(self, target: Any, sources: Any, *args: Any, use_generic_names: bool = False, **kwargs: Any) -> Any:
        """Return the gradients, as the tape that is wrapped does, averaged over the workers.

        Args:
            target: as of ``tf.GradientTape.gradient``.
            sources: as of ``tf.GradientTape.gradient``.
            args: further ones of it.
            use_generic_names: as of Horovod's tape; collectives go by the places of their variables in any case.
            kwargs: further ones of ``tf.GradientTape.gradient``.

        Raises:
            WorkersDisagree: in the first step, if the workers differ in version, settings or model.
        """
        gradients = super().gradient(target, sources, *args, **kwargs)  # type: ignore[misc]
        flat = tf.nest.flatten(sources)
        given = dict(zip(map(id, flat), tf.nest.flatten(gradients), strict=True))  # a source that comes twice: once
        shared = [source for source in unique(flat) if id(source) not in self._local]
        if shared:
            reducer = reducer_of(shared, self._settings, *self._where)
            keys = list(map(id, shared))
            given |= zip(keys, reducer.reduce([given[key] for key in keys]), strict=True)
        if local := [key for key in given if key in self._local]:
            process_set, transport, _ = self._where
            workers = process_set.size() if transport is None else transport.workers
            factor = 1 / workers if self._scale_local else 1.0
            given |= zip(local, times([given[key] for key in local], factor), strict=True)
        return tf.nest.pack_sequence_as(sources, [given[id(source)] for source in flat])


@tf.autograph.experimental.do_not_convert
def DistributedGradientTape(
    gradtape: tf.GradientTape,
    device_dense: str = "",
    device_sparse: str = "",
    compression: TensorFlowCompression | str = Compression.none,
    sparse_as_dense: bool = False,
    op: int = hvd.Average,
    gradient_predivide_factor: float = 1.0,
    num_groups: int = 0,
    groups: int | list[list[Any]] | None = None,
    process_set: Any = hvd.global_process_set,
    scale_local_gradients: bool = True,
    *,
    bucket_bytes: int = BUCKET_BYTES,
    dense_below: int = DENSE_BELOW,
    seed: int = 0,
    rules: Iterable[Rule | tuple[str, Any]] | None = None,
    nonfinite: str = "warn",
    transport: GraphTransport | None = None,
) -> Any:
    """Wrap a tape so that `gradient` averages over Horovod's processes, compressed.

    The arguments up to `scale_local_gradients` are those of ``horovod.tensorflow.DistributedGradientTape``, in its
    order, and mean the same. The state, of residuals for instance, belongs to the variables: it is found again by each
    tape that is given the same variables and settings. `set_compression` changes the compressor in mid-training. With a
    single process nothing is sent.

    Args:
        gradtape: any ``tf.GradientTape``.
        device_dense: only "": a gradient is exchanged where its variable lies.
        device_sparse: only "".
        compression: ``hvd_compress.tensorflow.Compression.topk(ratio=0.01)``, or a spec such as ``"topk(ratio=0.01)"``.
        sparse_as_dense: exchange sparse gradients as dense ones.
        op: ``hvd.Average`` or ``hvd.Sum``.
        gradient_predivide_factor: with ``hvd.Average``, divides before the sum and multiplies after the mean.
        num_groups: the former name of `groups`.
        groups: the number of buckets to divide the variables into, or lists of those that share a bucket.
        process_set: the Horovod processes to average over.
        scale_local_gradients: divide gradients of registered local sources by the number of workers.
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
    check_devices(device_dense, device_sparse)
    settings = reduction_settings(
        compression, op, gradient_predivide_factor, sparse_as_dense, bucket_bytes, dense_below, seed, rules, nonfinite
    )
    check_one_given(transport, process_set)
    where = (process_set, transport, as_groups(num_groups, groups))
    wrapped = type(gradtape)
    members = {"_settings": settings, "_where": where, "_local": {}, "_scale_local": scale_local_gradients}
    tape: Any = object.__new__(type(wrapped.__name__, (_Distributed, wrapped), members))
    tape.__dict__.update(gradtape.__dict__)
    return tape
