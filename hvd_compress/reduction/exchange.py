"""The steps of one vector: a compressor with its state, and who carries its collectives."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from textwrap import shorten
from typing import Any

from hvd_compress.compressors import Compressor, spec
from hvd_compress.compressors.base import AllReduce, Collective
from hvd_compress.compressors.state import State
from hvd_compress.ops import Array, Ops, dtype_name
from hvd_compress.ops.layout import Layout
from hvd_compress.reduction.agreement import agree, describe
from hvd_compress.reduction.phases import DECODE, ENCODE, OTHER, START, WIRE, Phases
from hvd_compress.reduction.rows import Rows
from hvd_compress.reduction.step import Step
from hvd_compress.transports import Peers, Transport

RESIDUAL_CHECK_EVERY = 100  # steps between divergence checks
DOUBLINGS = 3  # in a row, after which a warning is due: a residual that fills up grows ever more slowly
POLL_SECONDS, POLL_GROWTH, POLL_MOST = 5e-5, 1.05, 1e-3  # ever less often: ranks that share cores would slow each other
SUMMED = ("float16", "float32", "float64", "float128")  # by transports; bfloat16 is not


class VectorSteps:
    """A compressor with its state for one vector, step after step, driven from outside.

    A step: `launch`, then `feed` what came of each `pending` collective until `finished`, then `commit` or `rollback`.

    Attributes:
        pending: the collective that the step under way waits for, or None.
        mean: the result, a vector of the layout's size or `Rows`, once `finished`.
        state: the compressor's state for this vector.
        sent: bytes that were handed to collectives so far.
        phases: where the time goes.
    """

    def __init__(
        self,
        compressor: Compressor,
        layout: Layout,
        ops: Ops,
        peers: Peers,
        *,
        name: str,
        seed: int = 0,
        phases: Phases | None = None,
    ) -> None:
        if layout.size >= 1 << 31:
            raise ValueError(f"{name}: {layout.size} coordinates in one vector; fewer than 2^31 are allowed")
        self.compressor, self.layout, self.ops = compressor, layout, ops
        self.name = name
        self._about = f"{spec(compressor)} of {shorten(', '.join(p.name for p in layout.parameters), 60)}"
        self.state = State(layout, rank=peers.rank, workers=peers.workers, seed=seed)
        self.pending: Collective | None = None
        self.mean: Any = None
        self.phases = phases or Phases()
        self._poisoned: Any = False  # or an array of no axes on a device, not to wait for it
        self._step: Step | None = None
        self._known_finite = False
        self._left, self._doublings = 0.0, 0
        self.sent = 0
        self._round = 0  # collectives started in the step under way

    @property
    def next_name(self) -> str:
        """The name under which the next collective starts, here or on the other workers."""
        return f"{self.name}.{self._round}"

    @property
    def line(self) -> str:
        """What its line of a trace is called."""
        return f"{self.name}: {self._about}"

    @property
    def finished(self) -> bool:
        """Whether the mean is there."""
        return self.mean is not None

    @property
    def launched(self) -> bool:
        """Whether a step is under way or finished, and neither committed nor rolled back."""
        return self._step is not None or self.finished

    @property
    def poisoned(self) -> bool:
        """Whether this worker's vector is not finite, which is known where the compressor keeps state."""
        return bool(self._poisoned)

    @property
    def finite(self) -> bool:
        """Whether the mean is, once it is there."""
        if isinstance(self.mean, Rows):
            return self.mean.finite(self.ops)
        return self._known_finite or self.ops.all_finite(self.mean)

    def launch(self, vector: Any, *, overwrite: bool = False) -> None:
        """Begin a step: compress the vector, shape (layout.size,) or `Rows`, up to the first collective.

        A vector with a non-finite value is replaced by one of NaN, which every compressor turns into a mean that is not
        finite: so do all workers learn of it. Where the value `spreads` without, it is read off what is sent.

        Args:
            vector: this worker's.
            overwrite: whether it may be overwritten, and may become part of the state.
        """
        if not self.layout.size:
            self.mean = vector
            return
        with self.phases.of(ENCODE, self.line):
            if self.compressor.stateful and not self.compressor.spreads:
                if isinstance(vector, Rows):
                    vector, self._poisoned = vector.poisoned(self.ops)
                else:
                    vector, self._poisoned = self.ops.poison(vector, overwrite)
            if self.compressor.overwrites and not overwrite:
                vector = self.ops.copy(vector)
            try:
                step = Step(self.compressor, self.ops, vector, self.state)
                if self.compressor.spreads and isinstance(step.pending, AllReduce):
                    self._poisoned = self.ops.nonfinite(step.pending.array)
            except Exception:
                self.state.rollback()
                raise
        self._keep(step)

    def feed(self, combined: Any) -> None:
        """Resume the compressor with what came of the pending collective."""
        step, self._step, self.pending = self._step, None, None
        assert step is not None, f"{self.name}: no collective is pending"
        with self.phases.of(DECODE, self.line):
            try:
                step.feed(combined)
            except Exception:  # a residual may be written before the payloads turn out to be broken
                self.state.rollback()
                raise
        self._keep(step)

    def _keep(self, step: Step) -> None:
        if step.pending is not None:
            self._step, self.pending = step, step.pending
            self.sent += step.pending.nbytes
        else:
            assert step.result is not None
            self.mean, self._known_finite = step.result.mean, step.result.finite

    def withhold(self, names: Collection[str]) -> None:
        """Give the finite mean of some parameters back to the residual it came from, before the step ends."""
        places = [place.slice for place in self.layout.parameters if place.name in names]
        if places:
            self.compressor.withhold(self.ops, self.mean, places, self.state)

    def commit(self) -> Any:
        """End the step, keep the state, and return the mean."""
        self.state.commit()
        if self.state.step % RESIDUAL_CHECK_EVERY == 0:
            self._check_residual()
        return self._take()

    def rollback(self) -> Any:
        """End the step, leave the state as it was, and return the mean."""
        self.state.rollback()
        return self._take()

    def abandon(self) -> None:
        """Drop the step under way, whose collectives will not finish."""
        self.state.rollback()
        self._step = self.pending = self.mean = None
        self._round = 0
        self.phases.dropped(self.line)

    def _take(self) -> Any:
        assert self.mean is not None, f"{self.name}: the step is not finished"
        mean, self.mean = self.mean, None
        return mean

    def _check_residual(self) -> None:
        """Warn if the residual grows without bound."""
        left = self.state.local.get("residual", self.state.shared.get("error"))
        if left is None:
            return
        norm = self.ops.norm(left)
        self._doublings = self._doublings + 1 if self._left and norm >= 2 * self._left else 0
        self._left = norm
        if self._doublings == DOUBLINGS:
            warnings.warn(
                f"{self.name}: what {spec(self.compressor)} leaves over has doubled {DOUBLINGS} times in "
                f"{DOUBLINGS * RESIDUAL_CHECK_EVERY} steps, to a norm of {norm:.3g}: what is sent does not keep up, "
                f"and training may diverge. {self.compressor.bare.remedy}",
                stacklevel=2,
            )


