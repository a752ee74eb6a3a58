"""Compressed communication for PyTorch's DistributedDataParallel: a communication hook.

from torch.nn.parallel import DistributedDataParallel
from hvd_compress.torch import ddp

model = DistributedDataParallel(model)
compression = ddp.register(model, "topk(ratio=0.01)")
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from hvd_compress.ops.layout import Layout
from hvd_compress.reduction.buckets import Bucket, Gradient, Rule, divided_as
from hvd_compress.reduction.checkpoint import Saved
from hvd_compress.reduction.settings import BUCKET_BYTES, DENSE_BELOW, Settings
from hvd_compress.reduction.stats import nothing_sent
from hvd_compress.torch.compression import TorchCompression
from hvd_compress.torch.exchange import TensorExchange
from hvd_compress.torch.parameters import check_gradient, once
from hvd_compress.torch.reducer import GradientReducer
from hvd_compress.transports.horovod import op_name
from hvd_compress.transports.torch_distributed import ProcessGroupTransport

__all__ = ["RegisteredCompression", "register"]

Rules = Iterable[Rule | tuple[str, Any]] | None
Names = tuple[str, ...]


class BucketReducer(GradientReducer):
    """Averages the gradients that DDP hands over in its buckets, by a plan of its own.

    DDP's buckets say which gradients are there, and take the means. The last one waits for all exchanges: so would DDP.
    Where any buckets will do, DDP's buckets are the plan's as well, and nothing is copied between them.
    """

    def __init__(self, model: DistributedDataParallel, *given: Any) -> None:
        self._may_lack = model.find_unused_parameters or model.static_graph
        self.copies_means = not model.gradient_as_bucket_view  # a view is `p.grad`, which tells who is not finite
        self._used: set[Tensor] = set()  # parameters, on this worker, since the last synchronization
        self._handed: dict[Tensor, Tensor] = {}  # DDP's gradients, by parameter
        self._promised: dict[Names, tuple[Future[Tensor], Tensor]] = {}  # for DDP's buckets, and what they will hold
        self._buckets: list[Names] = []  # DDP's, as far as they are known
        self._planned: list[Bucket] = []  # the buckets of any reducer
        super().__init__(*given)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(None), ()  # a model that is saved whole, or copied, has no compression

    def _take(self, parameter: Tensor) -> None:
        """Note when it is used; that its gradient is ready is told by DDP, of which several may have the parameter."""
        self._hooked.add(parameter)
        parameter.register_post_accumulate_grad_hook(self._used.add)

    def _has(self, parameter: Tensor) -> bool:
        return parameter in self._used or not self._may_lack  # of a worker in `join` zeros count

    def load(self, saved: Saved, stacklevel: int = 4) -> None:
        super().load(saved, stacklevel + 1)
        if not self.planned:  # more than two ranks add up a coordinate in an order that depends on its bucket
            self._buckets = [tuple(entry.parameters) for entry in saved.exchanges if not entry.rows]

    def _to_tell(self) -> dict[str, Any]:
        told = super()._to_tell()
        told["complete"] &= not self._may_lack
        told["buckets"] = self._buckets
        return told

    def _hear(self, told: Sequence[Mapping[str, Any]]) -> None:
        super()._hear(told)
        self._buckets = [tuple(names) for names in told[0]["buckets"]]

    def divide(self, gradients: Sequence[Gradient]) -> list[Bucket]:
        self._planned = super().divide(gradients)
        return divided_as(self._layouts(), self._planned)

    def _layouts(self) -> list[Layout]:
        """Return the layouts of DDP's buckets."""
        shapes = self.shapes
        return [Layout.of((name, shapes.get(name, ())) for name in names) for names in self._buckets]

    def reduce(self, bucket: dist.GradBucket) -> Future[Tensor]:
        """Begin to exchange a bucket's gradients; with the last bucket of a backward pass, wait for all of them."""
        parameters = bucket.parameters()
        names = tuple(name for p in parameters if (name := self._name_of.get(p)) is not None)
        if len(names) < len(parameters):
            raise RuntimeError(
                "a layer was frozen after DDP was made and before register(): freeze before, or after both"
            )
        promise: Future[Tensor] = Future(devices=[bucket.buffer().device] if bucket.buffer().is_cuda else None)
        self._promised[names] = promise, bucket.buffer()
        gradients = bucket.gradients() or [bucket.buffer()]  # a sparse one has a bucket of its own
        self._handed.update(zip(parameters, gradients, strict=True))
        exchange, _ = self._place_of.get(parameters[0], (None, 0))
        if exchange is not None and exchange.compressor.any_bucket and self._fits(exchange):
            exchange.vector = bucket.buffer()
        self._gradients_ready(parameters)
        if bucket.is_last():
            self._end_pass()
        return promise

    def _fits(self, exchange: TensorExchange) -> bool:
        """Tell whether an exchange is of a bucket of DDP's, and its vector could be the bucket's."""
        _, buffer = self._promised.get(exchange.layout.names, (None, None))
        return buffer is not None and not buffer.is_sparse and buffer.dtype == getattr(torch, exchange.dtype)

    def _end_pass(self) -> None:
        """Wait for all exchanges, and keep the promises."""
        planned, buckets = self.planned, list(self._promised)
        self._buckets = self._buckets or buckets
        self._seen.clear()  # DDP's copies were sent, which nobody else changes
        self.synchronize()
        for promise, mean in self._promised.values():
            promise.set_result(mean)
        self._forget_pass()
        if planned and self.planned and buckets != self._buckets:  # else another method was chosen
            self._buckets = buckets
            self.divide_anew(divided_as(self._layouts(), self._planned))
            self._find_places()
            self._empty_buckets()

    def _gradient_of(self, parameter: Tensor) -> Tensor | None:
        """Return DDP's copy: zeros of a worker that did not use the parameter, or in `join` has no more batches."""
        return g if (g := parameter.grad) is not None and g.is_sparse else self._handed[parameter]

    def _give_bucket(self, exchange: TensorExchange, mean: Tensor, nobodys: Sequence[str]) -> None:
        if self._fits(exchange):
            names = exchange.layout.names
            self._promised[names] = self._promised[names][0], mean
        else:
            super()._give_bucket(exchange, mean, nobodys)

    def _put_all(self, parameters: Sequence[Tensor], means: Sequence[Tensor]) -> None:
        if parameters:
            torch._foreach_copy_([self._handed[parameter] for parameter in parameters], list(means))

    def _put(self, parameter: Tensor, mean: Tensor) -> None:
        self._handed[parameter].copy_(mean)

    def fail(self, error: Exception) -> None:
        super().fail(error)
        self._forget_pass()

    def _forget_pass(self) -> None:
        for held in (self._promised, self._handed, self._used):
            held.clear()


