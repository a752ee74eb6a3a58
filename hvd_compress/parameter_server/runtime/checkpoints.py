"""Epochs on disk, from which a job resumes: a folder for each, with job.json and a file of every rank with state.

A process can be killed at any moment, and a file can be damaged afterwards. Therefore:

- Every file is written under a temporary name of its own and then renamed: it is there whole or not at all.
- Every file names the run (one start of a job) that wrote it. An epoch is complete if job.json and the files of all
  ranks are there and of one run: halves that two runs left behind do not pass for a checkpoint.
- Ranks write every epoch before the coordinator reports it, so that an interrupt needs no time for saving. Pruning
  never removes the newest complete epochs, whatever else is there.
- Reading verifies checksums, and falls back to the newest epoch that is complete and sound.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import uuid
import zipfile
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

FORMAT = 2  # files of format 1 say nothing about themselves: neither format nor run nor a checksum of job.json
KEPT = 2  # complete epochs, of those in between and of those that are kept longer
LABEL = "checkpoint"  # the array of a .npz that says what it belongs to
TEMPORARY = ".part"
RUN = re.compile(r"(\d+-[0-9a-f]+)?")  # how runs are called


class Unsound(ValueError):
    """A checkpoint's file is missing, damaged, or of another run."""


class Checkpoint(NamedTuple):
    """A complete epoch.

    Attributes:
        epoch: its number.
        job: what the coordinator saved.
        names: of the ranks whose files belong to it: workers that were gone by then have none.
        skipped: which newer epochs are not complete or not sound, and why, for the user; empty if there are none.
    """

    epoch: int
    job: dict[str, Any]
    names: list[str]
    skipped: str


