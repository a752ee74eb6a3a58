"""One step of a compressor, driven from outside: the only place that resumes a compressor's generator.

Whoever carries collectives (a transport, a TensorFlow graph, a parameter server, a benchmark) reads `pending`, and
feeds what came of it, until there is a `result`. Nothing here waits or sends.
"""

from __future__ import annotations

from typing import Any

from hvd_compress.compressors.base import AllReduce, Collective, Compressor, Reduced
from hvd_compress.compressors.state import State
from hvd_compress.ops import Array, Ops


class Step:
    """A step under way.

    Attributes:
        pending: the collective that the compressor waits for; None once there is a result.
        result: what the step came to, or None before that.

    Args:
        compressor: with its schedules; they are read at the state's step.
        ops: the array operations of the vector's framework.
        vector: shape (d,), float32; it may be overwritten if the compressor `overwrites`.
        state: this worker's. The step writes to it; `State.commit` or `State.rollback` ends the step.
    """

    __slots__ = ("_generator", "pending", "result")

    def __init__(self, compressor: Compressor, ops: Ops, vector: Array, state: State) -> None:
        self.pending: Collective | None = None
        self.result: Reduced | None = None
        self._generator = compressor.at(state.step).reduce(ops, vector, state)
        self.feed(None)

    def feed(self, combined: Any) -> None:
        """Resume the compressor with what came of the pending collective.

        Args:
            combined: the combined array of an AllReduce, or the list of all workers' payloads of an AllGather.

        Raises:
            ValueError: if the compressor refuses what came in; the step is then over, without a result.
        """
        self.pending = None
        try:
            self.pending = self._generator.send(combined)
        except StopIteration as stop:
            self.result = stop.value


def echo(collective: Collective, workers: int = 1) -> Any:
    """Return what comes of a collective if all of `workers` workers hand over the same (of a sum: one of them)."""
    return collective.array if isinstance(collective, AllReduce) else [collective.payload] * workers
