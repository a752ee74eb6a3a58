"""The settings of one job of a parameter server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes:
        data: file or folder in the data's folder.
        task, variant, bits, workers, servers, epochs, seed, l2, batch, model, model_bits, budget, step, epoch_steps,
            hidden, target: as mpi/asylpg.py takes them; None for its default.
        mbits: rate of a host's link in Mbit/s; 0 for all ranks on this machine, without links.
        together: whether a server and a worker share a host; otherwise each rank has its own.
    """

    data: str
    task: str
    variant: str
    bits: int
    workers: int
    epochs: int
    seed: int = 0
    servers: int = 1
    l2: float = 0.0
    batch: int = 64
    model: str = "difference"
    model_bits: int | None = None
    budget: float | None = None
    step: float | None = None
    epoch_steps: int | None = None
    hidden: int | None = None
    target: float | None = None
    mbits: int = 100
    together: bool = False

    def arguments(self, data: str) -> list[str]:
        """Return the command line of mpi/asylpg.py."""
        given = {"data": Path(data) / self.data, "max-epochs": self.epochs}
        names = ("task", "variant", "bits", "seed", "servers", "l2", "batch", "model")
        names += ("model_bits", "budget", "step", "epoch_steps", "hidden", "target")
        given |= {name.replace("_", "-"): getattr(self, name) for name in names}
        return [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
