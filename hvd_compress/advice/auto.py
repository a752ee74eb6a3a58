"""``compression="auto"``: the first steps are measured, then all workers choose the method that makes them shortest."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

from hvd_compress.advice.costs import bucket_costs
from hvd_compress.advice.model import Computing, predict
from hvd_compress.advice.network import Measured, collectives, measure
from hvd_compress.compressors import parse
from hvd_compress.ops import Ops
from hvd_compress.reduction.buckets import Gradient, make_plan
from hvd_compress.reduction.phases import COMPUTING, OPTIMIZER, Phases
from hvd_compress.reduction.settings import Settings
from hvd_compress.transports import Traffic, Transport

logger = logging.getLogger("hvd_compress")

CANDIDATES = ("none", "fp16", "qsgd(bits=4)", "topk(ratio=0.01)", "powersgd(rank=2)")
WARM_UP, MEASURED = 5, 10  # steps
WORTH = 1.03  # times shorter than with "none", below which nothing is changed
COST_SECONDS = 5.0  # for the methods' costs, beside two steps of each


class Chooser:
    """Chooses a method for some workers, all in the same step.

    Args:
        transport: who carries the collectives.
        check: called while it waits, may raise.
        settle: waits until the gradients' device has done what it was told.
    """

    def __init__(self, transport: Transport, check: Callable[[], None], settle: Callable[[], None]) -> None:
        self._transport, self._check, self._settle = transport, check, settle
        self._spent: deque[tuple[float, float]] = deque(maxlen=MEASURED + 1)  # after each step, so far

    def note(self, since: int, phases: Phases) -> None:
        """Note the time of a step that has ended.

        Args:
            since: steps that have ended since the workers agreed.
            phases: of this worker's steps.
        """
        if since == 1:
            self._spent.clear()
        report = phases.report()
        self._spent.append((report[COMPUTING], report[OPTIMIZER] or 0.0))

    def enough(self, since: int) -> bool:
        """Tell whether enough steps have ended for a choice in this one."""
        return since + 1 >= WARM_UP + MEASURED

    def collectives(self, name: str) -> list[str]:
        """Return the names of the collectives that `choose` starts."""
        return [*collectives(name), f"{name}.predicted"]

    def choose(self, gradients: Sequence[Gradient], settings: Settings, ops: Ops, name: str) -> str:
        """Measure, and return the spec of the method that all workers choose.

        Args:
            gradients: of all parameters that are not sparse.
            settings: by which they are divided into buckets.
            ops: the array operations where the gradients lie.
            name: begins the names of the collectives; no others have it.

        Raises:
            WorkerFailed: if another worker fails, or is gone.
        """
        traffic, self._transport.traffic = self._transport.traffic, Traffic()
        try:
            measured = measure(self._transport, ops, name, self._check)
            try:
                own: dict[str, Any] = self._predict(gradients, settings, ops, measured)
            except Exception as error:  # the others wait for an answer
                own = {"error": f"{type(error).__name__}: {error}"}
            told = self._transport.gather_object(own, f"{name}.predicted", self._check)
        finally:
            spent, self._transport.traffic = self._transport.traffic, traffic
            traffic.count("measurement", spent.sent, spent.received)
        return self._best(told)

    def _predict(
        self, gradients: Sequence[Gradient], settings: Settings, ops: Ops, network: Measured
    ) -> dict[str, float]:
        """Return the seconds of a step with each method."""
        passes, optimizer = [median(b - a for a, b in pairwise(spent)) for spent in zip(*self._spent, strict=True)]
        last = Computing.of(passes / settings.backward_passes_per_step)  # which alone overlaps
        computing = Computing(passes - last.backward, last.backward, optimizer)
        plans = {
            spec: make_plan(
                gradients,
                parse(spec),
                settings.rules,
                bucket_bytes=settings.bucket_bytes,
                dense_below=settings.dense_below,
            )
            for spec in CANDIDATES
        }
        seconds = COST_SECONDS / max(1, sum(map(len, plans.values())))
        workers = self._transport.workers
        return {
            spec: predict(computing, bucket_costs(plan, ops, workers, seconds, self._settle), network).seconds
            for spec, plan in plans.items()
        }

    def _best(self, told: Sequence[Mapping[str, Any]]) -> str:
        """Return what is best for the slowest worker: the same on all, since all know the same."""
        if errors := [f"rank {rank}: {answer['error']}" for rank, answer in enumerate(told) if "error" in answer]:
            logger.warning('compression="auto": nothing is compressed, since nothing could be measured: %s', errors[0])
            return "none"
        slowest = {spec: max(answer[spec] for answer in told) for spec in CANDIDATES}
        best = min(CANDIDATES, key=lambda spec: slowest[spec])
        if slowest["none"] < WORTH * slowest[best]:
            best = "none"
        if self._transport.rank == 0:
            times = ", ".join(f"{spec} {1000 * slowest[spec]:.1f}" for spec in CANDIDATES)
            logger.warning('compression="auto" has chosen %s. A step is predicted to take, in ms: %s', best, times)
        return best
