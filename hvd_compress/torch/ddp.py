"""Compressed communication for PyTorch's DistributedDataParallel: a communication hook.

from torch.nn.parallel import DistributedDataParallel
from hvd_compress.torch import ddp

model = DistributedDataParallel(model)
compression = ddp.register(model, "topk(ratio=0.01)")
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from hvd_compress.compressors import Compressor
from hvd_compress.ops.layout import Layout
from hvd_compress.reduction.buckets import Rule
from hvd_compress.reduction.settings import BUCKET_BYTES, DENSE_BELOW, Settings
from hvd_compress.reduction.stats import nothing_sent
from hvd_compress.torch.compression import TorchCompression
from hvd_compress.torch.parameters import check_gradient, once
from hvd_compress.torch.reducer import GradientReducer, TensorExchange
from hvd_compress.transports.horovod import op_name
from hvd_compress.transports.torch_distributed import ProcessGroupTransport

__all__ = ["RegisteredCompression", "register"]


class BucketReducer(GradientReducer):
    """Averages the gradients that DDP hands over in its buckets, by a plan of its own.

    DDP's buckets say which gradients are there, and take the means. The last one waits for all exchanges: so would DDP.
    """

    def __init__(
        self,
        named: list[tuple[str, Tensor]],
        settings: Settings,
        transport: ProcessGroupTransport,
        scaler: torch.amp.GradScaler | None,
    ) -> None:
        parameters = [p for _, p in named]
        super().__init__(named, lambda: parameters, settings, transport, transport.name, scaler)
        self._handed: dict[Tensor, Tensor] = {}  # DDP's gradients, by parameter
        self._promised: list[tuple[Future[Tensor], dist.GradBucket]] = []

    def new_exchange(
        self, compressor: Compressor, layout: Layout, *, name: str, dtype: str, device: str, rows: bool
    ) -> TensorExchange:
        exchange = super().new_exchange(compressor, layout, name=name, dtype=dtype, device=device, rows=rows)
        exchange.spare = True  # means are copied to DDP's buckets
        return exchange

    def _listen_to(self, parameter: Tensor) -> None:
        """Do nothing: DDP tells of its gradient."""

    def reduce(self, bucket: dist.GradBucket) -> Future[Tensor]:
        """Begin to exchange a bucket's gradients; with the last bucket of a backward pass, wait for all of them."""
        promise: Future[Tensor] = Future()
        self._promised.append((promise, bucket))
        gradients = bucket.gradients() or [bucket.buffer()]  # a sparse one has a bucket of its own
        self._handed.update(zip(bucket.parameters(), gradients, strict=True))
        for parameter in bucket.parameters():
            self._gradient_ready(parameter)
        if bucket.is_last():
            self.synchronize()
            promised, self._promised = self._promised, []
            for each, its_bucket in promised:
                each.set_result(its_bucket.buffer())
            self._handed.clear()
        return promise

    def _gradient_of(self, parameter: Tensor) -> Tensor | None:
        """Return DDP's copy: zeros, in `join`, of a worker that has no more batches and still its last gradient."""
        gradient = parameter.grad
        return gradient if gradient is None or gradient.is_sparse else self._handed[parameter]

    def _give_one(self, parameter: Tensor, name: str, mean: Tensor) -> None:
        self._handed[parameter].copy_(mean.to_sparse(self.sparse_dims[name]) if name in self.sparse_dims else mean)

    def _give_rows(self, parameter: Tensor, mean: Tensor) -> None:
        self._handed[parameter].copy_(mean)

    def fail(self, error: Exception) -> None:
        super().fail(error)
        self._promised.clear()
        self._handed.clear()


