"""Pieces of a document in Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence


def paragraph(text: str) -> str:
    """Return a text in lines of at most 120 characters."""
    return textwrap.fill(" ".join(text.split()), 120, break_on_hyphens=False, break_long_words=False)


def table(head: str, rows: Iterable[Sequence[str]]) -> str:
    """Return a table; the titles of its columns are separated by " | "."""
    columns = len(head.split(" | "))
    return "\n".join([f"| {head} |", "|---" * columns + "|", *(f"| {' | '.join(row)} |" for row in rows)])
