"""What a user says about how gradients are to be reduced, checked once."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from textwrap import shorten
from typing import Any

from hvd_compress.compressors.named import as_compressor
from hvd_compress.reduction.buckets import Rule


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