class RegisteredCompression:
    """The compression of a DDP model, as `register` returns it."""

    def __init__(self, settings: Settings, reducer: BucketReducer | None) -> None:
        self._settings, self._reducer = settings, reducer

    def set_compression(
        self, compression: TorchCompression | str, rules: Iterable[Rule | tuple[str, Any]] | None = None
    ) -> None:
        """Use another compressor, with its rules, from the next backward pass on; all workers call it alike.

        As ``DistributedOptimizer.set_compression``.

        Raises:
            ValueError, TypeError: as `register`.
        """
        settings = self._settings.with_compression(compression, rules)
        if self._reducer is not None:
            self._reducer.change(settings)
        self._settings = settings

    def compression_stats(self) -> dict[str, Any]:
        """Return what this worker sent since `register`, as ``DistributedOptimizer.compression_stats``.

        What DDP itself sends, of buffers and unused parameters, is not in it.
        """
        return self._reducer.stats() if self._reducer is not None else nothing_sent()

    def state_dict(self) -> dict[str, Any]:
        """Return the compressors' state: tensors, numbers and names only; empty with a single process.

        Residuals are each worker's own: for an exact resumption every worker saves and loads its own state.
        """
        return self._reducer.state_dict() if self._reducer is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned. Another worker's residual is left out, with a warning.

        Raises:
            ValueError: if the state belongs to another compression or model.
        """
        if self._reducer is not None:
            self._reducer.load_state_dict(state_dict or None)


def register(
    model: DistributedDataParallel,
    compression: TorchCompression | str,
    *,
    op: int | str = "average",
    gradient_predivide_factor: float = 1.0,
    sparse_as_dense: bool = False,
    bucket_bytes: int = BUCKET_BYTES,
    dense_below: int = DENSE_BELOW,
    seed: int = 0,
    rules: Iterable[Rule | tuple[str, Any]] | None = None,
    nonfinite: str = "warn",
    grad_scaler: torch.amp.GradScaler | None = None,
) -> RegisteredCompression:
    """Let a DDP model average its gradients compressed, with a communication hook.

    Exchanges overlap with the backward pass, but for the first one, in which the workers compare their settings. A
    method of the whole gradient begins when the last gradient is there, so that nothing of it overlaps. A method that
    keeps a momentum (`dgc`, for instance) needs an optimizer without: nobody checks that here.

    Args:
        model: a DDP model without a communication hook; all its processes call this alike.
        compression: ``hvd_compress.torch.Compression.topk(ratio=0.01)``, or a spec such as ``"topk(ratio=0.01)"``.
        op: "average", or "sum", which DDP itself has not.
        gradient_predivide_factor: with "average", divides before the sum and multiplies after the mean.
        sparse_as_dense: exchange sparse gradients as dense ones.
        bucket_bytes: as in `hvd_compress.torch.DistributedOptimizer`; these are not DDP's own buckets.
        dense_below: as in `hvd_compress.torch.DistributedOptimizer`.
        seed: as in `hvd_compress.torch.DistributedOptimizer`.
        rules: as in `hvd_compress.torch.DistributedOptimizer`.
        nonfinite: as in `hvd_compress.torch.DistributedOptimizer`.
        grad_scaler: as in `hvd_compress.torch.DistributedOptimizer`.

    Returns:
        what knows the statistics and the state, and takes another compression.

    Raises:
        ValueError: if an argument's value is not allowed, or a rule matches no parameter's name.
        TypeError: if `model` is no DDP model, or `compression` is none, or `rules` holds anything but rules, or a
            parameter is not of a real floating dtype.
        RuntimeError: if the model has a communication hook already.
    """
    if not isinstance(model, DistributedDataParallel):
        raise TypeError(f"model must be a DistributedDataParallel; got {type(model).__name__}")
    named = [(name, p) for name, p in once(model.module.named_parameters()) if p.requires_grad]
    named = [(name, p) for name, p in named if name not in model.parameters_to_ignore]
    for name, p in named:
        check_gradient(p, name)
    settings = Settings(
        compression,
        rules or (),
        tuple(name for name, _ in named),
        op=op_name(op, "torch"),
        gradient_predivide_factor=gradient_predivide_factor,
        sparse_as_dense=sparse_as_dense,
        bucket_bytes=bucket_bytes,
        dense_below=dense_below,
        seed=seed,
        nonfinite=nonfinite,
    )
    transport = ProcessGroupTransport(model.process_group)
    if transport.workers == 1:
        return RegisteredCompression(settings, None)
    reducer = BucketReducer(named, settings, transport, grad_scaler)
    model.register_comm_hook(None, lambda state, bucket: reducer.reduce(bucket))
    return RegisteredCompression(settings, reducer)
