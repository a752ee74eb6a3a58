"""Compressors by name: ``"topk(ratio=0.01, feedback=none)"`` to an object, and back."""

from __future__ import annotations

import ast
import dataclasses
from typing import Any

from hvd_compress.compressors.base import Compressor
from hvd_compress.compressors.cast import HalfPrecision, NoCompression
from hvd_compress.compressors.feedback import ErrorFeedback
from hvd_compress.compressors.lowrank import PowerSGD
from hvd_compress.compressors.quantize import QSGD
from hvd_compress.compressors.sparsify import RandomK, TopK

_METHODS: dict[str, type[Compressor]] = {
    cls.name: cls for cls in (NoCompression, HalfPrecision, TopK, RandomK, QSGD, PowerSGD)
}
FEEDBACKS = ("none", "ef")


def methods() -> dict[str, type[Compressor]]:
    """Return the compressors' classes by the names that specs call them."""
    return dict(_METHODS)


def make(name: str, *args: Any, feedback: str | None = None, **settings: Any) -> Compressor:
    """Return a compressor by its name, with its feedback.

    Args:
        name: one of `methods()`.
        args: settings in the order of the class's fields.
        feedback: "ef" (error feedback), "none", or None for the method's own default.
        settings: settings by name.

    Raises:
        ValueError: if the name, a setting's name or a setting's value is not allowed.
        TypeError: if a setting has the wrong type.
    """
    if name not in _METHODS:
        raise ValueError(f"unknown compressor {name!r}; known are: {', '.join(sorted(_METHODS))}")
    cls = _METHODS[name]
    allowed = [item.name for item in dataclasses.fields(cls)]
    if len(args) > len(allowed):
        raise ValueError(f"{name}: takes {len(allowed)} settings ({', '.join(allowed) or 'none'}); got {len(args)}")
    for given in settings:
        if given not in allowed:
            raise ValueError(f"{name}: unknown setting {given!r}; known are: {', '.join([*allowed, 'feedback'])}")
        if given in allowed[: len(args)]:
            raise ValueError(f"{name}: {given} is given twice")
    compressor = cls(*args, **settings)
    chosen = compressor.default_feedback if feedback is None else feedback
    if chosen not in FEEDBACKS:
        raise ValueError(f"{name}: feedback must be one of {', '.join(FEEDBACKS)}; got {feedback!r}")
    return ErrorFeedback(compressor) if chosen == "ef" else compressor


def parse(text: str) -> Compressor:
    """Return the compressor that a spec describes: ``name`` or ``name(setting=value, ...)``.

    Values are numbers, True, False, and words with or without quotes.

    Raises:
        ValueError: if the text is no spec, or a name or value in it is not allowed; the message says what is.
        TypeError: if a value has the wrong type.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        tree = None
    if isinstance(tree, ast.Name):
        return make(tree.id)
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
        raise ValueError(f'{text!r} is no compression spec; write for example "topk" or "topk(ratio=0.01)"')
    settings: dict[str, Any] = {}
    for keyword in tree.keywords:
        if keyword.arg is None:
            raise ValueError(f"{text!r}: settings are written name=value")
        settings[keyword.arg] = _value(keyword.value, text)
    return make(tree.func.id, *(_value(argument, text) for argument in tree.args), **settings)


def _value(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Name):
        return node.id
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f"{text!r}: {ast.unparse(node)} is neither a number nor a word") from None


def spec(compressor: Compressor) -> str:
    """Return the shortest spec of a compressor: ``parse(spec(c)) == c``."""
    inner = compressor.inner if isinstance(compressor, ErrorFeedback) else compressor
    settings = [
        f"{item.name}={getattr(inner, item.name)}"
        for item in dataclasses.fields(inner)
        if getattr(inner, item.name) != item.default
    ]
    chosen = "none" if inner is compressor else "ef"
    if chosen != inner.default_feedback:
        settings.append(f"feedback={chosen}")
    return f"{inner.name}({', '.join(settings)})" if settings else inner.name
