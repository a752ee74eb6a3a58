"""Where the time of a worker's steps goes: recorded once, for the statistics and for the trace."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from hvd_compress.reduction.trace import Event, Trace, trace_of

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
        line: what the trace calls the line of all phases, in which there is one at a time.
        step: the number of steps that had ended when this one began, as the trace has it.
    """

    def __init__(self) -> None:
        self.line = "step"
        self.due = self.step = self._ended = 0
        self._exposed: dict[str, float] = dict.fromkeys((COMPUTING, *OURS), 0.0)
        self._in_backward = dict.fromkeys(OURS, 0.0)
        self._hidden = 0.0
        self._optimizers = 0  # steps of optimizers under way: one may call another's
        self._calls: list[str] = []  # the phases of the calls that are not left yet
        self._under_way: dict[str, tuple[float, int, str]] = {}  # by exchange: since when, which round, what kind
        self._since: float | None = None
        self._lock = threading.Lock()
        self._trace: Trace | None = None

    # --- what is noted

    def of(self, phase: str, exchange: str = "") -> _Call:
        """Return a context whose time belongs to a phase; that of an exchange is on its own line of the trace."""
        return _Call(self, phase, exchange)

    def enter(self, phase: str) -> float:
        """Begin a call; return the time."""
        with self._lock:
            now = self._account()
            if not self._calls:
                self.step, self._optimizers = self._ended, 0  # of a step that has failed its end is not told
            self._calls.append(phase)
        return now

    def leave(self, phase: str, exchange: str, began: float) -> None:
        """End a call that began at a time."""
        with self._lock:
            now = self._account()
            self._calls.remove(phase)
            if self._trace is not None and exchange:
                self._trace.add(Event(phase, exchange, began, now, self.step))

    def vector_came(self) -> None:
        """Note that one more vector of gradients is there."""
        with self._lock:
            self.due = max(0, self.due - 1)

    def started(self, exchange: str, number: int, kind: str) -> None:
        """Note that the collective of a round, counted from 0, is under way."""
        with self._lock:
            self._under_way[exchange] = self._account(), number, kind

    def arrived(self, exchange: str) -> None:
        """Note that this worker has seen the end of an exchange's collective."""
        with self._lock:
            now = self._account()
            began, number, kind = self._under_way.pop(exchange, (now, 0, ""))
            if self._trace is not None and kind:
                self._trace.add(Event(WIRE, exchange, began, now, self.step, number, kind))

    def dropped(self, exchange: str) -> None:
        """Note that nobody waits for an exchange's collective any more."""
        self._under_way.pop(exchange, None)

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
                if not self._optimizers:
                    self.step = self._ended

    def end_step(self, steps: int) -> None:
        """Note that so many steps have ended, and that there is time to write."""
        self._ended = steps
        if self._trace is not None:
            with self._lock:
                self._trace.write_now_and_then()

    def _account(self, idle: str = "") -> float:
        """Add the time since the last call of this to the phase that it was; return the time."""
        now, since = time.perf_counter(), self._since
        self._since = now
        if since is None:
            return now
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
        if self._trace is not None:
            self._trace.add(Event(phase, self.line, since, now, self.step))
        return now

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

    def describe(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Tell the shapes of the gradients in the trace, if there is one."""
        if self._trace is not None:
            with self._lock:
                self._trace.describe(self.line, shapes)

    def open_trace(self, rank: int) -> OSError | None:
        """Write a trace from now on if the environment asks for one; return the error if it cannot be written.

        Args:
            rank: this worker's in the whole job.
        """
        if self._trace is None:
            try:
                self._trace = trace_of(rank)
            except OSError as error:
                return error
        return None


class _Call:
    """A call of ours, timed."""

    __slots__ = ("_began", "_exchange", "_phase", "_phases")

    def __init__(self, phases: Phases, phase: str, exchange: str) -> None:
        self._phases, self._phase, self._exchange = phases, phase, exchange

    def __enter__(self) -> None:
        self._began = self._phases.enter(self._phase)

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._phases.leave(self._phase, self._exchange, self._began)
