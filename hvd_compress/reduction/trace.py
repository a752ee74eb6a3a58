"""A trace of what a process did when, in Chrome's trace event format, which Perfetto and chrome://tracing show.

HVD_COMPRESS_TIMELINE names the file. Where the name has %r, each rank writes its own, with its number there; without,
rank 0 alone writes, as with HOROVOD_TIMELINE.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import time
from collections.abc import Mapping
from typing import NamedTuple

logger = logging.getLogger("hvd_compress")

VARIABLE = "HVD_COMPRESS_TIMELINE"
SHAPES = "hvd_compress_gradients"  # the name of an entry with the gradients' shapes
WRITE_EVERY = 1.0  # seconds between two writes
MOST_EVENTS = 50_000  # that are kept in memory


class Event(NamedTuple):
    """Something that took its time.

    Attributes:
        phase: what it is called.
        line: what is shown on a line of its own: an exchange, or what a worker's step goes through.
        began, ended: as of ``time.perf_counter()``.
        step: the number of steps that had ended before.
        number, kind: of a collective: the round, counted from 0, and what it is.
    """

    phase: str
    line: str
    began: float
    ended: float
    step: int
    number: int = -1
    kind: str = ""


class Trace:
    """The file of one rank. It is a list of JSON at any time, but for a closing bracket, which the format leaves out.

    Args:
        path: of the file; a former one is replaced.
        rank: this process's number.

    Raises:
        OSError: if it cannot be written.
    """

    def __init__(self, path: str, rank: int) -> None:
        if os.path.isfile(path):
            os.unlink(path)  # in an elastic job a former worker of this rank may still write to it
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self._path, self._rank, self._process = path, rank, os.getpid()
        self._events: list[Event] = []
        self._lines: dict[str, int] = {}  # the number of each line
        self._clock = time.time() - time.perf_counter()  # ranks have the time of day in common
        self._written = time.perf_counter()
        self._append("[\n" + self._named("process_name", 0, f"rank {rank}"))
        atexit.register(self._end)

    def describe(self, line: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Tell the shapes of the gradients whose steps a line shows, for those who read the file."""
        told = {"name": SHAPES, "ph": "M", "pid": self._rank, "tid": 0, "args": {"line": line, "shapes": shapes}}
        self._go_on(f",\n{json.dumps(told)}")

    def add(self, event: Event) -> None:
        """Add an event."""
        self._events.append(event)
        if len(self._events) >= MOST_EVENTS:
            self.write()

    def write_now_and_then(self) -> None:
        """Write what has come, unless that was done a moment ago."""
        if time.perf_counter() - self._written >= WRITE_EVERY:
            self.write()

    def write(self, closing: str = "") -> None:
        """Write what has come; if that cannot be done, say so once: training goes on."""
        events, self._events = self._events, []
        text = []
        for event in joined(events):
            if event.line not in self._lines:
                self._lines[event.line] = len(self._lines)
                text.append(self._named("thread_name", self._lines[event.line], event.line))
            collective = f', "round": {event.number}, "collective": "{event.kind}"' if event.kind else ""
            text.append(
                f'{{"name": "{event.phase}", "ph": "X", "pid": {self._rank}, "tid": {self._lines[event.line]}, '
                f'"ts": {(event.began + self._clock) * 1e6:.1f}, "dur": {(event.ended - event.began) * 1e6:.1f}, '
                f'"args": {{"step": {event.step + 1}{collective}}}}}'
            )
        self._written = time.perf_counter()
        self._go_on("".join(f",\n{line}" for line in text) + closing)

    def _go_on(self, text: str) -> None:
        try:
            self._append(text)
        except OSError as error:
            logger.warning("%s: %s is written no further: %s", VARIABLE, self._path, error.strerror)
            os.close(self._file)
            self._file = -1

    def _named(self, what: str, line: int, name: str) -> str:
        return json.dumps({"name": what, "ph": "M", "pid": self._rank, "tid": line, "args": {"name": name}})

    def _append(self, text: str) -> None:
        data = text.encode() if self._file >= 0 else b""
        while data:
            data = data[os.write(self._file, data) :]

    def _end(self) -> None:
        if os.getpid() == self._process:  # not in a process that was forked
            self.write(closing="\n]\n")


def joined(events: list[Event]) -> list[Event]:
    """Return the events, one in place of several of a line and of one phase of which each begins as the last ends."""
    kept: list[Event] = []
    last: dict[str, int] = {}  # the place of each line's last one
    for event in events:
        place = last.get(event.line, -1)
        if place >= 0 and (kept[place].phase, kept[place].ended) == (event.phase, event.began):
            kept[place] = kept[place]._replace(ended=event.ended)
        else:
            last[event.line] = len(kept)
            kept.append(event)
    return kept


_traces: dict[str, Trace] = {}


def trace_of(rank: int) -> Trace | None:
    """Return the trace of this process; None if the environment asks for none, or for that of rank 0 alone.

    Args:
        rank: this process's number in the whole job.

    Raises:
        OSError: if the file cannot be written.
    """
    name = os.environ.get(VARIABLE, "")
    if not name or (rank and "%r" not in name):
        return None
    if name not in _traces:
        path = name.replace("%r", str(rank))
        try:
            _traces[name] = Trace(path, rank)
        except OSError as error:
            raise OSError(f"{VARIABLE}: {path} cannot be written: {error.strerror}") from None
    return _traces[name]
