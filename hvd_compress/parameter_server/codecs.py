"""Vectors as bytes: gradients from workers to servers (up), models from servers to workers (down)."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from hvd_compress.compressors.base import Compressor, Contribution, GatherCompressor, check_length, setting
from hvd_compress.compressors.cast import HalfPrecision, NoCompression
from hvd_compress.compressors.feedback import EF21, Feedback
from hvd_compress.compressors.indices import decode_indices, encode_indices, index_bytes
from hvd_compress.compressors.quantize import LowPrecision, Quantizer
from hvd_compress.compressors.sparsify import COUNT_BYTES, RandomK, Sparsifier, Threshold, count_of
from hvd_compress.compressors.state import State
from hvd_compress.ops import Array, Ops, packed_bytes
from hvd_compress.ops.layout import Layout
from hvd_compress.ops.numpy import NumpyOps
from hvd_compress.ops.random import make_key

Vector = NDArray[np.float32]
Bytes = NDArray[np.uint8]

OPS = NumpyOps()
LEAST = float(np.finfo(np.float32).tiny)  # smaller magnitudes count as zero
DENSEST = 8  # most bytes of a coordinate in any payload: four of its value and four of a scale or an index of its own
SHORT = 1 << 10  # bytes of what is in a payload whatever its vector's length


class Malformed(ValueError):
    """A payload or a message is not one that the sender can have meant; nothing was changed by it."""


@dataclass(frozen=True)
class Floats(GatherCompressor):
    """Send a vector's own floats."""

    name: ClassVar[str] = "floats"
    wire: ClassVar[str] = "float32"
    unbiased: ClassVar[bool] = True
    stateful: ClassVar[bool] = False

    def encode(self, ops: Ops, vector: Array, state: State) -> tuple[Array, Contribution]:
        return ops.to_bytes(vector), Contribution(ops, lambda: vector)

    def decode(self, ops: Ops, payload: Array, layout: Layout) -> Array:
        check_length(self.name, payload, 4 * layout.size)
        return ops.from_bytes(payload, "float32")

    def payload_bits(self, layout: Layout, kept: int | None = None) -> int:
        return 32 * layout.size


@dataclass(frozen=True)
class Halves(Floats):
    """Send a vector's floats as float16."""

    name: ClassVar[str] = "halves"
    wire: ClassVar[str] = "float16"
    unbiased: ClassVar[bool] = False

    def encode(self, ops: Ops, vector: Array, state: State) -> tuple[Array, Contribution]:
        halves = ops.cast(vector, "float16")
        return ops.to_bytes(halves), Contribution(ops, lambda: ops.cast(halves, "float32"))

    def decode(self, ops: Ops, payload: Array, layout: Layout) -> Array:
        check_length(self.name, payload, 2 * layout.size)
        return ops.cast(ops.from_bytes(payload, "float16"), "float32")

    def payload_bits(self, layout: Layout, kept: int | None = None) -> int:
        return 16 * layout.size


@dataclass(frozen=True)
class Drawn(Sparsifier):
    """Send coordinates drawn at random, as `RandomK` does, with their indices: workers are not at the same step."""

    name: ClassVar[str] = "drawn"
    values: ClassVar[str] = "fp32"

    ratio: float = setting(0.01, above=0, high=1)
    scaled: bool = setting(False)

    def select(self, ops: Ops, vector: Array, state: State) -> tuple[Array, Array]:
        size, count = state.layout.size, self.count(state.layout)
        indices = ops.distinct(count, size, state.own_stream(self.name))
        values = ops.take(vector, indices)
        return indices, values * (size / count) if self.scaled else values

    def count(self, layout: Layout) -> int:
        return count_of(self.ratio, layout.size)


def one_payload(compressor: Compressor) -> Compressor:
    """Return a compressor that sends the same in one payload, which a server can decode by itself.

    Raises:
        ValueError: if the method needs several rounds among the workers.
    """
    if isinstance(compressor, EF21):
        raise ValueError(
            f"{compressor.bare.name}: a server keeps no estimate of each worker, as feedback=ef21 asks for"
        )
    if isinstance(compressor, Feedback):
        return dataclasses.replace(compressor, inner=one_payload(compressor.inner))
    if isinstance(compressor, GatherCompressor):
        return compressor
    if isinstance(compressor, NoCompression):
        return Floats()
    if isinstance(compressor, HalfPrecision):
        return Halves()
    if isinstance(compressor, RandomK):
        return Drawn(compressor.ratio, compressor.scaled)
    raise ValueError(
        f"{compressor.name} cannot be sent to a server: it takes rounds among the workers "
        f"({' + '.join(compressor.collectives)})"
    )


Decoded = Contribution  # received, and found well-formed and finite


