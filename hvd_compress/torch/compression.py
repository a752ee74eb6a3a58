"""`Compression`: the compressors as PyTorch users name them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from textwrap import shorten
from typing import Any

import horovod.torch as hvd
from torch import Tensor

from hvd_compress.compressors import Compressor, make, methods, parse, spec
from hvd_compress.plan import Rule
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
        rules: Iterable[Rule | tuple[str, Any]] | None = None,
    ) -> BoundCompression:
        """Attach the compressor's state to parameters, for ``horovod.torch.DistributedOptimizer``.

        Args:
            named_parameters: those that Horovod's optimizer is given.
            op: the one that Horovod's optimizer is given: ``hvd.Average`` or ``hvd.Sum``.
            dense_below: parameters with fewer coordinates than this, and those with one axis, are sent uncompressed.
            seed: of the compressor's random numbers, the same on all workers.
            rules: exceptions for some parameters, as `hvd_compress.torch.DistributedOptimizer` takes them.

        Raises:
            ValueError: if a method needs the gradient of the whole model at once, or a rule matches no parameter's
                name or is not valid.
            TypeError: if `rules` holds anything but rules.
        """
        parameters = dict(named_parameters)
        checked = as_rules(rules, parameters)
        for compressor in (self.compressor, *(rule.compression for rule in checked)):
            if compressor.whole_gradient:
                raise ValueError(
                    f"{spec(compressor)} needs the gradient of the whole model at once, and Horovod's optimizer hands "
                    "over one tensor at a time; use hvd_compress.torch.DistributedOptimizer"
                )
        return BoundCompression(self.compressor, checked, parameters, op, dense_below, seed)

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
    return value.compressor.bare if isinstance(value, TorchCompression) else value


def as_rules(rules: Iterable[Rule | tuple[str, Any]] | None, names: Collection[str]) -> tuple[Rule, ...]:
    """Return the rules that a ``rules`` argument means, with compressors.

    Args:
        rules: `Rule` objects, or tuples (pattern, compression); None is none.
        names: those of the parameters.

    Raises:
        TypeError: if there is something else among them, or a rule's compression is none.
        ValueError: if a compression is not valid, or a pattern matches no name.
    """
    checked = []
    for rule in rules or ():
        if isinstance(rule, tuple) and len(rule) == 2:
            rule = Rule(*rule)
        if not isinstance(rule, Rule):
            raise TypeError(
                "rules must be a list of tuples (pattern, compression), such as ('embed.*', 'topk(0.001)'), or of "
                f"hvd_compress.torch.Rule; got {rule!r} in it"
            )
        try:
            compressor = as_compressor(rule.compression)
        except (TypeError, ValueError) as error:
            raise type(error)(f"rule {rule.pattern!r}: {error}") from None
        if not any(fnmatchcase(name, rule.pattern) for name in names):
            listed = shorten(", ".join(names), 500)
            raise ValueError(f"rule {rule.pattern!r} matches none of the {len(names)} parameters: {listed}")
        checked.append(replace(rule, compression=compressor))
    return tuple(checked)


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