class Exchange(VectorSteps):
    """The steps of one vector over a transport: `launch` starts the first collective, `advance` awaits and resumes.

    Args:
        compressor: what to exchange the vector with.
        layout: the parameters in the vector.
        ops: the array operations of its framework.
        transport: who carries the collectives.
        name: of the collectives; the same on all workers, and of no other exchange over this transport.
        seed: of the compressor's random numbers, the same on all workers.
        phases: where the time goes; None for one of its own.

    Attributes:
        spare: whether a vector that may be overwritten may become the mean as well.
    """

    spare = False

    def __init__(
        self,
        compressor: Compressor,
        layout: Layout,
        ops: Ops,
        transport: Transport,
        *,
        name: str = "exchange",
        seed: int = 0,
        phases: Phases | None = None,
    ) -> None:
        super().__init__(compressor, layout, ops, transport, name=name, seed=seed, phases=phases)
        self.transport, self.seed = transport, seed
        self._agreed = False
        self._handle: Any = None

    def ready(self) -> bool:
        """Tell whether `advance` would not have to wait."""
        return self._step is not None and self.transport.done(self._handle)

    def rest(self, seconds: float) -> None:
        """Let the processor be while the collective is under way, for some time."""
        self.transport.rest(self._handle, seconds)

    def advance(self) -> None:
        """Wait for the collective under way, resume the compressor, and start the next collective."""
        with self.phases.of(WIRE):
            combined = self.transport.wait(self._handle)
        self._handle = None
        self.phases.arrived(self.line)
        self.feed(combined)

    def _keep(self, step: Step) -> None:
        super()._keep(step)
        if self.pending is None:
            self._round = 0
        else:
            pending: Any = self.pending
            if self.spare and isinstance(pending, AllReduce) and not self.compressor.stateful:
                pending = replace(pending, spare=True)
            with self.phases.of(START, self.line):
                self._handle = self.transport.start(pending, f"{self.name}.{self._round}")
            self.phases.started(self.line, self._round, pending.kind)
            self._round += 1

    def reduce(self, vector: Array) -> Array:
        """Do a whole step and return the mean; the state advances only if the mean is finite.

        All workers call it. The first time they compare version, compression, seed and layout. The mean is of the
        vector's dtype; for a method that takes float32 alone, a vector of another one is cast on the way.

        Raises:
            ValueError: if the vector has another shape than (layout.size,).
            TypeError: if it is not of a real floating dtype.
            WorkersDisagree: if the workers were not given the same.
            WorkerFailed: if another worker failed; its own error is in the message.
        """
        try:
            check_vector(self.name, vector, self.layout)
            self.phases.step = self.state.step
            if not self._agreed:
                described = {"compression": spec(self.compressor), "seed": self.seed}
                with self.phases.of(OTHER):
                    error = self.phases.open_trace(self.transport.world_rank)
                    described |= describe(self.layout)
                    agree(self.transport, described, f"{self.name}.agreement", error=error)
                self._agreed = True
            given = self.ops.cast(vector, taken_dtype(self.compressor, vector))
            self.launch(given, overwrite=given is not vector)
            while not self.finished:
                self.advance()
        except Exception as error:
            self.transport.fail(error, [self.next_name])
            self.abandon()
            raise
        mean = self.ops.cast(self.commit() if self.finite else self.rollback(), dtype_name(vector))
        self.phases.end_step(self.state.step)
        return mean


