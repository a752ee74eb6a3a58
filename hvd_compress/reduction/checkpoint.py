"""What a reducer saves, whatever the framework: adapters write it to, and read it from, their own checkpoints."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any, NamedTuple

from hvd_compress.compressors import spec
from hvd_compress.ops import Array, Ops
from hvd_compress.reduction.carry import Carried
from hvd_compress.reduction.rows import Rows
from hvd_compress.reduction.settings import Settings


class SavedExchange(NamedTuple):
    """The state of one exchange.

    Attributes:
        parameters: their names in the layout, in order.
        state: as `hvd_compress.compressors.state.State.state_dict` has it.
        rows: whether it exchanges the rows of sparse gradients; None if the checkpoint does not tell.
        generation: how often the plan had grown before, as gradients came up for the first time.
    """

    parameters: list[str]
    state: dict[str, Any]
    rows: bool | None = False
    generation: int = 0


@dataclass
class Saved:
    """A reducer's state.

    Attributes:
        compression: spec of its compressor.
        rules: its rules, as text.
        rank: the worker's that saved it: residuals are of that worker alone.
        steps: that were taken.
        exchanges: their states.
        carried: what former compressors have not sent.
    """

    compression: str
    rules: list[str]
    rank: int
    steps: int
    exchanges: list[SavedExchange]
    carried: Carried

    @classmethod
    def empty(cls, settings: Settings, rank: int) -> Saved:
        """Return the state of a reducer that has not taken a step."""
        return cls(spec(settings.compression), [str(rule) for rule in settings.rules], rank, 0, [], {})

    def check_settings(self, settings: Settings, advice: str = "") -> None:
        """Raise ValueError if the state belongs to another compression or other rules."""
        here = Saved.empty(settings, self.rank)
        for key in ("compression", "rules"):
            theirs, ours = getattr(self, key), getattr(here, key)
            if theirs != ours:
                raise ValueError(f"the state was saved with {key} {theirs}, and this optimizer has {ours}{advice}")

    def check(self, shapes: Mapping[str, tuple[int, ...]], ops: Ops) -> None:
        """Raise ValueError, naming what is wrong, unless all in it can be the state of these parameters.

        Args:
            shapes: of the parameters, by their names here.
            ops: the operations of the arrays in it.
        """
        _check_count("steps", self.steps)
        for number, entry in enumerate(self.exchanges):
            where = f"bucket {number} ({shorten(', '.join(entry.parameters), 60)})"
            if missing := [key for key in ("step", "rank", "shared", "local") if key not in entry.state]:
                raise ValueError(f"the state of {where} has no entry {missing[0]!r}")
            _check_count(f"the step of {where}", entry.state["step"])
            for store in ("shared", "local"):
                for name, array in entry.state[store].items():
                    _check_finite(f"{name} of {where}", array, ops)
            if entry.parameters and shapes.keys() >= set(entry.parameters):
                _check_local(where, entry, [shapes[name] for name in entry.parameters])
        for name, part in self.carried.items():
            _check_finite(f"what is carried for {name}", part.values if isinstance(part, Rows) else part, ops)

    def states_of(self, buckets: list[list[str]], rows: Collection[str]) -> tuple[list[Any], dict[str, Any]]:
        """Return the states for buckets (lists of parameters) and for rows (by the parameter); of an empty one none.

        Raises:
            ValueError: if the state belongs to other buckets or other sparse gradients.
        """
        known = [e if e.rows is not None else e._replace(rows=e.parameters[0] in rows) for e in self.exchanges]
        dense = [entry for entry in known if not entry.rows]
        sparse = {entry.parameters[0]: entry.state for entry in known if entry.rows}
        found, here = ([entry.parameters for entry in dense], sorted(sparse)), (buckets, sorted(rows))
        if known and found != here:
            raise ValueError(
                f"the state was saved for the buckets {found[0]} and sparse gradients of {found[1]}, and here they are "
                f"{here[0]} and {here[1]}: the model, bucket_bytes, dense_below, groups and sparse_as_dense must be "
                "those of the run that saved it"
            )
        return [entry.state for entry in dense], sparse

    def is_whole(self, rank: int, workers: int) -> bool:
        """Tell whether it has what one of so many workers keeps for itself; an older one does not tell their number."""
        return self.rank == rank and all(entry.state.get("workers") == workers for entry in self.exchanges)

    def is_of(self, rank: int) -> bool:
        """Tell whether nothing in it is of another worker alone."""
        return self.rank == rank or not (self.carried or any(entry.state["local"] for entry in self.exchanges))


def _check_count(what: str, count: Any) -> None:
    if not isinstance(count, int) or count < 0:
        raise ValueError(f"{what} must be a number of steps, at least 0; got {count!r}")


def _check_finite(what: str, array: Array, ops: Ops) -> None:
    if "float" in str(array.dtype) and not ops.all_finite(ops.flatten(array)):
        raise ValueError(f"{what} is not finite: it cannot have been saved by a sound run")


def _check_local(where: str, entry: SavedExchange, shapes: Sequence[tuple[int, ...]]) -> None:
    """Check the shapes of the arrays that a worker has for itself: of all coordinates, or of the rows that it names."""
    local, size = entry.state["local"], sum(map(math.prod, shapes))
    rows = local.get("rows")
    if rows is not None:
        [shape] = shapes
        least, most = (int(rows.min()), int(rows.max())) if rows.shape[0] else (0, 0)
        if least < 0 or most >= max(1, shape[0]):
            raise ValueError(f"rows of {where} must be in 0 to {shape[0] - 1}; got {least} to {most}")
        size = rows.shape[0] * (size // max(1, shape[0]))
    for name, array in local.items():
        if name != "rows" and tuple(array.shape) != (size,):
            raise ValueError(f"{name} of {where} must be of shape ({size},); got {tuple(array.shape)}")


def warn_of_another_rank(stacklevel: int) -> None:
    """Tell the user, so many calls up, that residuals of another rank are left out."""
    warnings.warn(
        "the state was saved by another rank: this rank's residual begins at zero. For an exact resumption every rank "
        "saves and loads its own state.",
        stacklevel=stacklevel,
    )
