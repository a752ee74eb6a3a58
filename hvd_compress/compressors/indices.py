"""Ascending distinct indices on the wire: as a bitmap or in the Elias-Fano code, whichever is smaller.

Elias-Fano (Elias 1974; Fano 1971) cuts each of k indices below d at bit l = floor(log2(d / k)). The low l bits are
packed side by side; the high parts, which ascend, are a bitmap in which index i of high part h sets bit h + i. That is
at most 2 + log2(d / k) bits an index, within half a bit of the least possible, and its length depends on d and k alone:
the receiver knows it beforehand. Plain 32-bit indices are never smaller.
"""

from __future__ import annotations

from hvd_compress.ops import Array, Ops, packed_bytes
from hvd_compress.ops.by_kernel import by_kernel


def _low_bits(size: int, count: int) -> int:
    return max(0, (size // count).bit_length() - 1)


def _high_length(size: int, count: int, low: int) -> int:
    return count + ((size - 1) >> low)


def _elias_fano_bytes(size: int, count: int) -> int:
    low = _low_bits(size, count)
    return packed_bytes(count, low) + packed_bytes(_high_length(size, count, low), 1)


def index_bytes(size: int, count: int) -> int:
    """Return the bytes that `count` indices below `size` take."""
    return min(packed_bytes(size, 1), _elias_fano_bytes(size, count)) if count else 0


@by_kernel(indices="int64")
def encode_indices(ops: Ops, indices: Array, size: int) -> Array:
    """Return ascending distinct int64 indices below `size` as bytes: uint8 of shape (index_bytes(size, count),)."""
    count = indices.shape[0]
    if count == 0 or packed_bytes(size, 1) <= _elias_fano_bytes(size, count):
        return ops.bitmap(indices, size if count else 0)
    low = _low_bits(size, count)
    high = (indices >> low) + ops.arange(count)
    return ops.concat([ops.pack(indices & ((1 << low) - 1), low), ops.bitmap(high, _high_length(size, count, low))])


@by_kernel(payload="uint8")
def decode_indices(ops: Ops, payload: Array, size: int, count: int) -> Array:
    """Return the indices in a payload of `index_bytes(size, count)` bytes: int64 of shape (count,), ascending.

    Raises:
        ValueError: if the bytes do not hold `count` ascending distinct indices below `size`.
    """
    if count == 0:
        return ops.arange(0)
    if packed_bytes(size, 1) <= _elias_fano_bytes(size, count):
        indices = ops.set_bits(payload, size)
        _check(indices.shape[0] == count)
        return indices
    low = _low_bits(size, count)
    cut = packed_bytes(count, low)
    high = ops.set_bits(payload[cut:], _high_length(size, count, low))
    _check(high.shape[0] == count)
    indices = ((high - ops.arange(count)) << low) | ops.unpack(payload[:cut], low, count)
    _check(ops.ascending_below(indices, size))
    return indices


def _check(sound: bool) -> None:
    if not sound:
        raise ValueError("the indices that came in are not those of an encoder: wrong number, order or range")
