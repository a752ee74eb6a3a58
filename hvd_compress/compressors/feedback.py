"""What makes up for a compressor's error over time: wrappers round any compressor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hvd_compress.compressors.base import Compressor, Exchanging, Reduced
from hvd_compress.layout import Layout
from hvd_compress.ops import Array, Ops
from hvd_compress.state import State


@dataclass(frozen=True)
class ErrorFeedback(Compressor):
    """Add to each gradient what was not sent before (Seide et al. 2014; Karimireddy et al. 2019, algorithm 2).

    p = g + e; exchange C(p); e <- p - sent. In a spec: ``feedback=ef``, the default of every biased method.
    """

    name: ClassVar[str] = "ef"

    inner: Compressor

    def __post_init__(self) -> None:
        """Refuse a compressor for which error feedback makes no sense."""
        self.inner.check_feedback()

    @property
    def collectives(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of the compressor inside."""
        return self.inner.collectives

    @property
    def whole_gradient(self) -> bool:
        """As the compressor inside."""
        return self.inner.whole_gradient

    @property
    def small_too(self) -> bool:  # type: ignore[override]
        """As the compressor inside."""
        return self.inner.small_too

    def reduce(self, ops: Ops, vector: Array, state: State) -> Exchanging:
        """Exchange the corrected vector and keep the rest."""
        corrected = vector + state.local["residual"] if "residual" in state.local else vector
        reduced = yield from self.inner.reduce(ops, corrected, state)
        state.local["residual"] = corrected - reduced.sent()
        return Reduced(mean=reduced.mean, sent=reduced.sent)

    def payload_bits(self, layout: Layout) -> int:
        """Nothing beyond the compressor inside."""
        return self.inner.payload_bits(layout)
