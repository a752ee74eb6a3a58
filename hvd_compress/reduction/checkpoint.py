"""What a reducer saves, whatever the framework: adapters write it to, and read it from, their own checkpoints."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

from hvd_compress.compressors import spec
from hvd_compress.reduction.carry import Carried
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


def warn_of_another_rank(stacklevel: int) -> None:
    """Tell the user, so many calls up, that residuals of another rank are left out."""
    warnings.warn(
        "the state was saved by another rank: this rank's residual begins at zero. For an exact resumption every rank "
        "saves and loads its own state.",
        stacklevel=stacklevel,
    )
