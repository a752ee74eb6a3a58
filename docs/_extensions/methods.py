"""Directives that describe compressors from the compressors themselves: ``{methods} topk threshold``."""

from __future__ import annotations

import inspect
import re
from dataclasses import Field, fields
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from hvd_compress import Compressor, Layout, make, methods, spec
from hvd_compress.cli.list import COLUMNS, cells
from hvd_compress.compressors.schedule import END

EXAMPLE = Layout.of([("matrix", (1000, 1000))])


def described(cls: type[Compressor]) -> tuple[str, dict[str, str]]:
    """Return what a class's docstring says of the method, and of each of its settings, its bases' included."""
    text, settings = "", {}
    for each in reversed(cls.__mro__):
        if not each.__doc__ or not issubclass(each, Compressor):
            continue
        text, _, attributes = inspect.getdoc(each).partition("\nAttributes:\n")
        for name, meaning in re.findall(r"^    (\w+(?:, \w+)*): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE):
            settings |= dict.fromkeys(name.split(", "), " ".join(meaning.split()))
    return text.strip(), settings


def allowed(item: Field[Any]) -> str:
    """Return the values that a setting may have."""
    limits = item.metadata
    if limits.get("choices"):
        names = ", ".join(f"`{choice}`" for choice in limits["choices"])
        return f"{names}, or a compressor" if limits.get("nested") else names
    above, low, high = (limits.get(name) for name in ("above", "low", "high"))
    parts = [f"above {above}" if above is not None else f"from {low}" if low is not None else ""]
    parts += [f"up to {high}" if high is not None else ""]
    kind = {"int": "whole numbers", "float": "numbers", "bool": "`True`, `False`"}
    name = str(item.type).removesuffix(" | None")
    return " ".join([kind.get(name, name), *filter(None, parts)])


def method(name: str) -> str:
    """Return a method's section, in Markdown."""
    cls, compressor = methods()[name], make(name)
    inner = compressor.bare
    text, meanings = described(cls)
    settled = inner.at(END)
    sent = settled.payload_bits(EXAMPLE) // 8
    most = "at most " if settled.varying and sent == settled.payload_bits(EXAMPLE, EXAMPLE.size) // 8 else ""
    lines = [f"## `{name}`", "", text, "", f"- **What becomes of v:** `{inner.formula}`"]
    lines += [f"- **Sent:** {inner.wire}; {most}{sent:,} bytes for a matrix of 1000 x 1000 (4,000,000 in fp32)"]
    lines += [f"- **Collectives:** {', then '.join(compressor.collectives)}"]
    feedback = compressor.name if compressor is not inner else "none"
    lines += [f"- **Unbiased:** {'yes' if inner.unbiased else 'no'}. **Feedback unless told otherwise:** `{feedback}`"]
    lines += [f"- **Paper:** {inner.paper}"] if inner.paper else []
    rows = [
        f"| `{item.name}` | `{_default(getattr(inner, item.name))}` | {allowed(item)} | {meanings.get(item.name, '')} |"
        for item in fields(inner)
    ]
    if rows:
        lines += ["", "| setting | default | allowed | meaning |", "|---|---|---|---|", *rows]
    return "\n".join([*lines, ""])


def _default(value: Any) -> str:
    return spec(value) if isinstance(value, Compressor) else str(value)


class Methods(SphinxDirective):
    """The sections of some methods."""

    required_arguments = 1
    optional_arguments = 100

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        text = "\n".join(map(method, self.arguments))
        return self.parse_text_to_nodes(text, allow_section_headings=True)


class MethodsTable(SphinxDirective):
    """The table that ``hvd-compress list`` prints."""

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        rows = [COLUMNS, ("---",) * len(COLUMNS)]
        for name in methods():
            first, formula, *others = cells(make(name), EXAMPLE)
            rows.append((f"`{first}`", f"`{formula}`", *others))
        return self.parse_text_to_nodes("\n".join(f"| {' | '.join(row)} |" for row in rows))


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directives."""
    app.add_directive("methods", Methods)
    app.add_directive("methods-table", MethodsTable)
    return {"parallel_read_safe": True}
