"""Epochs on disk, from which a job goes on: a folder for each, with a file of every rank that has something to keep."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

KEPT = 2  # epochs: the last may be incomplete


class Checkpoints:
    """The checkpoints of one job.

    Args:
        folder: where the epochs' folders are.
        names: of the ranks that have files, such as "server-0".
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.names = folder, names

    def save(self, epoch: int, name: str, arrays: Mapping[str, Any]) -> None:
        """Write one rank's arrays, whole or not at all."""
        path = self._path(epoch, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.savez(file, **arrays)
        part.replace(path)

    def save_job(self, epoch: int, job: Mapping[str, Any]) -> None:
        """Write what the whole job needs to know, and delete what is old."""
        path = self._path(epoch, "job").with_suffix(".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(job))
        part.replace(path)
        for old in self._epochs()[:-KEPT]:
            shutil.rmtree(self._path(old, "").parent, ignore_errors=True)

    def latest(self) -> tuple[int, dict[str, Any]]:
        """Return the last epoch that is complete, and what the job needs to know.

        Raises:
            FileNotFoundError: if there is none.
        """
        for epoch in reversed(self._epochs()):
            job = self._path(epoch, "job").with_suffix(".json")
            if job.is_file() and all(self._path(epoch, name).is_file() for name in self.names):
                return epoch, json.loads(job.read_text())
        wanted = ", ".join(f"{name}.npz" for name in self.names)
        raise FileNotFoundError(f"{self.folder} has no complete checkpoint: a folder epoch-N with job.json, {wanted}")

    def load(self, epoch: int, name: str) -> dict[str, Any]:
        """Return one rank's arrays."""
        with np.load(self._path(epoch, name)) as file:
            return dict(file)

    def _path(self, epoch: int, name: str) -> Path:
        return self.folder / f"epoch-{epoch}" / f"{name}.npz"

    def _epochs(self) -> list[int]:
        found = (path.name.removeprefix("epoch-") for path in self.folder.glob("epoch-*"))
        return sorted(int(number) for number in found if number.isdigit())
