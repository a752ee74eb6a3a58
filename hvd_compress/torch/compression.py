"""`Compression`: the compressors as PyTorch users name them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import horovod.torch as hvd
from torch import Tensor

from hvd_compress.compressors import Compressor, Feedback, make, methods, parse, spec
from hvd_compress.torch.bound import BoundCompression, Carrier, check_gradient, flat, tensor_exchange


class TorchCompression:
    """A compressor as an optimizer's ``compression`` argument.

    ``hvd_compress.torch.DistributedOptimizer`` takes it as it is. Horovod's own optimizer takes it after `bind`, or
    unbound if the method keeps no state (``none`` and ``fp16``).
    """

    def __init__(self, compressor: Compressor) -> None:
        self.compressor = compressor

    def __call__(self) -> TorchCompression:
        """Return itself: ``Compression.none`` and ``Compression.none()`` are the same."""
        return self

    def __repr__(self) -> str:
        return f"Compression({spec(self.compressor)!r})"

    def bind(
        self,
        named_parameters: Iterable[tuple[str, Tensor]],
        *,
        op: int = hvd.Average,
        dense_below: int = 1024,
        seed: int = 0,
    ) -> BoundCompression:
        """Attach the compressor's state to parameters, for ``horovod.torch.DistributedOptimizer``.

        Args:
            named_parameters: those that Horovod's optimizer is given.
            op: the one that Horovod's optimizer is given: ``hvd.Average`` or ``hvd.Sum``.
            dense_below: parameters with fewer coordinates than this, and those with one axis, are sent uncompressed.
            seed: of the compressor's random numbers, the same on all workers.

        Raises:
            ValueError: if the method needs the gradient of the whole model at once.
        """
        if self.compressor.whole_gradient:
            raise ValueError(
                f"{spec(self.compressor)} needs the gradient of the whole model at once, and Horovod's optimizer hands "
                "over one tensor at a time; use hvd_compress.torch.DistributedOptimizer"
            )
        return BoundCompression(self.compressor, dict(named_parameters), op, dense_below, seed)

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
        carrier = Carrier()
        exchange = tensor_exchange("gradient", tensor, self.compressor, carrier, 0)
        exchange.launch(flat(tensor, self.compressor))
        return carrier.array.view(tensor.shape), (exchange, tensor.dtype)

    def decompress(self, tensor: Tensor, ctx: Any) -> Tensor:
        """Return the mean that Horovod's sum of compressed gradients stands for."""
        if ctx is None:  # a sparse gradient, which Horovod carries without asking to compress it
            return tensor
        exchange, dtype = ctx
        exchange.transport.result = tensor.reshape(-1)
        exchange.advance()
        return exchange.commit().view(tensor.shape).to(dtype)


def as_compressor(compression: Any) -> Compressor:
    """Return the compressor that a ``compression`` argument means: an object of `Compression`, or a spec.

    Raises:
        TypeError: if it is neither.
        ValueError: if a spec is not valid.
    """
    if isinstance(compression, str):
        return parse(compression)
    if isinstance(compression, Compressor):
        return compression
    if callable(compression) and not isinstance(compression, type):
        compression = compression()
    if isinstance(compression, TorchCompression):
        return compression.compressor
    raise TypeError(
        "compression must be one of hvd_compress.torch.Compression, such as Compression.topk(ratio=0.01), or a spec "
        f"such as 'topk(ratio=0.01)'; got {compression!r}"
    )


def _nested(value: Any) -> Any:
    """Return the bare compressor if a setting's value is one of `Compression`."""
    if not isinstance(value, TorchCompression):
        return value
    return value.compressor.inner if isinstance(value.compressor, Feedback) else value.compressor


def _factory(name: str) -> Callable[..., TorchCompression]:
    cls = methods()[name]

    def method(*args: Any, feedback: str | None = None, **settings: Any) -> TorchCompression:
        settings = {key: _nested(value) for key, value in settings.items()}
        return TorchCompression(make(name, *map(_nested, args), feedback=feedback, **settings))

    method.__name__ = method.__qualname__ = name
    method.__doc__ = cls.__doc__
    feedback = inspect.Parameter("feedback", inspect.Parameter.KEYWORD_ONLY, default=None)
    signature = inspect.signature(cls)
    method.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), feedback], return_annotation=TorchCompression
    )
    return method


class Compression:
    """The compressors by name, each a function of its settings: ``Compression.topk(ratio=0.01)``.

    ``Compression.none`` and ``Compression.fp16`` have no settings and stand for themselves, so that this class can
    replace Horovod's. Every function takes ``feedback`` as well: "none", "ef", "ef21" or "momentum" (with settings if
    need be: "momentum(momentum=0.5)"), or None for the method's default. Any number may be a schedule, such as
    ``Linear(0.1, 0.01, steps=1000)``.
    """

    none = TorchCompression(make("none"))
    fp16 = TorchCompression(make("fp16"))


for _name in methods():
    if not hasattr(Compression, _name):
        setattr(Compression, _name, staticmethod(_factory(_name)))
