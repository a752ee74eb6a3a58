"""What a user says about how gradients are to be reduced: checked once, each default written once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from textwrap import shorten
from typing import Any

from hvd_compress.compressors import Compressor, spec
from hvd_compress.compressors.named import AUTO, as_compressor
from hvd_compress.reduction.buckets import PLAIN, Rule
from hvd_compress.reduction.nonfinite import CHOICES

BUCKET_BYTES = 25 * 2**20
DENSE_BELOW = 1024


@dataclass(frozen=True)
class Settings:
    """How gradients are to be reduced. All workers must have the same, which they compare in the first step.

    Attributes:
        compression: what the user gave: an object of `Compression`, or a spec. Afterwards a `Compressor`.
        rules: exceptions: `Rule` objects or tuples (pattern, compression). Afterwards `Rule` objects with compressors.
        names: of the parameters, which each rule's pattern must match one of; None if they are not known yet.
        op: "average" or "sum".
        gradient_predivide_factor: with "average", divides before the sum and multiplies after the mean.
        sparse_as_dense: exchange sparse gradients as dense ones.
        bucket_bytes, dense_below: see `hvd_compress.reduction.buckets.make_plan`.
        seed: of all random numbers.
        nonfinite: what comes of gradients that are not finite: "warn" or "error".
        backward_passes_per_step: passes whose gradients are accumulated before they are exchanged.
        groups: for a parameter's name the number of the bucket that it must be in.
        chooses: whether `compression` may be "auto": it is "none" then, until the workers have chosen another one.
        automatic: whether it was "auto".
        chosen: whether they have chosen.

    Raises:
        ValueError: if a value is not allowed, or a rule matches no name.
        TypeError: if `compression` is none, or `rules` holds anything but rules.
    """

    compression: Any
    rules: Any = ()
    names: tuple[str, ...] | None = field(default=None, compare=False, repr=False)
    op: str = "average"
    gradient_predivide_factor: float = 1.0
    sparse_as_dense: bool = False
    bucket_bytes: int = BUCKET_BYTES
    dense_below: int = DENSE_BELOW
    seed: int = 0
    nonfinite: str = "warn"
    backward_passes_per_step: int = 1
    groups: Mapping[str, int] = field(default_factory=dict, hash=False)
    chooses: bool = field(default=False, compare=False)
    automatic: bool = False
    chosen: bool = False

    def __post_init__(self) -> None:
        if self.gradient_predivide_factor != 1.0 and self.op != "average":
            raise ValueError("gradient_predivide_factor not supported with op != Average")
        if not self.gradient_predivide_factor > 0:
            raise ValueError(f"gradient_predivide_factor must be above 0; got {self.gradient_predivide_factor}")
        if self.backward_passes_per_step < 1:
            raise ValueError(f"backward_passes_per_step must be > 0; got {self.backward_passes_per_step}")
        for name, least in (("bucket_bytes", 1), ("dense_below", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; got {getattr(self, name)}")
        if self.nonfinite not in CHOICES:
            raise ValueError(f"nonfinite must be one of {', '.join(CHOICES)}; got {self.nonfinite!r}")
        if self.chooses and isinstance(self.compression, str) and self.compression.strip() == AUTO:
            object.__setattr__(self, "compression", PLAIN)
            object.__setattr__(self, "automatic", True)
        object.__setattr__(self, "compression", as_compressor(self.compression))
        object.__setattr__(self, "rules", as_rules(self.rules, self.names))
        if self.groups and any(compressor.whole_gradient for compressor in self.compressors):
            raise ValueError("groups cannot be used with a method that needs the whole gradient at once")

    @property
    def compressors(self) -> list[Compressor]:
        """All that may be used."""
        return [self.compression, *(rule.compression for rule in self.rules)]

    def with_compression(self, compression: Any, rules: Any) -> Settings:
        """Return these settings with another compression, and with its rules."""
        return replace(self, compression=compression, rules=rules or (), automatic=False, chosen=False)

    def choosing(self, compression: str, chosen: bool = True) -> Settings:
        """Return these automatic settings with a method that was chosen, or was in use before."""
        return replace(self, compression=compression, chosen=chosen)

    def of_saved(self, compression: str) -> Settings:
        """Return the settings for a state that was saved with a method: automatic ones take any, as their choice."""
        return self.choosing(compression, as_compressor(compression) != PLAIN) if self.automatic else self

    @property
    def undecided(self) -> bool:
        """Whether a method is still to be chosen."""
        return self.automatic and not self.chosen

    @property
    def named(self) -> str:
        """What the user calls the compression."""
        return AUTO if self.automatic else spec(self.compression)

    def scales(self, workers: int) -> tuple[float, float]:
        """Return the factors on gradients before they are averaged, and on the means."""
        if self.op == "sum":
            return 1.0, float(workers)
        return 1.0 / self.gradient_predivide_factor, self.gradient_predivide_factor

    def check_each_tensor_alone(self, instead: str) -> None:
        """Raise ValueError if a compressor needs the whole gradient, naming what to use instead."""
        for compressor in self.compressors:
            if compressor.whole_gradient:
                raise ValueError(
                    f"{spec(compressor)} needs the gradient of the whole model at once, and Horovod hands over one "
                    f"tensor at a time; use {instead}"
                )

    def described(self) -> dict[str, Any]:
        """Return what the workers compare, as JSON can hold it."""
        return {
            "compression": self.named,
            "seed": self.seed,
            "nonfinite": self.nonfinite,
            "rules": [str(rule) for rule in self.rules],
            "op and gradient_predivide_factor": [self.op, self.gradient_predivide_factor],
            "backward_passes_per_step": self.backward_passes_per_step,
            "groups": sorted([name, number] for name, number in self.groups.items()),
            "sparse_as_dense": self.sparse_as_dense,
            "bucket_bytes": self.bucket_bytes,
            "dense_below": self.dense_below,
        }


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
