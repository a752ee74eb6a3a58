"""Counter-based random numbers: a function of (key, step, index), so that any worker can draw any of them.

Every draw is two rounds of a 32-bit mixer with low bias (the constants are those of Wellons' `lowbias32`) over the
index, whitened with words that come from the key and the step. There is nothing to store, the order of drawing does
not matter, and each framework computes the same bits with plain 32-bit integer arithmetic.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from hvd_compress.ops import Ops

MULTIPLIERS = (0x7FEB352D, 0x846CA68B)
SHIFTS = (16, 15, 16)
MASK = 0xFFFFFFFF


class Stream(NamedTuple):
    """One sequence of random numbers: a 64-bit key and the step that it is drawn at."""

    key: int
    step: int

    def words(self) -> tuple[int, int]:
        """Return the two 32-bit words that whiten the index before the first and the second round."""
        first = mix(((self.key >> 32) + self.step) & MASK)
        return first, mix((self.key & MASK) ^ mix(self.step & MASK))


def make_key(*parts: object) -> int:
    """Return a 64-bit key that depends on every part (numbers and strings)."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def mix(x: int) -> int:
    """Mix one 32-bit word."""
    x ^= x >> SHIFTS[0]
    x = x * MULTIPLIERS[0] & MASK
    x ^= x >> SHIFTS[1]
    x = x * MULTIPLIERS[1] & MASK
    return x ^ x >> SHIFTS[2]


def bits(count: int, stream: Stream) -> NDArray[np.uint32]:
    """Return words 0 to ``count - 1`` of the stream, uint32 of shape (count,)."""
    first, second = (np.uint32(word) for word in stream.words())
    x = np.arange(count, dtype=np.uint32) + first
    return _mix_array(_mix_array(x) ^ second)


def noise(count: int, stream: Stream) -> NDArray[np.int32]:
    """Return ``count`` numbers of 16 random bits, int32: what rounding at random needs, at half the cost.

    Each word of the stream makes two: of 32 numbers, the first 16 are the low halves of 16 words, the others the high.
    """
    words = bits(-(-count // 32) * 16, stream).reshape(-1, 1, 16)
    halves = np.concatenate([words & np.uint32(0xFFFF), words >> np.uint32(16)], axis=1)
    return halves.reshape(-1)[:count].astype(np.int32)


def _mix_array(x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    x ^= x >> np.uint32(SHIFTS[0])
    x *= np.uint32(MULTIPLIERS[0])
    x ^= x >> np.uint32(SHIFTS[1])
    x *= np.uint32(MULTIPLIERS[1])
    x ^= x >> np.uint32(SHIFTS[2])
    return x


def signed_words(ops: Ops, count: int, stream: Stream) -> Any:
    """Return what `bits` does as a framework's int32; its shifts are arithmetic, hence the masks."""

    def signed(word: int) -> int:
        return word - (1 << 32) if word >> 31 else word

    def mixed(x: Any) -> Any:
        for shift, multiplier in zip(SHIFTS, (*MULTIPLIERS, 1), strict=True):
            x ^= x >> shift & (1 << 32 - shift) - 1
            x *= signed(multiplier)
        return x

    first, second = map(signed, stream.words())
    return mixed(mixed(ops.cast(ops.arange(count), "int32") + first) ^ second)


def distinct(count: int, size: int, stream: Stream) -> NDArray[np.int64]:
    """Return ``count`` distinct numbers below ``size``, ascending, int64; every subset is about equally likely.

    They are the images of 0 to count - 1 under a keyed permutation of range(size): a Feistel network of six rounds
    over the next power of four, walked until it falls inside (Black and Rogaway 2002). The cost grows with `count`,
    not with `size`.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = np.uint32((1 << half) - 1)
    keys = bits(6, stream)

    def permute(x: NDArray[np.int64]) -> NDArray[np.int64]:
        left, right = (x >> half).astype(np.uint32), x.astype(np.uint32) & mask
        for key in keys:
            left, right = right, left ^ (_mix_array(right + key) & mask)
        return (left.astype(np.int64) << half) | right.astype(np.int64)

    result = permute(np.arange(count, dtype=np.int64))
    outside = np.flatnonzero(result >= size)
    while outside.size:
        result[outside] = permute(result[outside])
        outside = outside[result[outside] >= size]
    result.sort()
    return result
