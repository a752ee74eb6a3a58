"""Which parameters travel together, and under which compressor."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from hvd_compress.compressors import Compressor, parse, spec
from hvd_compress.compressors.schedule import END
from hvd_compress.ops.layout import Layout

logger = logging.getLogger("hvd_compress")

PLAIN = parse("none")


@dataclass(frozen=True)
class Gradient:
    """What the plan must know of a parameter.

    Attributes:
        name: its name, unique in the model: what rules match.
        shape: its shape.
        dtype: the dtype that it is sent in if it is sent plain.
        device: where it lies; gradients of different devices share no bucket.
        group: gradients of one group share a bucket; None leaves that to the plan.
        key: what layouts and saved states call it, if not by its name.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    device: str = "cpu"
    group: int | None = None
    key: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", self.key or self.name)

    @property
    def itemsize(self) -> int:
        """Bytes a coordinate."""
        return {"float16": 2, "float64": 8}.get(self.dtype, 4)

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Bucket:
    """Gradients that are exchanged as one vector of a dtype, by one compressor."""

    name: str
    compressor: Compressor
    layout: Layout
    dtype: str
    device: str


@dataclass(frozen=True)
class Rule:
    """A compression for the parameters of some names and sizes.

    Attributes:
        pattern: the names, as in a shell and with regard to case: ``*`` stands for any characters, ``?`` for one,
            ``[ab]`` for a or b.
        compression: as the optimizer's argument of this name; in a plan a `Compressor`.
        min_size, max_size: the sizes, in coordinates, both included; None is without limit.

    Raises:
        TypeError: if the pattern is no string.
        ValueError: if no size is allowed.
    """

    pattern: str = "*"
    compression: Any = "none"
    min_size: int = 0
    max_size: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str):
            raise TypeError(f"a rule's pattern must be a string; got {self.pattern!r}")
        if self.max_size is not None and self.min_size > self.max_size:
            raise ValueError(
                f"rule {self.pattern!r}: min_size must be at most max_size; got {self.min_size} and {self.max_size}"
            )

    def matches(self, gradient: Gradient) -> bool:
        """Tell whether the rule is for this parameter."""
        fits = self.min_size <= gradient.size and (self.max_size is None or gradient.size <= self.max_size)
        return fits and fnmatchcase(gradient.name, self.pattern)

    def __str__(self) -> str:
        compression = spec(self.compression) if isinstance(self.compression, Compressor) else self.compression
        largest = "any" if self.max_size is None else self.max_size
        sizes = f" (sizes {self.min_size} to {largest})" if (self.min_size, self.max_size) != (0, None) else ""
        return f"{self.pattern}={compression}{sizes}"


def wanted(gradient: Gradient, compressor: Compressor, dense_below: int, rules: Sequence[Rule] = ()) -> Compressor:
    """Return the compressor that is asked for: that of the first rule that matches.

    Without such a rule it is `compressor`, but plain for what is small or has one axis.
    """
    for rule in rules:
        if rule.matches(gradient):
            return rule.compression
    small = gradient.size < dense_below or len(gradient.shape) < 2
    return PLAIN if small and not compressor.small_too else compressor


def choose(gradient: Gradient, compressor: Compressor, dense_below: int, rules: Sequence[Rule] = ()) -> Compressor:
    """Return the compressor for one gradient: the one wanted, or plain if it would send no fewer bytes.

    What is sent plain gets its momentum here if `compressor` keeps it, for the optimizer then has none.
    """
    asked = wanted(gradient, compressor, dense_below, rules)
    if asked != PLAIN:
        if asked.whole_gradient or asked.varying or asked.majority_vote:
            return asked
        if asked.at(END).payload_bits(Layout.of([(gradient.name, gradient.shape)])) < 32 * gradient.size:
            return asked
    return compressor.plain or PLAIN


def make_plan(
    gradients: Sequence[Gradient],
    compressor: Compressor,
    rules: Sequence[Rule] = (),
    *,
    bucket_bytes: int,
    dense_below: int,
) -> list[Bucket]:
    """Divide the gradients into buckets, in the reverse of their order: backpropagation gives the last ones first.

    Args:
        gradients: the parameters, in the order of the model.
        compressor: for all that no rule matches and `choose` does not send plain.
        rules: exceptions, with compressors; the first that matches a parameter is used.
        bucket_bytes: a bucket is closed before its vector would grow above this. One parameter is never divided, and
            a method of the whole gradient has one bucket for all that it is used for.
        dense_below: parameters of fewer coordinates, and those of one axis, are sent plain unless a rule matches.
    """
    open_buckets: dict[Hashable, list[Gradient]] = {}
    closed: list[tuple[Compressor, list[Gradient]]] = []
    replaced: dict[Compressor, list[str]] = {}
    for gradient in reversed(gradients):
        asked = wanted(gradient, compressor, dense_below, rules)
        chosen = choose(gradient, compressor, dense_below, rules)
        if asked != PLAIN and chosen != asked and gradient.size:
            replaced.setdefault(asked, []).append(gradient.name)
        # All but plain gradients are exchanged as float32: their own dtypes need not agree.
        dtype = gradient.dtype if chosen.keeps_dtype else "float32"
        key = (chosen, dtype, gradient.device, gradient.group)
        members = open_buckets.setdefault(key, [])
        full = sum(g.size * g.itemsize for g in members) + gradient.size * gradient.itemsize > bucket_bytes
        if members and full and gradient.group is None and not chosen.whole_gradient:
            closed.append((chosen, members))
            open_buckets[key] = members = []
        members.append(gradient)
    closed += [(key[0], members) for key, members in open_buckets.items()]  # type: ignore[index]
    for asked, names in replaced.items():
        logger.info("%s would send no fewer bytes than plain fp32 for %s: sent plain", spec(asked), ", ".join(names))
    return [
        Bucket(
            name=str(number),
            compressor=chosen,
            layout=Layout.of([(g.key, g.shape) for g in members]),
            dtype=members[0].dtype if chosen.keeps_dtype else "float32",
            device=members[0].device,
        )
        for number, (chosen, members) in enumerate(closed)
    ]


def divided_as(layouts: Sequence[Layout], planned: Sequence[Bucket]) -> list[Bucket]:
    """Return a plan with given buckets, where any will do for all that lies in one; the others keep what is left."""
    of = {place.name: bucket for bucket in planned for place in bucket.layout.parameters}
    given: list[Bucket] = []
    for number, layout in enumerate(layouts):
        names = [place.name for place in layout.parameters]
        fitting = {replace(of[name], name=f"given.{number}", layout=layout) for name in names if name in of}
        if len(fitting) == 1 and of.keys() >= set(names):
            given += [bucket for bucket in fitting if bucket.compressor.any_bucket]
    taken = {place.name for bucket in given for place in bucket.layout.parameters}
    left = [[(p.name, p.shape) for p in bucket.layout.parameters if p.name not in taken] for bucket in planned]
    return given + [replace(b, layout=Layout.of(some)) for b, some in zip(planned, left, strict=True) if some]


def one_bucket_each(
    gradients: Sequence[Gradient], compressor: Compressor, rules: Sequence[Rule], dense_below: int
) -> list[Bucket]:
    """Return a bucket for each gradient, in their order, with the compressor that `choose` gives."""
    buckets = []
    for g in gradients:
        chosen = choose(g, compressor, dense_below, rules)
        dtype = g.dtype if chosen.keeps_dtype else "float32"
        buckets.append(Bucket(g.key, chosen, Layout.of([(g.key, g.shape)]), dtype, g.device))
    return buckets