class Codec:
    """Encodes or decodes one vector by a compressor: an instance is a sender or a receiver.

    A payload is what the compressor makes of the vector. Of floats, and of Q(delta, b) of one tensor, it is of the
    nonzero coordinates alone, with their indices, where that is shorter: an exact zero is sent as a zero either way,
    and the length tells which of the two it is.

    Args:
        compressor: one that sends one payload (see `one_payload`), without feedback.
        layout: of the vector.
        key: of the random numbers, such as (seed, rank, epoch).
    """

    def __init__(self, compressor: Compressor, layout: Layout, key: tuple[object, ...] = ()) -> None:
        compressor = one_payload(compressor)
        assert isinstance(compressor, GatherCompressor)
        self.compressor, self.layout, self.ops = compressor, layout, OPS
        self.state = State(layout, seed=make_key(*key))
        self._nonzero: Threshold | None = None
        if type(compressor) is Floats:
            self._nonzero = Threshold(LEAST)
        elif isinstance(compressor, LowPrecision) and len(layout.parameters) == 1:
            self._nonzero = Threshold(LEAST, values=compressor)

    def encode(self, vector: Vector) -> Bytes:
        """Return a finite vector, float32 of shape (d,), as bytes."""
        compressor: GatherCompressor = self.compressor
        if self._nonzero is not None:
            bits = self._nonzero.payload_bits(self.layout, int(np.count_nonzero(vector.view(np.int32))))
            if bits < compressor.payload_bits(self.layout):
                compressor = self._nonzero
        payload, _ = compressor.encode(self.ops, vector, self.state)
        self.state.commit()
        return payload

    def decode(self, payload: Bytes) -> Decoded:
        """Return what came in, found sound; `indices` are those of all coordinates that are not zero.

        Raises:
            Malformed: if it is nothing that `encode` can have written, or not finite.
        """
        try:
            return self._decode(payload)
        except ValueError as error:
            raise Malformed(str(error)) from error

    def _decode(self, payload: Bytes) -> Decoded:
        ops, layout = self.ops, self.layout
        compressor: GatherCompressor = self.compressor
        if self._nonzero is not None and 8 * payload.nbytes < compressor.payload_bits(layout):
            compressor = self._nonzero
        sent = compressor.read(ops, payload, layout)
        if isinstance(compressor, Quantizer) and compressor.block <= 0:  # a scale says whether it is finite
            scales = compressor.scales_each * (1 if compressor.block else sum(p.size > 0 for p in layout.parameters))
            _check_finite(compressor.name, ops.from_bytes(payload[: 4 * scales], "float32"))
        else:
            _check_finite(compressor.name, sent.values)
        return sent


def _check_finite(name: str, values: Vector) -> None:
    if not OPS.all_finite(values):
        raise Malformed(f"{name}: a payload with values that are not finite came in")


class ModelCodec(Protocol):
    """How a server sends its model to a worker, which holds the snapshot exactly."""

    def encode(self, x: Vector, snapshot: Vector) -> Bytes:
        """Return x as bytes."""
        ...

    def decode(self, payload: Bytes, snapshot: Vector) -> Vector:
        """Return the model in a payload.

        Raises:
            Malformed: if it is nothing that `encode` can have written, or not finite.
        """
        ...


class GridModel:
    """Sends the model itself on the grid of Q(delta, b), with the smallest b that meets the precision condition.

    E||Q(x) - x||^2 <= mu ||x - x~||^2 (Yu, Wu, Huang 2019, section 3). The expectation is computed exactly, for each b
    beginning with one less than the last b sent. Where no b up to 24 meets it, as for x = x~, the floats are sent. A
    payload is b (one byte), delta of each tensor (fp32) and the packed grid points.

    Args:
        layout: of the vector.
        mu: of the condition.
        key: of the random numbers.
    """

    MOST = 24

    def __init__(self, layout: Layout, mu: float, key: tuple[object, ...] = ()) -> None:
        self.layout, self.mu, self.ops = layout, mu, OPS
        self.bits = 2
        self.used: Counter[int] = Counter()
        self._random = np.random.Generator(np.random.Philox(make_key(*key)))

    def encode(self, x: Vector, snapshot: Vector) -> Bytes:
        allowed = self.mu * float(np.square(x - snapshot, dtype=np.float64).sum())
        bits = max(2, self.bits - 1)
        while bits <= self.MOST and self._error(x, bits) > allowed:
            bits += 1
        self.bits = min(bits, self.MOST)
        if bits > self.MOST:
            self.used[32] += 1
            return np.concatenate([np.array([32], np.uint8), self.ops.to_bytes(x)])
        self.used[bits] += 1
        scales, codes = [], []
        for part in self._tensors(x):
            delta, scaled = self._scaled(part, bits)
            levels = np.floor(scaled + self._random.random(scaled.shape)).astype(np.int32) + (1 << bits - 1)
            codes.append(np.clip(levels, 0, (1 << bits) - 1))  # delta is rounded to fp32, the ends may lie beside it
            scales.append(np.array([delta], np.float32))
        packed = self.ops.pack(np.concatenate(codes), bits)
        return np.concatenate([np.array([bits], np.uint8), *(self.ops.to_bytes(s) for s in scales), packed])

    def decode(self, payload: Bytes, snapshot: Vector) -> Vector:
        bits = int(payload[0]) if payload.nbytes else 0
        if bits != 32 and not 2 <= bits <= self.MOST:
            raise Malformed(f"a model of {bits} bits came in; 2 to {self.MOST} are allowed, and 32")
        parts = self.layout.nonempty
        size = self.layout.size
        expected = 1 + (4 * size if bits == 32 else 4 * len(parts) + packed_bytes(size, bits))
        if payload.nbytes != expected:
            raise Malformed(f"a model of {payload.nbytes} bytes came in; expected {expected}")
        body = payload[1:]
        if bits == 32:
            x = self.ops.from_bytes(body, "float32")
        else:
            deltas = self.ops.from_bytes(body[: 4 * len(parts)], "float32")
            x = (self.ops.unpack(body[4 * len(parts) :], bits, size) - (1 << bits - 1)).astype(np.float32)
            for p, delta in zip(parts, deltas, strict=True):
                x[p.slice] *= delta
        _check_finite("the model", x)
        return x

    def _error(self, x: Vector, bits: int) -> float:
        """Return E||Q(x) - x||^2."""
        total = 0.0
        for part in self._tensors(x):
            delta, scaled = self._scaled(part, bits)
            rest = scaled - np.floor(scaled)
            total += delta**2 * float((rest * (1 - rest)).sum())
        return total

    def _scaled(self, part: Vector, bits: int) -> tuple[float, NDArray[np.float64]]:
        delta = float(np.float32(np.abs(part).max() / ((1 << bits - 1) - 1)))
        return delta, part.astype(np.float64) / delta if delta else np.zeros(part.shape)

    def _tensors(self, x: Vector) -> list[Vector]:
        return [x[p.slice] for p in self.layout.nonempty]


