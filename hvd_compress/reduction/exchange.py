"""One vector's way through a compressor and a transport, step after step."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from hvd_compress.compressors import Compressor, spec
from hvd_compress.compressors.base import Exchanging
from hvd_compress.compressors.state import State
from hvd_compress.ops import Array, Ops
from hvd_compress.ops.layout import Layout
from hvd_compress.reduction.agreement import check_agreement, describe
from hvd_compress.reduction.rows import Rows
from hvd_compress.transports import Transport

WATCHED = 100  # steps between two looks at what is left over
DOUBLINGS = 3  # in a row, after which a warning is due: while a residual fills up, its norm grows ever more slowly


class Exchange:
    """A compressor at work on one vector: `launch` it, `advance` until `finished`, then `commit` or `rollback`.

    Attributes:
        mean: the result, a vector of the layout's size or `Rows`, once `finished`.
        state: the compressor's state for this vector.
        compression_seconds: time spent in the compressor since construction.
        waiting_seconds: time spent in waiting for collectives since construction.
    """

    def __init__(
        self,
        compressor: Compressor,
        layout: Layout,
        ops: Ops,
        transport: Transport,
        *,
        name: str = "exchange",
        seed: int = 0,
    ) -> None:
        if layout.size >= 1 << 31:
            raise ValueError(f"{name}: {layout.size} coordinates in one vector; fewer than 2^31 are allowed")
        self.compressor, self.layout, self.ops, self.transport = compressor, layout, ops, transport
        self.name = name
        self.state = State(layout, rank=transport.rank, workers=transport.workers, seed=seed)
        self.seed = seed
        self.mean: Array | None = None
        self._agreed = False
        self.compression_seconds = self.waiting_seconds = 0.0
        self._generator: Exchanging | None = None
        self._handle: Any = None
        self._round = 0
        self._left, self._doublings = 0.0, 0

    @property
    def launched(self) -> bool:
        """Whether a step is under way or finished, and neither committed nor rolled back."""
        return self._generator is not None or self.finished

    @property
    def finished(self) -> bool:
        """Whether the mean is there."""
        return self.mean is not None

    @property
    def finite(self) -> bool:
        """Whether the mean is, once it is there."""
        return self.mean.finite(self.ops) if isinstance(self.mean, Rows) else self.ops.all_finite(self.mean)

    def launch(self, vector: Array, *, overwrite: bool = False) -> None:
        """Begin a step: compress the vector, shape (layout.size,) or `Rows`, and start the first collective.

        With `overwrite` the vector may be overwritten, and may become part of the state.
        """
        if not self.layout.size:
            self.mean = vector
            return
        began = time.perf_counter()
        if self.compressor.stateful:
            vector = vector.poisoned(self.ops) if isinstance(vector, Rows) else self.ops.poison(vector)
        self.compression_seconds += time.perf_counter() - began
        if self.compressor.overwrites and not overwrite:
            vector = self.ops.copy(vector)
        self._generator = self.compressor.at(self.state.step).reduce(self.ops, vector, self.state)
        self._resume(None)

    def ready(self) -> bool:
        """Tell whether `advance` would not have to wait."""
        return self._generator is not None and self.transport.done(self._handle)

    def advance(self) -> None:
        """Wait for the collective under way and resume the compressor."""
        began = time.perf_counter()
        result = self.transport.wait(self._handle)
        self.waiting_seconds += time.perf_counter() - began
        self._resume(result)

    def _resume(self, result: Any) -> None:
        assert self._generator is not None
        began = time.perf_counter()
        try:
            collective = self._generator.send(result)
        except StopIteration as stop:
            self.mean = stop.value.mean
            self._generator = self._handle = None
            return
        except BaseException:
            self._generator = self._handle = None
            self.state.rollback()  # a residual may be written before the payloads turn out to be broken
            raise
        finally:
            self.compression_seconds += time.perf_counter() - began
        self._handle = self.transport.start(collective, f"{self.name}.{self._round}")
        self._round += 1

    @property
    def next_name(self) -> str:
        """The name under which the other workers would start the next collective."""
        return f"{self.name}.{self._round}"

    def commit(self) -> Array:
        """End the step, keep the state, and return the mean."""
        self.state.commit()
        if self.state.step % WATCHED == 0:
            self._watch()
        return self._take()

    def _watch(self) -> None:
        """Warn if what is left over grows without bound."""
        left = self.state.local.get("residual", self.state.shared.get("error"))
        if left is None:
            return
        norm = self.ops.norm(left)
        self._doublings = self._doublings + 1 if self._left and norm >= 2 * self._left else 0
        self._left = norm
        if self._doublings == DOUBLINGS:
            warnings.warn(
                f"{self.name}: what {spec(self.compressor)} leaves over has doubled {DOUBLINGS} times in "
                f"{DOUBLINGS * WATCHED} steps, to a norm of {norm:.3g}: what is sent does not keep up, and training "
                f"may diverge. {self.compressor.bare.remedy}",
                stacklevel=2,
            )

    def rollback(self) -> Array:
        """End the step, leave the state as it was, and return the mean."""
        self.state.rollback()
        return self._take()

    def abandon(self) -> None:
        """Drop the step under way, whose collectives will not finish."""
        self.state.rollback()
        self._generator = self._handle = self.mean = None
        self._round = 0

    def _take(self) -> Array:
        assert self.mean is not None, f"{self.name}: the step is not finished"
        mean, self.mean, self._round = self.mean, None, 0
        return mean

    def reduce(self, vector: Array) -> Array:
        """Do a whole step and return the mean; the state advances only if the mean is finite.

        All workers call it. The first time they compare version, compression, seed and layout.

        Raises:
            ValueError: if the vector has another shape than (layout.size,).
            TypeError: if it is not of a floating dtype.
            WorkersDisagree: if the workers were not given the same.
            WorkerFailed: if another worker failed; its own error is in the message.
        """
        try:
            check_vector(self.name, vector, self.layout)
            if not self._agreed:
                mine = describe(self.compressor, self.seed, self.layout)
                check_agreement(self.transport.gather_object(mine, f"{self.name}.agreement"))
                self._agreed = True
            self.launch(vector)
            while not self.finished:
                self.advance()
        except Exception as error:
            self.transport.fail(error, [self.next_name])
            self.abandon()
            raise
        return self.commit() if self.finite else self.rollback()


POLL_SECONDS = 5e-5


def advance_until(finished: Callable[[], bool], exchanges: Sequence[Exchange]) -> float:
    """Advance whichever exchanges are ready until a condition holds; return the seconds spent in waiting.

    To wait for one of several exchanges could be to wait for a worker who waits for another of them: what one worker
    asks for first need not be what another has started. So none is waited for alone.
    """
    waited = 0.0
    while not finished():
        ready = [exchange for exchange in exchanges if exchange.ready()]
        for exchange in ready:
            exchange.advance()
        if not ready:
            began = time.perf_counter()
            time.sleep(POLL_SECONDS)
            waited += time.perf_counter() - began
    return waited


def check_vector(name: str, vector: Array, layout: Layout) -> None:
    """Raise if a vector is not one that a compressor takes: of the layout's size, and floating."""
    if tuple(vector.shape) != (layout.size,):
        raise ValueError(f"{name}: a vector of shape ({layout.size},) is expected; got {tuple(vector.shape)}")
    if "float" not in str(vector.dtype):
        raise TypeError(f"{name}: gradients must be of a floating dtype; got {vector.dtype}")
