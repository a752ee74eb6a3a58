"""The compressors as users name them: what the frameworks' ``compression`` arguments take."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from hvd_compress.compressors import Compressor, make, methods, parse, spec

AUTO = "auto"  # no method: what lets PyTorch's reducers choose one
Self = TypeVar("Self", bound="NamedCompressor")
Namespace = TypeVar("Namespace", bound=type)


class NamedCompressor:
    """A compressor as a ``compression`` argument."""

    def __init__(self, compressor: Compressor) -> None:
        self.compressor = compressor

    def __call__(self: Self) -> Self:
        """Return itself: ``Compression.none`` and ``Compression.none()`` are the same."""
        return self

    def __repr__(self) -> str:
        return f"Compression({spec(self.compressor)!r})"


def has_methods(kind: type[NamedCompressor]) -> Callable[[Namespace], Namespace]:
    """Return a class decorator that adds all methods: functions of their settings that return objects of a kind.

    ``parse`` returns that of a spec.

    ``none`` and ``fp16`` have no settings and stand for themselves, as in Horovod's class.
    """

    def decorate(cls: Namespace) -> Namespace:
        cls.parse = staticmethod(_parser(kind))  # type: ignore[attr-defined]
        for name in methods():
            setattr(cls, name, kind(make(name)) if name in ("none", "fp16") else staticmethod(_factory(name, kind)))
        return cls

    return decorate


def _parser(kind: type[NamedCompressor]) -> Callable[[str], NamedCompressor]:
    def parse_spec(spec: Any) -> NamedCompressor:
        """Return what a spec such as "topk(ratio=0.01)" means, from a command line for instance.

        Raises:
            TypeError: if it is no spec.
            ValueError: if it is not valid.
        """
        return kind(as_compressor(spec))

    parse_spec.__name__ = parse_spec.__qualname__ = "parse"
    return parse_spec


def _factory(name: str, kind: type[NamedCompressor]) -> Callable[..., NamedCompressor]:
    cls = methods()[name]

    def method(*args: Any, feedback: str | None = None, **settings: Any) -> NamedCompressor:
        settings = {key: _nested(value) for key, value in settings.items()}
        return kind(make(name, *map(_nested, args), feedback=feedback, **settings))

    method.__name__ = method.__qualname__ = name
    method.__doc__ = cls.__doc__
    feedback = inspect.Parameter("feedback", inspect.Parameter.KEYWORD_ONLY, default=None)
    signature = inspect.signature(cls)
    method.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), feedback], return_annotation=kind
    )
    return method


def _nested(value: Any) -> Any:
    """Return the bare compressor if a setting's value is one of `Compression`."""
    return value.compressor.bare if isinstance(value, NamedCompressor) else value


def as_compressor(compression: Any) -> Compressor:
    """Return the compressor that a ``compression`` argument means: an object of `Compression`, or a spec.

    Raises:
        TypeError: if it is neither.
        ValueError: if a spec is not valid.
    """
    if isinstance(compression, str):
        if compression.strip() == AUTO:
            raise ValueError(
                "compression='auto' works with hvd_compress.torch's DistributedOptimizer and ddp.register alone; give "
                f"a method here: {', '.join(methods())}. `hvd-compress advise` tells which makes a step shortest"
            )
        return parse(compression)
    if isinstance(compression, Compressor):
        return compression
    if callable(compression) and not isinstance(compression, type):
        compression = compression()
    if isinstance(compression, NamedCompressor):
        return compression.compressor
    raise TypeError(
        "compression must be one of hvd_compress's Compression, such as Compression.topk(ratio=0.01), or a spec such "
        f"as 'topk(ratio=0.01)'; got {compression!r}"
    )
