"""Where the time of a worker's steps goes: recorded once, for the statistics."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Any

COMPUTING, COPY, ENCODE, START, WIRE, DECODE, OPTIMIZER, OTHER = (
    "computing",
    "copy",
    "encode",
    "start",
    "wire",
    "decode",
    "optimizer",
    "other",
)
OURS = (COPY, ENCODE, START, WIRE, DECODE, OTHER)


class Phases:
    """Divides the time of a worker's steps into phases, each moment into one.

    The clock begins with the first gradient. A moment belongs to the call of ours that was entered last and is not left
    yet. Without one it is "computing", unless all gradients of the step are there and collectives are under way: then
    the worker waits, which is "wire". TensorFlow makes such calls in several threads.

    Attributes:
        due: how many vectors of the step's gradients are still to come, or 1 if it is not known.
    """

    def __init__(self) -> None:
        self.due = 0
        self._exposed: dict[str, float] = dict.fromkeys((COMPUTING, *OURS), 0.0)
        self._in_backward = dict.fromkeys(OURS, 0.0)
        self._hidden = 0.0
        self._optimizers = 0  # steps of optimizers under way: one may call another's
        self._calls: list[str] = []  # the phases of the calls that are not left yet
        self._under_way: set[str] = set()  # the exchanges whose collectives are
        self._since: float | None = None
        self._lock = threading.Lock()

    # --- what is noted

    def of(self, phase: str) -> _Call:
        """Return a context whose time belongs to a phase."""
        return _Call(self, phase)

    def enter(self, phase: str) -> None:
        """Begin a call."""
        with self._lock:
            self._account()
            if not self._calls:
                self._optimizers = 0  # of a step that has failed its end is not told
            self._calls.append(phase)

    def leave(self, phase: str) -> None:
        """End a call."""
        with self._lock:
            self._account()
            self._calls.remove(phase)

    def vector_came(self) -> None:
        """Note that one more vector of gradients is there."""
        with self._lock:
            self.due = max(0, self.due - 1)

    def started(self, exchange: str) -> None:
        """Note that a collective of an exchange is under way."""
        with self._lock:
            self._account()
            self._under_way.add(exchange)

    def arrived(self, exchange: str) -> None:
        """Note that this worker has seen the end of an exchange's collective."""
        with self._lock:
            self._account()
            self._under_way.discard(exchange)

    def dropped(self, exchange: str) -> None:
        """Note that nobody waits for an exchange's collective any more."""
        self._under_way.discard(exchange)

    def optimizer_begins(self) -> None:
        """Note that an optimizer's step begins."""
        with self._lock:
            if self._since is not None:
                self._account(OPTIMIZER if self._optimizers else "")
                self._optimizers += 1

    def optimizer_ends(self) -> None:
        """Note that an optimizer's step ends; if it has called the backward pass, its time since then is meant."""
        with self._lock:
            if self._since is not None:
                self._account(OPTIMIZER)
                self._optimizers = max(0, self._optimizers - 1)

    def _account(self, idle: str = "") -> None:
        """Add the time since the last call of this to the phase that it was."""
        now, since = time.perf_counter(), self._since
        self._since = now
        if since is None:
            return
        seconds = now - since
        if self._calls:
            phase = self._calls[-1]
            if self.due:
                self._in_backward[phase] += seconds
        else:
            phase = idle or (WIRE if self._under_way and not self.due else COMPUTING)
        self._exposed[phase] = self._exposed.get(phase, 0.0) + seconds
        if self._under_way and phase != WIRE:
            self._hidden += seconds

    # --- what came of it

    @property
    def compression_seconds(self) -> float:
        """The time in compressors."""
        return self._exposed[ENCODE] + self._exposed[DECODE]

    @property
    def communication_seconds(self) -> float:
        """The time in waiting for collectives."""
        return self._exposed[WIRE]

    def report(self) -> dict[str, Any]:
        """Return the phases as ``compression_stats(phases=True)`` has them: see `hvd_compress.reduction.stats`."""
        with self._lock:
            ours = {p: {"exposed": self._exposed[p], "in_backward": self._in_backward[p]} for p in OURS}
            ours[WIRE]["hidden"] = self._hidden
            total, computing = sum(self._exposed.values()), self._exposed[COMPUTING]
            return {"seconds": total, COMPUTING: computing, **ours, OPTIMIZER: self._exposed.get(OPTIMIZER)}


class _Call:
    """A call of ours, timed."""

    __slots__ = ("_phase", "_phases")

    def __init__(self, phases: Phases, phase: str) -> None:
        self._phases, self._phase = phases, phase

    def __enter__(self) -> None:
        self._phases.enter(self._phase)

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._phases.leave(self._phase)
