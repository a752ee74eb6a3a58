"""Progress where there is no terminal; the jobs in mpi/ use it too."""

from __future__ import annotations

import sys


class Lines:
    """A stream on which a progress bar adds lines rather than redraws one: Open MPI 5 forwards whole lines only."""

    def write(self, text: str) -> None:
        """Write a line, if there is anything in it."""
        if text.strip():
            sys.stderr.write(text.strip() + "\n")

    def flush(self) -> None:
        """Write what is left."""
        sys.stderr.flush()
