"""The compressors as users name them: what the frameworks' ``compression`` and ``rules`` arguments take."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from textwrap import shorten
from typing import Any, TypeVar

from hvd_compress.compressors import Compressor, make, methods, parse, spec
from hvd_compress.plan import Rule

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

    ``none`` and ``fp16`` have no settings and stand for themselves, as in Horovod's class.
    """

    def decorate(cls: Namespace) -> Namespace:
        for name in methods():
            setattr(cls, name, kind(make(name)) if name in ("none", "fp16") else staticmethod(_factory(name, kind)))
        return cls

    return decorate


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


def as_rules(rules: Iterable[Rule | tuple[str, Any]] | None, names: Collection[str] | None) -> tuple[Rule, ...]:
    """Return the rules that a ``rules`` argument means, with compressors.

    Args:
        rules: `Rule` objects, or tuples (pattern, compression); None is none.
        names: those of the parameters; None if they are not known yet.

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
                "rules must be a list of tuples (pattern, compression), such as ('embed.*', 'topk(0.001)'), or of Rule "
                f"objects; got {rule!r} in it"
            )
        try:
            compressor = as_compressor(rule.compression)
        except (TypeError, ValueError) as error:
            raise type(error)(f"rule {rule.pattern!r}: {error}") from None
        if names is not None and not any(fnmatchcase(name, rule.pattern) for name in names):
            listed = shorten(", ".join(names), 500)
            raise ValueError(f"rule {rule.pattern!r} matches none of the {len(names)} parameters: {listed}")
        checked.append(replace(rule, compression=compressor))
    return tuple(checked)
