"""Compressors by name: ``"topk(ratio=0.01, feedback=none)"`` to an object, and back."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Sequence
from typing import Any

from hvd_compress.compressors.base import Compressor
from hvd_compress.compressors.cast import HalfPrecision, NoCompression
from hvd_compress.compressors.feedback import FEEDBACKS, Feedback, settings_of
from hvd_compress.compressors.lowrank import PowerSGD
from hvd_compress.compressors.quantize import QSGD, BFloat16, Int8, LowPrecision, Natural, TernGrad
from hvd_compress.compressors.schedule import SCHEDULES
from hvd_compress.compressors.sign import EFSignSGD, OneBit, SignSGD, Signum
from hvd_compress.compressors.sketching import FetchSGD, SketchedSGD
from hvd_compress.compressors.sparsify import DGC, RandomK, Threshold, TopK, Wangni

_METHODS: dict[str, type[Compressor]] = {
    cls.name: cls
    for cls in (
        *(NoCompression, HalfPrecision, BFloat16, Int8),
        *(TopK, Threshold, RandomK, DGC, Wangni),
        *(QSGD, TernGrad, Natural, LowPrecision),
        *(SignSGD, EFSignSGD, OneBit, Signum),
        *(SketchedSGD, FetchSGD),
        PowerSGD,
    )
}


def methods() -> dict[str, type[Compressor]]:
    """Return the compressors' classes by the names that specs call them."""
    return dict(_METHODS)


def make(name: str, *args: Any, feedback: str | None = None, **settings: Any) -> Compressor:
    """Return a compressor by its name, with its feedback.

    Args:
        name: one of `methods()`.
        args: settings in the order of the class's fields.
        feedback: "none", "ef" (error feedback), "ef21", "momentum" (momentum correction), each as it is or with its
            settings, such as "momentum(momentum=0.9, masking=False)"; None for the method's own default.
        settings: settings by name. Any number may be a `Schedule`; where a compressor is wanted, a spec will do.

    Raises:
        ValueError: if the name, a setting's name or a setting's value is not allowed, or the feedback makes no sense.
        TypeError: if a setting has the wrong type.
    """
    if name not in _METHODS:
        raise ValueError(f"unknown compressor {name!r}; known are: {', '.join(sorted(_METHODS))}")
    cls = _METHODS[name]
    fields = dataclasses.fields(cls)
    given = _by_name(name, fields, args, settings, extra=["feedback"])
    for item in fields:
        value = given.get(item.name)
        if item.metadata["nested"] and isinstance(value, str) and value.partition("(")[0] in _METHODS.keys() - {"fp16"}:
            given[item.name] = parse(value, nested=True)
    compressor = cls(**given)
    return _with_feedback(compressor, compressor.default_feedback if feedback is None else feedback)


def parse(text: str, *, nested: bool = False) -> Compressor:
    """Return the compressor that a spec describes: ``name`` or ``name(setting=value, ...)``.

    Values are numbers, True, False, words with or without quotes, schedules such as ``linear(0.1, 0.01, steps=500)``,
    and specs. A compressor `nested` in another has no feedback: that is the outer one's affair.

    Raises:
        ValueError: if the text is no spec, or a name or value in it is not allowed; the message says what is.
        TypeError: if a value has the wrong type.
    """
    name, args, settings = _call(text)
    if nested:
        settings.setdefault("feedback", "none")
    return make(name, *args, **settings)


def spec(compressor: Compressor) -> str:
    """Return the shortest spec of a compressor: ``parse(spec(c)) == c``."""
    inner = compressor.bare
    settings = _settings(inner, dataclasses.fields(inner))
    if compressor != _with_feedback(inner, inner.default_feedback):
        chosen = "none"
        if isinstance(compressor, Feedback):
            chosen = _text(compressor.name, _settings(compressor, settings_of(compressor)))
        settings.append(f"feedback={chosen}")
    return _text(inner.name, settings)


def _with_feedback(compressor: Compressor, feedback: str) -> Compressor:
    if feedback == "none":
        return compressor
    kind, args, settings = _call(feedback)
    if kind not in FEEDBACKS:
        allowed = ", ".join(["none", *FEEDBACKS])
        raise ValueError(f"{compressor.name}: feedback must be one of {allowed}; got {feedback!r}")
    cls = FEEDBACKS[kind]
    return cls(compressor, **_by_name(f"{compressor.name}: feedback={kind}", settings_of(cls), args, settings))


def _by_name(
    name: str,
    fields: Sequence[dataclasses.Field[Any]],
    args: Sequence[Any],
    settings: dict[str, Any],
    extra: Sequence[str] = (),
) -> dict[str, Any]:
    """Return positional and named settings by name, all of them known, none missing, none given twice."""
    allowed = [item.name for item in fields]
    if len(args) > len(allowed):
        raise ValueError(f"{name}: takes {len(allowed)} settings ({', '.join(allowed) or 'none'}); got {len(args)}")
    for given in settings:
        if given not in allowed:
            raise ValueError(f"{name}: unknown setting {given!r}; known are: {', '.join([*allowed, *extra])}")
        if given in allowed[: len(args)]:
            raise ValueError(f"{name}: {given} is given twice")
    found = dict(zip(allowed, args, strict=False)) | settings
    missing = [item.name for item in fields if item.default is dataclasses.MISSING and item.name not in found]
    if missing:
        raise ValueError(f"{name}: {missing[0]} is missing; it takes {', '.join(allowed)}")
    return found


def _call(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Return the name, the arguments and the named arguments in a text."""
    try:
        return _parts(text)
    except (RecursionError, MemoryError):  # what Python says of too many brackets or signs
        raise ValueError(f"{text[:40] + ' ...'!r} is no compression spec: it is nested too deep") from None


def _parts(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        tree = None
    if isinstance(tree, ast.Name):
        return tree.id, [], {}
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
        raise ValueError(f'{text!r} is no compression spec; write for example "topk" or "topk(ratio=0.01)"')
    settings: dict[str, Any] = {}
    for keyword in tree.keywords:
        if keyword.arg is None:
            raise ValueError(f"{text!r}: settings are written name=value")
        settings[keyword.arg] = _value(keyword.value, text)
    return tree.func.id, [_value(argument, text) for argument in tree.args], settings


def _value(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Call):
        inner = ast.unparse(node)
        name, args, settings = _call(inner)
        if name not in SCHEDULES:
            return inner  # a spec, for whoever takes one
        cls = SCHEDULES[name]
        return cls(**_by_name(name, dataclasses.fields(cls), args, settings))
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f"{text!r}: {ast.unparse(node)} is neither a number nor a word") from None


def _settings(owner: Any, fields: Sequence[dataclasses.Field[Any]]) -> list[str]:
    """Return the settings that are not the defaults, as a spec has them."""
    values = {item.name: getattr(owner, item.name) for item in fields if getattr(owner, item.name) != item.default}
    return [f"{name}={spec(value) if isinstance(value, Compressor) else value}" for name, value in values.items()]


def _text(name: str, settings: Sequence[str]) -> str:
    return f"{name}({', '.join(settings)})" if settings else name
