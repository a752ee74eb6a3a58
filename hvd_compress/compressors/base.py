"""What a compressor is: a generator that yields the collectives it needs and returns the mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from hvd_compress.layout import Layout
from hvd_compress.ops import Array, Ops
from hvd_compress.state import State


@dataclass(frozen=True)
class AllReduce:
    """Combine arrays of one shape and dtype elementwise; every worker receives the combined array.

    The array is not modified. Float16, float32, float64, int32 and int64 are summed everywhere.
    """

    array: Array
    op: Literal["sum", "mean", "max"] = "mean"


@dataclass(frozen=True)
class AllGather:
    """Hand every worker's payload to every worker; each receives the list of payloads, in the order of ranks.

    A payload is a one-dimensional uint8 array. With ``varying`` the workers' lengths may differ, and eight bytes of
    length precede each payload on the wire.
    """

    payload: Array
    varying: bool = False


Collective = AllReduce | AllGather


@dataclass(frozen=True)
class Reduced:
    """What one exchange comes to.

    Attributes:
        mean: what every worker ends up with, a vector of the input's shape.
        sent: gives what this worker's own contribution amounted to, a vector of the same shape. Error feedback alone
            asks for it.
    """

    mean: Array
    sent: Callable[[], Array]


Exchanging = Generator[Collective, Any, Reduced]


def setting(
    default: Any = dataclasses.MISSING,
    *,
    above: float | None = None,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[Any, ...] | None = None,
) -> Any:
    """Return a field that `Compressor` validates: above < value, low <= value <= high, or one of `choices`."""
    return field(default=default, metadata={"above": above, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True)
class Compressor:
    """A method of compressed communication: frozen settings, and the algorithm in `reduce`.

    Class attributes:
        name: what specs call it.
        wire: the wire format in a few words.
        collectives: what `reduce` yields, in order: "allreduce" or "allgather".
        unbiased: whether the decoded vector's expectation is the vector.
        stateful: whether it reads anything of `State` but the layout (steps, random numbers, arrays).
        whole_gradient: whether it must see the gradient of the whole model in one vector.
        keeps_dtype: whether it sends any floating dtype as it is; the others are given float32.
        small_too: whether small and one-dimensional parameters are worth compressing as well.
    """

    name: ClassVar[str]
    wire: ClassVar[str]
    collectives: ClassVar[tuple[str, ...]]
    unbiased: ClassVar[bool] = False
    stateful: ClassVar[bool] = True
    keeps_dtype: ClassVar[bool] = False
    small_too: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check every setting against its allowed range.

        Raises:
            TypeError: if a setting is of the wrong type.
            ValueError: if a setting is outside its allowed range.
        """
        for item in dataclasses.fields(self):
            check_setting(self.name, item, getattr(self, item.name))

    @property
    def whole_gradient(self) -> bool:
        """Whether the method needs all of the model's gradient in one vector."""
        return False

    @property
    def default_feedback(self) -> str:
        """The feedback that the method is used with unless told otherwise: "ef" if it is biased, else "none"."""
        return "none" if self.unbiased else "ef"

    def check_feedback(self) -> None:
        """Raise ValueError, with the reason, if error feedback makes no sense with these settings."""

    def reduce(self, ops: Ops, vector: Array, state: State) -> Exchanging:
        """Exchange one vector with the other workers.

        Args:
            ops: the array operations of the vector's framework.
            vector: shape (d,), float32 (any float if `keeps_dtype`), finite or all NaN; it is not modified. A vector
                of NaN must give a mean that is not finite: so does a non-finite gradient reach every worker.
            state: this worker's state for this vector.
        """
        raise NotImplementedError

    def payload_bits(self, layout: Layout) -> int:
        """Return the bits that this worker hands to the collectives in one step, headers included."""
        raise NotImplementedError


class GatherCompressor(Compressor):
    """A compressor of one AllGather: it defines `encode` and `decode`, and the mean is that of the decoded payloads."""

    collectives: ClassVar[tuple[str, ...]] = ("allgather",)

    def encode(self, ops: Ops, vector: Array, state: State) -> Array:
        """Return the payload, uint8 of shape (payload_bits / 8,)."""
        raise NotImplementedError

    def decode(self, ops: Ops, payload: Array, layout: Layout) -> Array:
        """Return the vector in a payload, float32 of shape (layout.size,).

        Raises:
            ValueError: if the payload is not one that `encode` can have written.
        """
        raise NotImplementedError

    def accumulate(self, ops: Ops, total: Array, payload: Array, layout: Layout) -> Array:
        """Return `total` plus the decoded payload; `total` may be overwritten."""
        total += self.decode(ops, payload, layout)
        return total

    def reduce(self, ops: Ops, vector: Array, state: State) -> Exchanging:
        """Gather the payloads and average what they decode to."""
        payload = self.encode(ops, vector, state)
        payloads = yield AllGather(payload)
        total = ops.zeros(state.layout.size)
        for other in payloads:
            total = self.accumulate(ops, total, other, state.layout)
        return Reduced(mean=total / len(payloads), sent=lambda: self.decode(ops, payload, state.layout))


def check_length(name: str, payload: Array, expected: int) -> None:
    """Raise ValueError if a payload has not the expected number of bytes."""
    if payload.shape != (expected,):
        raise ValueError(f"{name}: a payload of shape {tuple(payload.shape)} came in, expected {expected} bytes")


def check_setting(name: str, item: dataclasses.Field[Any], value: Any) -> None:
    """Check one setting against its field's type and range (see `setting`)."""
    limits = item.metadata
    if limits.get("choices"):
        if value not in limits["choices"]:
            allowed = ", ".join(str(choice) for choice in limits["choices"])
            raise ValueError(f"{name}: {item.name} must be one of {allowed}; got {value!r}")
        return
    kinds: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,)}
    kind = kinds.get(str(item.type))
    if kind is None:
        return
    if not isinstance(value, kind) or (isinstance(value, bool) and kind != (bool,)):
        raise TypeError(f"{name}: {item.name} must be of type {item.type}; got {value!r}")
    above, low, high = (limits.get(key) for key in ("above", "low", "high"))
    too_low = (above is not None and not value > above) or (low is not None and not value >= low)
    if too_low or (high is not None and not value <= high):
        left = f"({above}" if above is not None else f"[{low}" if low is not None else "(-inf"
        right = f"{high}]" if high is not None else "inf)"
        raise ValueError(f"{name}: {item.name} must be in {left}, {right}; got {value!r}")