def begin_run(folder: Path) -> str:
    """Delete what killed runs have left half written, and return the name of a new run, which sorts behind theirs.

    One rank calls this before any rank saves.

    Raises:
        OSError: if the folder cannot be made or read, or is none.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"the folder for checkpoints, {folder}, is a file")
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"epoch-*/*{TEMPORARY}"):
        left.unlink(missing_ok=True)
    last = 0
    for path in folder.glob("epoch-*/job.json"):
        try:
            run = _read_job(path)["run"]
        except Unsound:
            continue
        last = max(last, int(run.split("-")[0]) if run else 0)
    return f"{last + 1:06d}-{uuid.uuid4().hex}"


def write_whole(path: Path, write: Callable[[IO[bytes]], object], *, durable: bool = True) -> None:
    """Write a file such that others find it whole or not at all, whenever this process is killed.

    Args:
        path: of the file; its folder is made if it is missing.
        write: writes the contents into a binary file.
        durable: wait until the disk has it, so that it outlives a power failure as well.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}{TEMPORARY}")
    try:
        with temporary.open("xb") as file:
            write(file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:  # an interrupt as well
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        for folder in (path.parent, path.parent.parent):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


class Checkpoints:
    """The checkpoints of one job.

    Args:
        folder: where the epochs' folders are.
        names: of the ranks that have files, such as "server-0".
        every: epochs whose number is a multiple of it are flushed to disk and the newest `KEPT` of them are kept; of
            all epochs the newest `KEPT`, which outlive the processes but perhaps not the machine.
        run: from `begin_run`.
    """

    def __init__(self, folder: Path, names: Sequence[str], every: int, run: str) -> None:
        self.folder, self.names, self.every, self.run = folder, names, every, run
        self._complete: dict[int, str] | None = None  # the run of each complete epoch; None if it is not known

    def save(self, epoch: int, name: str, arrays: Mapping[str, Any]) -> None:
        """Write one rank's arrays."""
        labelled = {LABEL: np.array(json.dumps({"format": FORMAT, "run": self.run})), **arrays}
        self._write(self._path(epoch, f"{name}.npz"), epoch, lambda file: np.savez(file, **labelled))

    def save_job(self, epoch: int, job: Mapping[str, Any], gone: Collection[str] = ()) -> None:
        """Write what the whole job needs to know, once all ranks but those that are gone have saved the epoch.

        What is old is deleted then.
        """
        names = [name for name in self.names if name not in gone]
        written = {"format": FORMAT, "run": self.run, "names": names, **job}
        text = json.dumps({**written, "checksum": _checksum(written)})
        self._write(self._path(epoch, "job.json"), epoch, lambda file: file.write(text.encode()))
        self._prune(epoch)

    def latest(self) -> Checkpoint:
        """Return the newest epoch that is complete and sound; all its files are read to tell.

        Raises:
            FileNotFoundError: if there is none.
        """
        reasons: dict[int, str] = {}
        self._complete = self._find_complete(reasons)
        for epoch in sorted(self._complete, key=self._age, reverse=True):
            try:
                job = self._check(epoch, thoroughly=True)
            except Unsound as error:
                reasons[epoch] = str(error)
                del self._complete[epoch]
                continue
            newer = (f"epoch-{other} ({reasons[other]})" for other in sorted(reasons, reverse=True) if other > epoch)
            return Checkpoint(epoch, job, self._names_of(job), ", ".join(newer))
        wanted = ", ".join(f"{name}.npz" for name in self.names)
        found = "".join(f"; epoch-{epoch}: {reasons[epoch]}" for epoch in sorted(reasons, reverse=True))
        raise FileNotFoundError(
            f"{self.folder} has no complete checkpoint: a folder epoch-N with job.json, {wanted}{found}"
        )

    def load(self, epoch: int, name: str) -> dict[str, Any]:
        """Return one rank's arrays.

        Raises:
            Unsound: if its file is missing or damaged; the message names it.
        """
        return _read_arrays(self._path(epoch, f"{name}.npz"))[1]

    def _write(self, path: Path, epoch: int, write: Callable[[IO[bytes]], object]) -> None:
        if self._complete is not None:
            self._complete.pop(epoch, None)  # what another run left there is overwritten file by file
        write_whole(path, write, durable=epoch % self.every == 0)

    def _prune(self, current: int) -> None:
        """Keep the newest complete epochs, and of those that are kept longer the newest complete ones."""
        if self._complete is None:
            self._complete = self._find_complete({})
        else:
            try:
                self._complete[current] = self._check(current)["run"]
            except Unsound:  # a worker that is gone has saved nothing
                self._complete.pop(current, None)
        newest = sorted(self._complete, key=self._age)
        kept = {current, *newest[-KEPT:], *[epoch for epoch in newest if epoch % self.every == 0][-KEPT:]}
        for epoch in self._epochs():
            if epoch not in kept:
                self._complete.pop(epoch, None)
                shutil.rmtree(self._path(epoch, ""), ignore_errors=True)

    def _find_complete(self, reasons: dict[int, str]) -> dict[int, str]:
        """Return the run of each complete epoch, and write down in `reasons` why others are not."""
        found = {}
        for epoch in self._epochs():
            try:
                found[epoch] = self._check(epoch)["run"]
            except Unsound as error:
                reasons[epoch] = str(error)
        return found

    def _check(self, epoch: int, thoroughly: bool = False) -> dict[str, Any]:
        """Return a complete epoch's job.

        Raises:
            Unsound: if the epoch is not complete or, checked thoroughly, not sound.
        """
        job = _read_job(self._path(epoch, "job.json"))
        for name in self._names_of(job):
            run, _ = _read_arrays(self._path(epoch, f"{name}.npz"), only_label=not thoroughly)
            if run != job["run"]:
                raise Unsound(f"{name}.npz is of another run than job.json")
        return job

    def _names_of(self, job: Mapping[str, Any]) -> list[str]:
        """Return which of this job's ranks have a file in an epoch; the first is of a server, which never lacks one."""
        saved = job.get("names", self.names)
        return [name for name in self.names if name in saved or name.startswith("server-")]

    def _age(self, epoch: int) -> tuple[str, int]:
        """Return what orders complete epochs by age: a later run's are newer, whatever their number."""
        assert self._complete is not None
        return self._complete[epoch], epoch

    def _path(self, epoch: int, file: str) -> Path:
        return self.folder / f"epoch-{epoch}" / file

    def _epochs(self) -> list[int]:
        found = (path.name.removeprefix("epoch-") for path in self.folder.glob("epoch-*"))
        return sorted(int(number) for number in found if number.isdigit())


def _read_job(path: Path) -> dict[str, Any]:
    """Return a job.json, as of format 2.

    Raises:
        Unsound: if it is missing or damaged.
    """
    try:
        job = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise Unsound(f"{path.name} is missing") from error
    except (OSError, ValueError) as error:
        raise Unsound(f"{path.name}: {error}") from error
    if not isinstance(job, dict):
        raise Unsound(f"{path.name} does not hold what a job saves")
    job = {"format": 1, "run": "", **job}
    checksum = job.pop("checksum", None)
    if job["format"] == FORMAT and checksum != _checksum(job):
        raise Unsound(f"{path.name}: wrong checksum")
    _check_format(path, job["format"])
    kinds = {"algorithm": str, "epoch": dict, "run": str}
    if not all(isinstance(job.get(name), kind) for name, kind in kinds.items()) or not (
        RUN.fullmatch(job["run"]) and isinstance(job.get("names", []), list)
    ):
        raise Unsound(f"{path.name} does not hold what a job saves")
    return job


def _read_arrays(path: Path, only_label: bool = False) -> tuple[str, dict[str, Any]]:
    """Return the run that wrote a .npz, and its arrays; the zip file's checksums are verified.

    Raises:
        Unsound: if it is missing or damaged.
    """
    arrays: dict[str, Any] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                name = member.removesuffix(".npy")
                if name == LABEL or not only_label:
                    arrays[name] = np.load(io.BytesIO(archive.read(member)))  # `read` verifies the checksum
        label = json.loads(str(arrays.pop(LABEL, '{"format": 1, "run": ""}')))
        number, run = label["format"], label["run"]
    except FileNotFoundError as error:
        raise Unsound(f"{path.name} is missing") from error
    except Exception as error:  # there is no end of what zipfile raises
        raise Unsound(f"{path.name}: {error or type(error).__name__}") from error
    _check_format(path, number)
    return run, arrays


def _check_format(path: Path, number: int) -> None:
    if number not in (1, FORMAT):
        raise Unsound(f"{path.name} is of format {number}; this version reads formats up to {FORMAT}")


def _checksum(job: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(job, sort_keys=True).encode())
