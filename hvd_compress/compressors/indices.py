"""Ascending distinct indices on the wire: as a bitmap or in the Elias-Fano code, whichever is smaller.

Elias-Fano (Elias 1974; Fano 1971) cuts each of k indices below d at bit l = floor(log2(d / k)). The low l bits are
packed side by side; the high parts, which ascend, are a bitmap in which index i of high part h sets bit h + i. That is
at most 2 + log2(d / k) bits an index, within half a bit of the least possible, and its length depends on d and k alone:
the receiver knows it beforehand. Plain 32-bit indices are never smaller.
"""

from __future__ import annotations

from hvd_compress.ops import Array, Ops
from hvd_compress.ops.by_kernel import by_kernel
from hvd_compress.ops.index_code import index_code


def index_bytes(size: int, count: int) -> int:
    """Return the bytes that `count` indices below `size` take."""
    return index_code(size, count).bytes


@by_kernel(indices="int64")
def encode_indices(ops: Ops, indices: Array, size: int) -> Array:
    """Return ascending distinct int64 indices below `size` as bytes: uint8 of shape (index_bytes(size, count),)."""
    count = indices.shape[0]
    low, _, bits = index_code(size, count)
    if low is None:
        return ops.bitmap(indices, bits)
    high = (indices >> low) + ops.arange(count)
    return ops.concat([ops.pack(indices & ((1 << low) - 1), low), ops.bitmap(high, bits)])


@by_kernel(payload="uint8")
def decode_indices(ops: Ops, payload: Array, size: int, count: int) -> Array:
    """Return the indices in a payload of `index_bytes(size, count)` bytes: int64 of shape (count,), ascending.

    Raises:
        ValueError: if the bytes do not hold `count` ascending distinct indices below `size`.
    """
    if count == 0:
        return ops.arange(0)
    low, cut, bits = index_code(size, count)
    high = ops.set_bits(payload[cut:], bits)
    _check(high.shape[0] == count)
    if low is None:
        return high
    indices = ((high - ops.arange(count)) << low) | ops.unpack(payload[:cut], low, count)
    _check(ops.ascending_below(indices, size))
    return indices


def _check(sound: bool) -> None:
    if not sound:
        raise ValueError("the indices that came in are not those of an encoder: wrong number, order or range")
