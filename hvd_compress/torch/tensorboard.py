"""What is sent, beside the loss in TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Writer(Protocol):
    """``torch.utils.tensorboard.SummaryWriter``, or what has its method."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Log a number."""


def add_compression(writer: Writer, stats: Mapping[str, Any], step: int, prefix: str = "compression") -> None:
    """Log what ``compression_stats()`` tells, on the rank that has a writer.

    Args:
        writer: a ``torch.utils.tensorboard.SummaryWriter``.
        stats: of an optimizer or a DDP model; with phases, the exposed seconds of each are logged as well.
        step: the number that TensorBoard draws it over.
        prefix: begins the tags: ``compression/bytes_sent``, ``compression/phases/wire``.
    """
    for name, value in stats.items():
        if isinstance(value, int | float):
            writer.add_scalar(f"{prefix}/{name}", value, step)
    for name, seconds in stats.get("phases", {}).items():
        exposed = seconds["exposed"] if isinstance(seconds, Mapping) else seconds
        if exposed is not None:
            writer.add_scalar(f"{prefix}/phases/{name}", exposed, step)