class DifferenceModel:
    """Sends the model as the quantized difference from the snapshot.

    Its error shrinks by itself as the model nears the snapshot: E||Q(x - x~) - (x - x~)||^2 is a multiple of
    ||x - x~||^2, whatever the bits.
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = codec

    def encode(self, x: Vector, snapshot: Vector) -> Bytes:
        return self.codec.encode(affine(x, 1.0, snapshot, -1.0))

    def decode(self, payload: Bytes, snapshot: Vector) -> Vector:
        x = snapshot.copy()
        self.codec.decode(payload).add_to(x, 1.0)
        return x


class FloatModel:
    """Sends the model's own floats."""

    def encode(self, x: Vector, snapshot: Vector) -> Bytes:
        return OPS.copy(x).view(np.uint8)

    def decode(self, payload: Bytes, snapshot: Vector) -> Vector:
        return read_floats(payload, snapshot.size)


def read_floats(payload: Bytes, size: int) -> Vector:
    """Return the model in a payload of `size` floats, without a copy; Malformed if there is none."""
    if payload.nbytes != 4 * size:
        raise Malformed(f"a model of {payload.nbytes} bytes came in; expected {4 * size}")
    x = payload.view(np.float32)
    _check_finite("the model", x)
    return x


class Changes:
    """Sends some coordinates of a vector: their indices and their exact values.

    A payload is their number (int64), the values, and the indices, Elias-Fano coded or as a bitmap; unless they are
    all.
    """

    def __init__(self, size: int) -> None:
        self.size, self.ops = size, OPS

    def encode(self, x: Vector, indices: NDArray[np.int64]) -> Bytes:
        """Return x at ascending indices as bytes."""
        ops, count = self.ops, indices.shape[0]
        parts = [ops.to_bytes(np.array([count])), ops.to_bytes(ops.take(x, indices))]
        if count < self.size:
            parts.append(encode_indices(ops, indices, self.size))
        return np.concatenate(parts)

    def apply(self, x: Vector, payload: Bytes) -> NDArray[np.int64]:
        """Set the coordinates in a payload, and return them, ascending.

        Raises:
            Malformed: if it is nothing that `encode` can have written, or not finite; x is as it was.
        """
        ops = self.ops
        count = int(ops.from_bytes(payload[:COUNT_BYTES], "int64")[0]) if payload.nbytes >= COUNT_BYTES else -1
        cut, named = COUNT_BYTES + 4 * count, 0 <= count < self.size
        if not 0 <= count <= self.size or payload.nbytes != cut + (index_bytes(self.size, count) if named else 0):
            raise Malformed(f"changes of {payload.nbytes} bytes came in, which are not those of {count} coordinates")
        values = ops.from_bytes(payload[COUNT_BYTES:cut], "float32")
        _check_finite("the model", values)
        try:
            indices = decode_indices(ops, payload[cut:], self.size, count) if named else ops.arange(self.size)
        except ValueError as error:
            raise Malformed(str(error)) from error
        x[indices] = values
        return indices


def vector_bytes(size: int) -> int:
    """Return the most bytes that a payload of a vector of so many coordinates has, whoever encodes it."""
    return DENSEST * size + SHORT


def affine(x: Vector, a: float, y: Vector, b: float, out: Vector | None = None) -> Vector:
    """Return a x + b y, in `out` if it is given."""
    return OPS.affine(x, a, y, b, out)
