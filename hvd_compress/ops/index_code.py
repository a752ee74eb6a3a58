"""The sizes of the code in which ascending indices travel (`hvd_compress.compressors.indices`)."""

from __future__ import annotations

from typing import NamedTuple

from hvd_compress.ops import packed_bytes


class IndexCode(NamedTuple):
    """How so many indices below a size are sent.

    Attributes:
        low: low bits of an index that are packed, in Elias and Fano's code; None for a bitmap of all coordinates.
        cut: bytes that these take.
        bits: of the bitmap behind them.
    """

    low: int | None
    cut: int
    bits: int

    @property
    def bytes(self) -> int:
        """All that they take."""
        return self.cut + packed_bytes(self.bits, 1)


def index_code(size: int, count: int) -> IndexCode:
    """Return the shorter code of `count` indices below `size`."""
    if not count:
        return IndexCode(None, 0, 0)
    low = max(0, (size // count).bit_length() - 1)
    fano = IndexCode(low, packed_bytes(count, low), count + ((size - 1) >> low))
    bitmap = IndexCode(None, 0, size)
    return bitmap if bitmap.bytes <= fano.bytes else fano
