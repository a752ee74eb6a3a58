"""What a job tells of itself while it runs: a file that `hvd-compress watch` shows.

status = Status("run.json", steps=1000)
for step, batch in enumerate(batches):
...
status.tell(lambda: optimizer.compression_stats(phases=True, per_bucket=True), step + 1, loss=loss)
status.end()
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

EVERY = 1.0  # seconds between two writings: residual norms cost a reading of all residuals


class Status:
    """Keeps a file up to date with a job's statistics; one rank has one, usually rank 0.

    Args:
        path: the file, which is replaced as a whole, so that a reader never sees half of one; None writes nothing.
        steps: how many there will be, if that is known.

    Raises:
        OSError: if the file cannot be written at the start. Later there is a warning, and nothing is written any more.
    """

    def __init__(self, path: str | os.PathLike[str] | None, steps: int | None = None) -> None:
        self._path = Path(path) if path is not None else None
        self._steps = steps
        self._began, self._due = time.time(), 0.0
        self._last: tuple[Callable[[], Mapping[str, Any]], int, dict[str, float]] | None = None
        if self._path is not None:
            self._write({"stats": {}, "step": 0})

    def tell(self, stats: Callable[[], Mapping[str, Any]], step: int, **numbers: Any) -> None:
        """Write what there is to tell, unless it was written a moment ago.

        Args:
            stats: returns ``compression_stats()``, with phases and buckets as far as they are to be shown; it is called
                only when something is written.
            step: number of steps that are done.
            numbers: others to show, such as the loss; anything that ``float`` takes.
        """
        if self._path is None:
            return
        self._last = stats, step, numbers
        if time.monotonic() >= self._due:
            self._tell()
            self._due = time.monotonic() + EVERY

    def end(self) -> None:
        """Write the last state, and that the job has ended."""
        if self._path is not None and self._last is not None:
            self._tell(ended=True)

    def _tell(self, ended: bool = False) -> None:
        assert self._last is not None
        stats, step, numbers = self._last
        told = {name: float(number) for name, number in numbers.items()}
        try:
            self._write({"stats": stats(), "step": step, "numbers": told, "ended": ended})
        except OSError as error:  # no reason to end a training, least of all on one rank alone
            warnings.warn(f"the status is not written any more: {error}", stacklevel=3)
            self._path = None

    def _write(self, told: dict[str, Any]) -> None:
        assert self._path is not None
        part = self._path.with_name(self._path.name + ".part")
        part.write_text(json.dumps({"began": self._began, "written": time.time(), "steps": self._steps, **told}) + "\n")
        part.replace(self._path)
