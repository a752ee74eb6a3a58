"""The compressor interface: a generator that yields the collectives it needs and returns the mean."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

from hvd_compress.compressors.schedule import Schedule
from hvd_compress.compressors.state import State
from hvd_compress.ops import Array, Ops
from hvd_compress.ops.layout import Layout


@dataclass(frozen=True)
class AllReduce:
    """Combine arrays of one shape and dtype elementwise; every worker receives the combined array.

    The array is not modified, unless nobody needs it any more (`spare`): then a transport may combine in place.
    Float16, float32, float64, int32 and int64 are summed everywhere.
    """

    array: Array
    op: Literal["sum", "mean", "max"] = "mean"
    spare: bool = False
    kind: ClassVar[str] = "allreduce"

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return int(self.array.nbytes)


@dataclass(frozen=True)
class AllGather:
    """Hand every worker's payload to every worker; each receives the list of payloads, in the order of ranks.

    A payload is a one-dimensional uint8 array. With ``varying`` the workers' lengths may differ, and eight bytes of
    length precede each payload on the wire. Its bytes are counted under its ``kind``.
    """

    payload: Array
    varying: bool = False
    kind: str = "allgather"

    @property
    def nbytes(self) -> int:
        """Bytes of the payload."""
        return int(self.payload.nbytes)


Collective = AllReduce | AllGather


class Contribution:
    """What one worker contributes to the mean: the vector that its payload decodes to.

    The sender gets it with its payload, the receiver by reading the payload. Nothing is decoded before it is needed,
    and nothing twice.

    Args:
        ops: the array operations of the vector's framework.
        decode: returns the values at `indices`, float32 (float16 where the method sums in float16).
        indices: the coordinates that are sent, int64, ascending and distinct; None for all of them.
    """

    def __init__(self, ops: Ops, decode: Callable[[], Array], indices: Array | None = None) -> None:
        self.ops, self.indices = ops, indices
        self._decode = decode

    @functools.cached_property
    def values(self) -> Array:
        """The values at `indices`; not to be modified."""
        return self._decode()

    def add_to(self, total: Array, factor: float = 1.0) -> Array:
        """Return `total` plus `factor` times the vector; `total` may be overwritten."""
        if self.indices is None:
            return self.ops.add(total, self.values, factor)
        return self.ops.scatter_add(total, self.indices, self.values if factor == 1 else self.values * factor)


@dataclass(frozen=True)
class Reduced:
    """The result of one exchange.

    Attributes:
        mean: the mean of all contributions, the same on every worker; a vector of the input's shape.
        sent: this worker's own contribution; None where feedback has used it, or the method keeps its error itself.
        finite: True where the method knows that the mean is; otherwise one must look.
    """

    mean: Array
    sent: Contribution | None
    finite: bool = False


Exchanging = Generator[Collective, Any, Reduced]
Keep = Callable[[Array, Array | None], None]
"""``keep(rest, indices)`` is told what a worker has not sent, and which coordinates it has sent (None for all)."""
Self = TypeVar("Self", bound="Compressor")


def setting(
    default: Any = dataclasses.MISSING,
    *,
    above: float | None = None,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[Any, ...] | None = None,
    nested: bool = False,
) -> Any:
    """Return a field that `Compressor` validates: above < value, low <= value <= high, or one of `choices`.

    A `nested` setting takes another compressor as well.
    """
    return field(
        default=default, metadata={"above": above, "low": low, "high": high, "choices": choices, "nested": nested}
    )


@dataclass(frozen=True)
class Compressor:
    """A method of compressed communication: frozen settings, and the algorithm in `reduce`.

    Class attributes:
        name: what specs call it.
        formula: what becomes of a vector v, in one line.
        paper: where it comes from.
        wire: the wire format in a few words.
        collectives: what `reduce` yields, in order: "allreduce" or "allgather".
        unbiased: whether the decoded vector's expectation is the vector.
        contraction: whether the error is smaller than the vector, so that feedback can correct it in later steps.
        stateful: whether it reads more of `State` than the layout (steps, random numbers, arrays).
        majority_vote: the result is a majority vote of the workers' signs, not a mean.
        estimates: the result is an estimate of the mean of the contributions, not the mean itself.
        selects: whether it sends some of the coordinates only.
        varying: whether the length of what it sends depends on the vector.
        overwrites: whether `reduce` may overwrite the vector.
        coupled: names of arrays of the state of which those of all workers belong together: if one worker has lost its
            own, all forget theirs.
        remedy: advice to the user if the residual grows without bound.
        whole_gradient: whether it needs the gradient of the whole model in one vector.
        keeps_dtype: whether it takes any floating dtype and sends it unchanged; other methods are given float32.
        small_too: whether small and one-dimensional parameters are worth compressing as well.
        gives_back: whether `withhold` gives back all that a mean took, or was added to this worker's vector.
        portable: whether workers on processors of different kinds (a CPU, a GPU) make the same mean, to the last bit,
            of what collectives gave them.
        spreads: whether a vector with a non-finite value makes the mean non-finite by itself, and likewise what this
            worker hands to the first collective, which is an AllReduce.
        elementwise: whether a coordinate's mean depends on that coordinate alone, whatever else is in the vector.
    """

    name: ClassVar[str]
    formula: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    wire: ClassVar[str]
    collectives: ClassVar[tuple[str, ...]]
    unbiased: ClassVar[bool] = False
    contraction: ClassVar[bool] = True
    stateful: ClassVar[bool] = True
    majority_vote: ClassVar[bool] = False
    estimates: ClassVar[bool] = False
    selects: ClassVar[bool] = False
    varying: ClassVar[bool] = False
    overwrites: ClassVar[bool] = False
    coupled: ClassVar[tuple[str, ...]] = ()
    remedy: ClassVar[str] = "Send more in each step, or lower the learning rate or the momentum."
    keeps_dtype: ClassVar[bool] = False
    small_too: ClassVar[bool] = False
    elementwise: ClassVar[bool] = False
    portable: ClassVar[bool] = True
    gives_back: ClassVar[bool] = False
    spreads: ClassVar[bool] = False

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
        """The feedback that the method is used with unless told otherwise: "ef" for a biased contraction."""
        return "ef" if self.contraction and not self.unbiased else "none"

    @property
    def any_bucket(self) -> bool:
        """Whether gradients may be divided into buckets in any way, and anew at any time, with the same means."""
        return self.elementwise and not self.stateful

    @property
    def has_momentum(self) -> bool:
        """Whether it applies momentum itself, by a setting of that name; the optimizer's own must then be 0."""
        return getattr(self, "momentum", 0.0) != 0.0

    @property
    def bare(self) -> Compressor:
        """The method without its feedback."""
        return self

    @property
    def plain(self) -> Compressor | None:
        """What stands in for the method where gradients are sent as they are; None for `NoCompression`."""
        return None

    def check_feedback(self) -> None:
        """Raise ValueError, with the reason, if feedback makes no sense with these settings."""
        if not self.contraction:
            raise ValueError(
                f"{self.name} allows no feedback with these settings: its error can be larger than the vector, and the "
                "residual would grow without bound; use feedback=none"
            )

    @functools.cached_property
    def scheduled(self) -> bool:
        """Whether a setting, here or of a compressor inside, follows a schedule."""
        values = [getattr(self, item.name) for item in dataclasses.fields(self)]
        return any(isinstance(v, Schedule) or (isinstance(v, Compressor) and v.scheduled) for v in values)

    def at(self: Self, step: int) -> Self:
        """Return the compressor with each scheduled setting at its value for a step."""
        if not self.scheduled:
            return self
        changed: dict[str, Any] = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Schedule):
                changed[item.name] = round(value.at(step)) if str(item.type).startswith("int") else value.at(step)
            elif isinstance(value, Compressor):
                changed[item.name] = value.at(step)
        return dataclasses.replace(self, **changed)

    def reduce(self, ops: Ops, vector: Array, state: State) -> Exchanging:
        """Exchange one vector with the other workers.

        Args:
            ops: the array operations of the vector's framework.
            vector: shape (d,), float32 (any float if `keeps_dtype`), finite or all NaN (or anything, if the method
                `spreads`); it is not modified unless the method `overwrites`. A vector of NaN must give a mean that is
                not finite: so does a non-finite gradient reach every worker.
            state: this worker's state for this vector.
        """
        raise NotImplementedError

    def reduce_rest(self, ops: Ops, vector: Array, residual: Array | None, state: State, keep: Keep) -> Exchanging:
        """Exchange vector + residual, and call `keep` once, as soon as this worker's contribution is known.

        `vector` is overwritten, by the rest as a rule; `residual` is not. The result has no `sent`.
        """
        if residual is not None:
            vector = ops.add(vector, residual)
        reduced = yield from self.reduce(ops, vector, state)
        assert reduced.sent is not None
        keep(reduced.sent.add_to(vector, -1.0), reduced.sent.indices)
        return Reduced(reduced.mean, None)

    def withhold(self, ops: Ops, mean: Array, places: Iterable[slice], state: State) -> None:
        """Give back what a finished step took from the workers' residuals at places where its mean is not applied.

        Args:
            ops: the array operations of the mean's framework.
            mean: the mean of the step.
            places: the coordinates that no worker had a gradient for.
            state: this worker's, before the step is committed.
        """

    def first_collective(self, step: int) -> str:
        """Return what `reduce` yields first in a step: "allreduce" or "allgather"."""
        return self.collectives[0]

    def payload_bits(self, layout: Layout, kept: int | None = None) -> int:
        """Return the bits that this worker hands to the collectives in one step, headers included.

        Args:
            layout: the parameters in the vector.
            kept: the number of coordinates that were sent, which determines the length of a `varying` method; None for
                the expected number, or for the largest possible one if there is no expectation.
        """
        raise NotImplementedError


