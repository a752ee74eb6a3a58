"""Specs with all their settings, which name what a result is of."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from hvd_compress.compressors import Compressor, Feedback


def spec_in_full(compressor: Compressor) -> str:
    """Return a compressor's spec with all settings, those that have their defaults as well."""
    inner = compressor.bare
    settings = _settings(inner)
    if isinstance(compressor, Feedback):
        settings["feedback"] = _call(compressor.name, _settings(compressor))
    return _call(inner.name, settings)


def _settings(owner: Any) -> dict[str, Any]:
    return {item.name: getattr(owner, item.name) for item in fields(owner) if item.name != "inner"}


def _call(name: str, settings: dict[str, Any]) -> str:
    texts = (
        f"{key}={spec_in_full(value) if isinstance(value, Compressor) else value}" for key, value in settings.items()
    )
    return f"{name}({', '.join(texts)})"