def advance_until(
    finished: Callable[[], bool], exchanges: Sequence[Exchange], check: Callable[[], None] = lambda: None
) -> None:
    """Advance exchanges until a condition holds. `check` is called while it waits, and may raise.

    Where collectives are matched by name, whichever exchange is ready goes on, and none is waited for alone: another
    worker may wait for another exchange's second round first. Where they are matched by order, the exchanges take
    turns, round after round, on every worker alike.
    """
    pause = 0.0
    turns: list[Exchange] = []  # those whose turn is still to come in this round
    while not finished():
        under_way = [exchange for exchange in exchanges if exchange.pending is not None]
        ordered = bool(under_way) and under_way[0].transport.ordered
        turns = turns or (under_way if ordered else [])
        ready = [exchange for exchange in (turns[:1] if ordered else under_way) if exchange.ready()]
        for exchange in ready:
            exchange.advance()
        if ready:
            turns = turns[1:]
            pause = 0.0
            continue
        pause = next_pause(pause)
        if under_way:
            (turns or under_way)[0].rest(pause)
        else:
            time.sleep(pause)
        check()


def next_pause(pause: float) -> float:
    """Return for how many seconds to rest before the next look, after a pause (0: none yet)."""
    return min(max(POLL_SECONDS, pause * POLL_GROWTH), POLL_MOST)


def check_vector(name: str, vector: Array, layout: Layout) -> None:
    """Raise if a vector is not one that a compressor takes: of the layout's size, and floating."""
    if tuple(vector.shape) != (layout.size,):
        raise ValueError(f"{name}: a vector of shape ({layout.size},) is expected; got {tuple(vector.shape)}")
    if "float" not in str(vector.dtype):
        raise TypeError(f"{name}: gradients must be of a real floating dtype, such as float32; got {vector.dtype}")


def taken_dtype(compressor: Compressor, vector: Array) -> str:
    """Return the dtype in which a compressor is given a vector: its own, or float32."""
    own = dtype_name(vector)
    return own if compressor.keeps_dtype and own in SUMMED else "float32"