class GatherCompressor(Compressor):
    """A compressor of one AllGather: it defines `encode` and `decode`, and the mean is that of the decoded payloads.

    By the time it yields its payload, it has written all its state, and so have error feedback and momentum correction
    around it: a sender who needs no mean takes the payload, commits the state, and drops the generator.
    """

    collectives: ClassVar[tuple[str, ...]] = ("allgather",)

    def encode(self, ops: Ops, vector: Array, state: State) -> tuple[Array, Contribution]:
        """Return the payload, uint8 of shape (payload_bits / 8,), and what it decodes to."""
        raise NotImplementedError

    def decode(self, ops: Ops, payload: Array, layout: Layout) -> Array:
        """Return the vector in a payload, float32 of shape (layout.size,).

        Raises:
            ValueError: if the payload is not one that `encode` can have written.
        """
        raise NotImplementedError

    def read(self, ops: Ops, payload: Array, layout: Layout) -> Contribution:
        """Return a payload as the contribution that it is; ValueError, here or when it is decoded, as `decode`."""
        return Contribution(ops, lambda: self.decode(ops, payload, layout))

    def combine(self, ops: Ops, sent: Iterable[Contribution], workers: int, layout: Layout) -> Array:
        """Return the mean of as many contributions as there are workers, in the order of ranks."""
        total = ops.zeros(layout.size)
        for contribution in sent:
            total = contribution.add_to(total, 1 / workers)
        return total

    def encode_rest(
        self, ops: Ops, vector: Array, residual: Array | None, state: State
    ) -> tuple[Array, Contribution, Array]:
        """Encode vector + residual, and return what is not sent as well, for which `vector` is overwritten."""
        if residual is not None:
            vector = ops.add(vector, residual)
        payload, own = self.encode(ops, vector, state)
        return payload, own, own.add_to(vector, -1.0)

    def reduce(self, ops: Ops, vector: Array, state: State) -> Exchanging:
        payload, own = self.encode(ops, vector, state)
        return Reduced(self._mean(ops, (yield AllGather(payload, self.varying)), own, state), own)

    def reduce_rest(self, ops: Ops, vector: Array, residual: Array | None, state: State, keep: Keep) -> Exchanging:
        payload, own, rest = self.encode_rest(ops, vector, residual, state)
        keep(rest, own.indices)
        return Reduced(self._mean(ops, (yield AllGather(payload, self.varying)), own, state), None)

    def _mean(self, ops: Ops, payloads: list[Array], own: Contribution, state: State) -> Array:
        sent = (own if rank == state.rank else self.read(ops, p, state.layout) for rank, p in enumerate(payloads))
        return self.combine(ops, sent, len(payloads), state.layout)


