"""What every job needs to know, whatever its algorithm."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class JobSettings:
    """The settings of a job.

    Attributes:
        servers: their number; all other ranks are workers.
        batch: rows of a worker's batch.
        epochs: most epochs.
        target: suboptimality at which the job is done, or None; without an optimum, the objective itself.
        seed: of everything random.
        timeout: seconds of silence after which a worker is dropped, and after which a server, which nobody can do
            without, ends the job. A rank that waits says ten times in that time that it is there; one that computes
            does not, so that no step and no checkpoint may take as long.
        checkpoint: folder for checkpoints, or None.
        every: epochs from one checkpoint that is kept and flushed to disk to the next. In between, the last two
            epochs are kept, so that a job that is killed can always be resumed; a power failure may take these.
        resume: whether to go on from the last checkpoint.
        slow: seconds that the last worker sleeps in each step, to simulate a straggler.
    """

    servers: int = 1
    batch: int = 64
    epochs: int = 50
    target: float | None = None
    seed: int = 0
    timeout: float = 120.0
    checkpoint: Path | None = None
    every: int = 1
    resume: bool = False
    slow: float = 0.0
