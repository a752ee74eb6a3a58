"""The results of a study in one file, to which each run adds a line when it is done."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

Setting = TypeVar("Setting")  # the settings of a run: a frozen dataclass of JSON's types
Results = dict[Setting, dict[str, Any]]


class ResultsFile(Generic[Setting]):
    """A file of JSON lines, one object a run: its settings, then its results.

    A line is added at once and under a lock, so that a study that is killed keeps what is done, and several processes
    may add to one file. A last line that was cut off is ignored, and removed when the next one is added. Of two lines
    with the same settings the later one counts.

    Args:
        path: of the file, which need not exist.
        kind: the dataclass of the settings. Settings that a line lacks have their defaults. A line counts only if its
            settings are still what `kind` makes of them: it may compute a field (`init=False`) from the others.
    """

    def __init__(self, path: Path, kind: type[Setting]) -> None:
        self.path, self._kind = path, kind
        self._fields = {item.name: item.init for item in fields(kind)}

    def read(self) -> Results[Setting]:
        """Return the results of all runs in the file, by their settings.

        Raises:
            ValueError: if a line is no result of this study; the message has its number.
        """
        if not self.path.exists():
            return {}
        whole = self.path.read_bytes().rpartition(b"\n")[0]
        found: Results[Setting] = {}
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                record = json.loads(line)
                given = {name: record[name] for name, init in self._fields.items() if init and name in record}
                setting = self._kind(**given)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{self.path}, line {number}: {error}") from error
            if all(record.get(name, value) == value for name, value in asdict(setting).items()):
                found[setting] = record
        return found

    def add(self, setting: Setting, result: dict[str, Any]) -> None:
        """Add a run; where a result is called like a setting, the setting is kept."""
        settings = asdict(setting)
        line = json.dumps(settings | result | settings) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:  # closing it writes the line, then releases the lock
            fcntl.flock(file, fcntl.LOCK_EX)
            _remove_cut_off_line(file)
            file.write(line.encode())


def _remove_cut_off_line(file: BinaryIO) -> None:
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)


def described(setting: Any) -> str:
    """Return the settings that are not at their defaults, for a progress report."""
    given = {item.name: getattr(setting, item.name) for item in fields(setting) if item.init}
    defaults = {item.name: item.default for item in fields(setting)}
    return ", ".join(f"{name}={value}" for name, value in given.items() if value != defaults[name])


def over_seeds(found: Results[Setting]) -> dict[Setting, list[dict[str, Any]]]:
    """Return for each setting, with its seed replaced by 0, the results of all seeds."""
    groups: dict[Setting, list[dict[str, Any]]] = {}
    for setting, result in found.items():
        groups.setdefault(replace(setting, seed=0), []).append(result)
    return groups


def chosen(settings: Iterable[Setting], found: Results[Setting]) -> Results[Setting]:
    """Return the results that there are of some settings, in the order of the settings."""
    return {setting: found[setting] for setting in settings if setting in found}
