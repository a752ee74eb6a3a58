"""Gradients that are not finite: all workers are told once, and steps are counted, or they raise an error."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from textwrap import shorten

CHOICES = ("warn", "error")


class NonFiniteGradients(FloatingPointError):
    """A worker's gradient is infinite or NaN, and with it all workers' means; they raise it with ``nonfinite="error"``.

    What compressors keep is as it was before the step.
    """


def report(step: int, parameters: Sequence[str], ranks: Sequence[int], nonfinite: str) -> None:
    """Warn of a step whose means are not finite, or raise NonFiniteGradients.

    Args:
        step: its number, from 1.
        parameters: those of the buckets in question.
        ranks: those whose own gradients are not finite, as far as this worker knows.
        nonfinite: "warn" or "error".
    """
    where = ", ".join(map(str, ranks)) or "another than this one, or is not known"
    text = (
        f"step {step}: the gradients of {shorten(', '.join(parameters), 200)} are not finite; rank: {where}. So are "
        "the means on all ranks, and compressors keep what they had before the step"
    )
    if nonfinite == "error":
        raise NonFiniteGradients(text)
    warnings.warn(
        f"{text}. This is said once: compression_stats()['nonfinite_steps'] counts such steps, and nonfinite='error' "
        "makes them an error",
        RuntimeWarning,
        stacklevel=4,
    )
