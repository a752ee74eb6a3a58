"""Which parameters travel together, and under which compressor."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from hvd_compress.compressors import Compressor, parse, spec
from hvd_compress.compressors.schedule import END
from hvd_compress.layout import Layout

logger = logging.getLogger("hvd_compress")

PLAIN = parse("none")


@dataclass(frozen=True)
class Gradient:
    """What the plan must know of a parameter.

    Attributes:
        name: its name, unique in the model.
        shape: its shape.
        dtype: the dtype that it is sent in if it is sent plain.
        device: where it lies; gradients of different devices share no bucket.
        group: gradients of one group share a bucket; None leaves that to the plan.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    device: str = "cpu"
    group: int | None = None

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


def choose(gradient: Gradient, compressor: Compressor, dense_below: int) -> Compressor:
    """Return the compressor for one gradient: plain if it is small, has one axis, or would not become fewer bytes."""
    small = gradient.size < dense_below or len(gradient.shape) < 2
    if small and not compressor.small_too:
        return PLAIN
    if compressor.whole_gradient:
        return compressor
    if compressor == PLAIN or compressor.varying:
        return compressor
    own_bits = compressor.at(END).payload_bits(Layout.of([(gradient.name, gradient.shape)]))
    if own_bits >= 32 * gradient.size:
        return PLAIN
    return compressor


def make_plan(
    gradients: Sequence[Gradient], compressor: Compressor, *, bucket_bytes: int, dense_below: int
) -> list[Bucket]:
    """Divide the gradients into buckets, in the reverse of their order: backpropagation gives the last ones first.

    Args:
        gradients: the parameters, in the order of the model.
        compressor: for all that `choose` does not send plain.
        bucket_bytes: a bucket is closed before its vector would grow above this. One parameter is never divided, and
            a method of the whole gradient has one bucket.
        dense_below: parameters of fewer coordinates, and those of one axis, are sent plain.
    """
    open_buckets: dict[Hashable, list[Gradient]] = {}
    closed: list[tuple[Compressor, list[Gradient]]] = []
    replaced = []
    for gradient in reversed(gradients):
        chosen = choose(gradient, compressor, dense_below)
        if chosen != compressor and gradient.size >= dense_below and len(gradient.shape) > 1:
            replaced.append(gradient.name)
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
    if replaced:
        logger.info(
            "%s would send no fewer bytes than plain fp32 for %s: sent plain",
            spec(compressor),
            ", ".join(replaced),
        )
    return [
        Bucket(
            name=str(number),
            compressor=chosen,
            layout=Layout.of([(g.name, g.shape) for g in members]),
            dtype=members[0].dtype if chosen.keeps_dtype else "float32",
            device=members[0].device,
        )
        for number, (chosen, members) in enumerate(closed)
    ]