def _reduce(reducer, bucket):  # type: ignore[no-untyped-def]  # DDP does not know annotations that are text
    return reducer.reduce(bucket)


class RegisteredCompression:
    """The compression of a DDP model, as `register` returns it."""

    def __init__(self, settings: Settings, reducer: BucketReducer | None) -> None:
        self._settings, self._reducer = settings, reducer

    def set_compression(self, compression: TorchCompression | str, rules: Rules = None) -> None:
        """Use another compressor from the next backward pass on, as ``DistributedOptimizer.set_compression``."""
        present = self._settings if self._reducer is None else self._reducer.settings
        self._settings = present.with_compression(compression, rules)
        if self._reducer is not None:
            self._reducer.change(self._settings)

    def compression_stats(self, phases: bool = False, per_bucket: bool = False) -> dict[str, Any]:
        """Return what this worker sent, as ``DistributedOptimizer.compression_stats``, beside what DDP itself sends."""
        return (
            self._reducer.stats(phases, per_bucket) if self._reducer is not None else nothing_sent(phases, per_bucket)
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state, of which residuals are this worker's own: tensors, numbers and names; empty if alone."""
        return self._reducer.state_dict() if self._reducer is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned. Another worker's residual is left out, with a warning.

        Raises:
            ValueError: if the state belongs to another compression or model.
        """
        if self._reducer is not None:
            self._reducer.load_state_dict(state_dict or None)


def register(  # noqa: D417  # several in one line
    model: DistributedDataParallel,
    compression: TorchCompression | str,
    *,
    op: int | str = "average",
    gradient_predivide_factor: float = 1.0,
    sparse_as_dense: bool = False,
    bucket_bytes: int = BUCKET_BYTES,
    dense_below: int = DENSE_BELOW,
    seed: int = 0,
    rules: Rules = None,
    nonfinite: str = "warn",
    grad_scaler: torch.amp.GradScaler | None = None,
) -> RegisteredCompression:
    """Let a DDP model average its gradients compressed, with a communication hook.

    Exchanges overlap with the backward pass, but for the first one, in which the workers compare their settings. A
    method of the whole gradient begins when the last gradient is there, so that nothing of it overlaps. A method that
    keeps a momentum (`dgc`, for instance) needs an optimizer without: nobody checks that here. After an error in a
    backward pass DDP cannot be used any more: wrap the model, and register, anew.

    Args:
        model: a DDP model without a communication hook; all its processes call this alike.
        compression: ``hvd_compress.torch.Compression.topk(ratio=0.01)``, or a spec such as ``"topk(ratio=0.01)"``; or
            ``"auto"``, as in `hvd_compress.torch.DistributedOptimizer`.
        op: "average", or "sum", which DDP itself has not.
        gradient_predivide_factor: with "average", divides before the sum and multiplies after the mean.
        sparse_as_dense, bucket_bytes, dense_below, seed, rules, nonfinite, grad_scaler: as in
            `hvd_compress.torch.DistributedOptimizer`; the buckets are not DDP's own.

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
    ours = ((name, p) for name, p in model.module.named_parameters() if name not in model.parameters_to_ignore)
    named = once(ours)
    trained = [(name, p) for name, p in named if p.requires_grad]
    for name, p in trained:
        check_gradient(p, name)
    settings = Settings(
        compression,
        rules or (),
        tuple(name for name, _ in trained),
        op=op_name(op, "torch"),
        gradient_predivide_factor=gradient_predivide_factor,
        sparse_as_dense=sparse_as_dense,
        bucket_bytes=bucket_bytes,
        dense_below=dense_below,
        seed=seed,
        nonfinite=nonfinite,
        chooses=True,
    )
    transport = ProcessGroupTransport(model.process_group)
    if transport.workers == 1:
        return RegisteredCompression(settings, None)
    reducer = BucketReducer(
        model, named, lambda: [p for _, p in trained], settings, transport, transport.name, grad_scaler
    )
    model.register_comm_hook(reducer, _reduce)
    return RegisteredCompression(settings, reducer)
