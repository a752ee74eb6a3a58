"""A compressor's state between steps, written as a transaction."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from hvd_compress.ops.layout import Layout
from hvd_compress.ops.random import Stream, make_key


class Store(MutableMapping[str, Any]):
    """Named arrays. Writes are visible at once, and permanent once the step is committed."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}
        self._written: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        return self._written[name] if name in self._written else self._kept[name]

    def __setitem__(self, name: str, array: Any) -> None:
        self._written[name] = array

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"a state's arrays are replaced, never deleted: {name!r}")

    def __iter__(self) -> Iterator[str]:
        return iter({**self._kept, **self._written})

    def __len__(self) -> int:
        return len({**self._kept, **self._written})

    @property
    def kept(self) -> dict[str, Any]:
        """The arrays as of the last commit."""
        return dict(self._kept)

    def forget(self, name: str) -> None:
        """Take an array out, if there is one, for good."""
        self._kept.pop(name, None)
        self._written.pop(name, None)

    def commit(self) -> None:
        """Make the writes since the last commit permanent."""
        self._kept.update(self._written)
        self._written.clear()

    def rollback(self) -> None:
        """Discard the writes since the last commit."""
        self._written.clear()

    def vacated(self, vector: Any, before: Mapping[str, Any], address: Callable[[Any], int | None]) -> Any:
        """Return the vector, or if its memory has become one of the arrays, what that array was before, or None.

        Args:
            vector: what a step was given, which it may have kept.
            before: `kept` as it was before the step.
            address: tells where an array's memory begins.
        """
        taken = address(vector)
        for name, array in self.items():
            if address(array) == taken:
                return before.get(name)
        return vector


class State:
    """A compressor's state for one vector on one worker.

    Attributes:
        layout: the parameters in the vector.
        rank, workers: which worker this is, of how many: number `rank` of the payloads of an AllGather is its own.
        step: number of committed steps; with the seed and the parameters' names it determines every random number.
        shared: arrays that are equal on all workers (PowerSGD's warm start, say).
        local: this worker's own arrays (its residual, say): another worker must not load them.
    """

    def __init__(self, layout: Layout, *, rank: int = 0, workers: int = 1, seed: int = 0) -> None:
        self.layout = layout
        self.rank, self.workers = rank, workers
        self.step = 0
        self.shared, self.local = Store(), Store()
        names = [parameter.name for parameter in layout.parameters]
        self._shared_key = make_key(seed, names)
        self._local_key = make_key(seed, names, rank)

    def of(self, layout: Layout) -> State:
        """Return this state for another vector of the same step: what a compressor inside another is given."""
        other = copy.copy(self)
        other.layout = layout
        return other

    def own_stream(self, use: str = "") -> Stream:
        """Random numbers of this worker and step for one use, independent of the other workers' and uses'."""
        return Stream(self._local_key ^ (make_key(use) if use else 0), self.step)

    def common_stream(self) -> Stream:
        """Random numbers of this step that are the same on all workers."""
        return Stream(self._shared_key, self.step)

    def commit(self) -> None:
        """End the step: make its writes permanent and advance `step`."""
        self.shared.commit()
        self.local.commit()
        self.step += 1

    def rollback(self) -> None:
        """Discard the step's writes."""
        self.shared.rollback()
        self.local.rollback()

    def reset(self) -> None:
        """Forget everything."""
        self.step = 0
        self.shared, self.local = Store(), Store()

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the last committed state, for `load_state_dict`."""
        saved = {
            "step": self.step,
            "rank": self.rank,
            "workers": self.workers,
            "shared": self.shared.kept,
            "local": self.local.kept,
        }
        return copy.deepcopy(saved)

    def load_state_dict(self, saved: Mapping[str, Any]) -> bool:
        """Replace the state by a saved one; return whether this worker's own arrays came with it.

        A state that another rank saved brings its step and shared arrays alone: that rank's residual holds what that
        rank has not sent, and would be counted twice here.
        """
        own = saved["rank"] == self.rank or not saved["local"]
        self.reset()
        self.step = int(saved["step"])
        self.shared.update(copy.deepcopy(saved["shared"]))
        if own:
            self.local.update(copy.deepcopy(saved["local"]))
        self.shared.commit()
        self.local.commit()
        return own
