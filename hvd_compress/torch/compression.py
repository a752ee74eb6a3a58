"""`Compression`: the compressors as PyTorch users name them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hvd_compress.compressors import Compressor, spec
from hvd_compress.compressors.named import NamedCompressor, has_methods
from hvd_compress.compressors.state import State
from hvd_compress.ops.layout import Layout
from hvd_compress.ops.torch import TorchOps
from hvd_compress.reduction.buckets import Rule
from hvd_compress.reduction.exchange import taken_dtype
from hvd_compress.reduction.settings import DENSE_BELOW, Settings
from hvd_compress.reduction.step import Step
from hvd_compress.torch.parameters import check_gradient
from hvd_compress.transports.horovod import op_name, require_horovod

if TYPE_CHECKING:
    from hvd_compress.torch.bound import BoundCompression


class TorchCompression(NamedCompressor):
    """A compressor as an optimizer's ``compression`` argument.

    ``hvd_compress.torch.DistributedOptimizer`` takes it as it is. Horovod's own optimizer takes it after `bind`, or
    unbound if the method keeps no state (``none`` and ``fp16``).
    """

    def bind(
        self,
        named_parameters: Iterable[tuple[str, Tensor]],
        *,
        op: int | str = "average",
        dense_below: int = DENSE_BELOW,
        seed: int = 0,
        rules: Iterable[Rule | tuple[str, Any]] | None = None,
    ) -> BoundCompression:
        """Attach the compressor's state to parameters, for ``horovod.torch.DistributedOptimizer``.

        Args:
            named_parameters: those that Horovod's optimizer is given.
            op: the one that Horovod's optimizer is given: ``hvd.Average`` or ``hvd.Sum``, or "average" or "sum".
            dense_below: parameters with fewer coordinates than this, and those with one axis, are sent uncompressed.
            seed: of the compressor's random numbers, the same on all workers.
            rules: exceptions for some parameters, as `hvd_compress.torch.DistributedOptimizer` takes them.

        Raises:
            ValueError: if a method needs the gradient of the whole model at once, or a rule matches no parameter's
                name or is not valid.
            TypeError: if `rules` holds anything but rules.
            ImportError: if Horovod cannot be imported.
        """
        require_horovod("torch")
        from hvd_compress.torch.bound import BoundCompression

        parameters = dict(named_parameters)
        settings = Settings(
            self, rules or (), tuple(parameters), op=op_name(op, "torch"), dense_below=dense_below, seed=seed
        )
        return BoundCompression(parameters, settings)

    def compress(self, tensor: Tensor) -> tuple[Tensor, Any]:
        """Compress one gradient without state, as Horovod's optimizer asks.

        Raises:
            RuntimeError: if the method keeps state.
            TypeError: if the gradient is not of a real floating dtype.
        """
        if self.compressor.stateful:
            raise RuntimeError(
                f"{spec(self.compressor)} keeps state for each parameter. Under Horovod's own optimizer, bind it: "
                "compression = compression.bind(model.named_parameters())"
            )
        check_gradient(tensor)
        state = State(Layout.flat(tensor.numel()))
        step = Step(self.compressor, TorchOps(tensor.device), flat(tensor, self.compressor), state)
        return step.pending.array.view(tensor.shape), (step, tensor.dtype)  # type: ignore[union-attr]

    def decompress(self, tensor: Tensor, ctx: Any) -> Tensor:
        """Return the mean that Horovod's sum of compressed gradients stands for."""
        if ctx is None:  # a sparse gradient, which Horovod carries without asking to compress it
            return tensor
        step, dtype = ctx
        step.feed(tensor.reshape(-1))
        return step.result.mean.view(tensor.shape).to(dtype)


def flat(tensor: Tensor, compressor: Compressor) -> Tensor:
    """Return a gradient as the vector that a compressor takes."""
    vector = tensor.reshape(-1)
    return vector.to(getattr(torch, taken_dtype(compressor, vector)))


@has_methods(TorchCompression)
class Compression:
    """The compressors by name, each a function of its settings: ``Compression.topk(ratio=0.01)``.

    ``Compression.parse("topk(ratio=0.01)")`` is the same, of a spec from a command line.

    ``Compression.none`` and ``Compression.fp16`` have no settings and stand for themselves, so that this class can
    replace Horovod's. Every function takes ``feedback`` as well: "none", "ef", "ef21" or "momentum" (with settings if
    need be: "momentum(momentum=0.5)"), or None for the method's default. Any number may be a schedule, such as
    ``Linear(0.1, 0.01, steps=1000)``.
    """

    none: TorchCompression
    fp16: TorchCompression