def check_length(name: str, payload: Array, expected: int) -> None:
    """Raise ValueError if a payload has not the expected number of bytes."""
    if tuple(payload.shape) != (expected,):
        raise ValueError(f"{name}: a payload of shape {tuple(payload.shape)} came in, expected {expected} bytes")


def check_setting(name: str, item: dataclasses.Field[Any], value: Any) -> None:
    """Check one setting against its field's type and range (see `setting`)."""
    limits, wanted = item.metadata, str(item.type).removesuffix(" | None")
    if value is None and wanted != item.type:
        return
    if isinstance(value, Schedule) and wanted in ("int", "float"):
        for step in (0, value.steps):
            check_setting(name, item, round(value.at(step)) if wanted == "int" else value.at(step))
        return
    if limits.get("nested") and isinstance(value, Compressor):
        return
    if limits.get("choices"):
        if value not in limits["choices"]:
            allowed = ", ".join(str(choice) for choice in limits["choices"])
            more = " or a compressor" if limits.get("nested") else ""
            raise ValueError(f"{name}: {item.name} must be one of {allowed}{more}; got {value!r}")
        return
    kinds: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,)}
    kind = kinds.get(wanted)
    if kind is None:
        return
    if not isinstance(value, kind) or (isinstance(value, bool) and kind != (bool,)):
        raise TypeError(f"{name}: {item.name} must be of type {wanted}; got {value!r}")
    above, low, high = (limits.get(key) for key in ("above", "low", "high"))
    too_low = (above is not None and not value > above) or (low is not None and not value >= low)
    if too_low or (high is not None and not value <= high):
        left = f"({above}" if above is not None else f"[{low}" if low is not None else "(-inf"
        right = f"{high}]" if high is not None else "inf)"
        raise ValueError(f"{name}: {item.name} must be in {left}, {right}; got {value!r}")
