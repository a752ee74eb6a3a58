"""Which ranks wait for which: said after a while, and if asked for an error after another. And who has failed.

A worker who has waited for long asks all others, at their ports, in which step they are. The environment sets the
times: HVD_COMPRESS_STALL_SECONDS (60; 0 never says anything), and HVD_COMPRESS_STALL_ERROR_SECONDS (0: never), after
which a step ends with `WorkersStalled`. A worker who is blocked in a collective (of a TensorFlow graph, of MPI, or of
the agreement) cannot raise it: the process ends with exit code 1, and the launcher ends the others.

A worker who fails tells all others at once: what they wait for may never say why it does not come. That holds for
errors of a step and for an exception that ends the script.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from hvd_compress.reduction.agreement import PlanGivenUp
from hvd_compress.reduction.port import Address, Port, ask, ask_all
from hvd_compress.transports import WorkerFailed

logger = logging.getLogger("hvd_compress")

LOOK_EVERY = 0.5  # seconds
RAISE_SECONDS = 2.0  # that a waiting worker is given to raise the error


class WorkersStalled(WorkerFailed):
    """Other workers have not come to a step for as long as HVD_COMPRESS_STALL_ERROR_SECONDS allows."""


def seconds_of(variable: str, default: float) -> float:
    """Return a time from the environment; ValueError if it is not a number of seconds."""
    text = os.environ.get(variable, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise ValueError(f"{variable} must be a number of seconds, at least 0; got {text!r}")
    return value


class Progress:
    """Where a worker is in its steps, as it tells others who wait for it.

    Args:
        rank: this worker's.
        goes_on: whether the step under way may still be so, asked before anything is said: an error may have ended it.

    Attributes:
        rank: this worker's.
        name: what the workers call the reducer.
        step: the number of steps that have ended.
        addresses: those of all workers, in the order of ranks, once they have agreed.
        agreements: how often they have agreed, the same number on all.
        since: steps that have ended since they agreed.
        error: what `check` raises: that the others have not come.
        ended, ended_before: when the last step ended, and the one before it.
        failure_known: when this worker told others of an error, or was told of one, for the last time.
    """

    def __init__(self, rank: int, goes_on: Callable[[], bool]) -> None:
        self._goes_on = goes_on
        self.rank, self.name, self.step = rank, "", 0
        self.addresses: Sequence[Address] = ()
        self.error: str | None = None
        self._began: float | None = None  # when the step under way began to wait
        self.ended = self.ended_before = time.monotonic()
        self.failure_known = 0.0
        self._told = self._raised = False
        self.agreements = 0
        self.since = 0
        self._refusals = 0  # since then, this worker's and those that it has heeded
        self._heard: dict[str, Any] = {"agreements": 0}

    def agree(self, name: str, addresses: Sequence[Address], agreements: int) -> None:
        """Take what all workers have agreed on: see the attributes."""
        self.name, self.addresses, self.agreements = name, addresses, agreements
        self.since = self._refusals = 0
        if early := _office().port.early.pop(name, None):
            self.hear(early)

    def wait(self, step: int) -> None:
        """Begin to wait for the others, if it has not begun, after so many steps."""
        self.step = step
        if self._began is None:
            self._began = time.monotonic()

    def pause(self) -> None:
        """Wait no more, in the midst of a step or because it is given up."""
        self._began, self._told, self._raised, self.error = None, False, False, None

    def end(self, step: int) -> None:
        """End a step, after which so many have ended."""
        self.pause()
        self.step = step
        self.since += 1
        self.ended_before, self.ended = self.ended, time.monotonic()

    def check(self) -> None:
        """Raise if the others have not come for too long, or one of them does not take this step.

        Raises:
            WorkersStalled: if they have not come for as long as HVD_COMPRESS_STALL_ERROR_SECONDS.
            WorkerFailed: if one has refused the step.
            PlanGivenUp: if one has refused it because it follows the plan no more.
        """
        heard = self._heard
        now = heard["agreements"] == self.agreements > 0 and heard["since"] <= self.since
        if now and heard["refusals"] > self._refusals:
            self._refusals = heard["refusals"]
            raise (PlanGivenUp if heard["left"] else WorkerFailed)(heard["text"])
        if self.error is not None:
            self._raised = True
            raise WorkersStalled(self.error)

    def describe(self) -> dict[str, Any]:
        """Return what others are told: step, and seconds of waiting (or None) and since the last step."""
        now, began = time.monotonic(), self._began
        return {"step": self.step, "waits": None if began is None else now - began, "idle": now - self.ended}

    def look(self, warn_after: float, fail_after: float) -> None:
        """Say, once a step, who waits for whom, and let `check` raise if it takes too long."""
        waited = self.describe()["waits"]
        if waited is None or waited < min(warn_after or math.inf, fail_after or math.inf):
            return
        if not self._goes_on():
            self.pause()
            return
        if warn_after and waited >= warn_after and not self._told:
            self._told = True
            logger.warning("%s", self._situation(waited))
        if fail_after and waited >= fail_after and self.error is None:
            self.error = self._situation(waited)
        if self.error is not None and not self._raised and waited >= fail_after + RAISE_SECONDS:
            logger.error("%s. HVD_COMPRESS_STALL_ERROR_SECONDS is over: this process ends", self.error)
            sys.stdout.flush()
            os._exit(1)

    def tell(self, error: BaseException) -> bool:
        """Tell all others, who log it, that this worker has failed; return whether all know."""
        return self._send(error)

    def refuse(self, error: BaseException, left: bool = False) -> None:
        """Let all others' `check` raise, unless they refuse the same step as well.

        Args:
            error: why.
            left: whether this worker waits for an agreement instead, with those who have left the plan as well.
        """
        self._refusals += 1
        when = {"agreements": self.agreements, "since": self.since, "refusals": self._refusals}
        self._send(error, name=self.name, left=left, **when)

    def hear(self, told: dict[str, Any]) -> None:
        """Take what another worker sent as it failed, or refused a step."""
        self.failure_known = time.monotonic()
        if told.get("agreements", -1) >= self.agreements:  # not one that has come late
            self._heard = told

    def _send(self, error: BaseException, **more: Any) -> bool:
        self.failure_known = time.monotonic()
        text = f"rank {self.rank} failed in step {self.step + 1} with {type(error).__name__}: {error}"
        answers = ask_all([*self._others().values()], {"text": text, **more})
        return bool(answers) and None not in answers

    def _others(self) -> dict[int, Address]:
        return {rank: address for rank, address in enumerate(self.addresses) if rank != self.rank}

    def look_for_the_gone(self) -> None:
        """Log which ranks do not answer any more: those who wait for them learn only that somebody is gone."""
        answers = zip(self._others(), ask_all([*self._others().values()]), strict=True)
        gone = [str(rank) for rank, answer in answers if answer is None]
        if gone:
            logger.error("rank %s: no answer; the process has ended, or cannot be reached", ", ".join(gone))

    def _situation(self, waited: float) -> str:
        others = [f"rank {rank} {_told_by(address, self.name)}" for rank, address in self._others().items()]
        who = "; ".join(others) or "it is not known which, for the first of these steps begins with an agreement"
        return (
            f"rank {self.rank} has waited {waited:.0f} s for other ranks in step {self.step + 1}: {who}. "
            "All ranks must take the same steps: see that none skips a batch or has fewer of them"
        )


def _told_by(address: Address, name: str) -> str:
    """Ask a worker where it is; return its answer in words."""
    answer = ask(address)
    if answer is None:
        return "does not answer"
    told = answer.get(name)
    if told is None:
        return "has given up this optimizer"
    if told["waits"] is not None:
        return f"waits as well, in step {told['step'] + 1}"
    return f"has ended step {told['step']}, {told['idle']:.0f} s ago, and has not come to its next"


class _Office:
    """What a process has of it: its port, a look at its reducers from time to time, and a word to others at its end."""

    def __init__(self) -> None:
        self.port = Port()
        self.warn_after = seconds_of("HVD_COMPRESS_STALL_SECONDS", 60.0)
        self.fail_after = seconds_of("HVD_COMPRESS_STALL_ERROR_SECONDS", 0.0)
        threading.Thread(target=self._look, daemon=True, name="hvd_compress.stalls").start()
        sys.excepthook = functools.partial(self._ended_by, sys.excepthook)

    def _look(self) -> None:
        while True:
            time.sleep(LOOK_EVERY)
            for progress in self._all():
                progress.look(self.warn_after, self.fail_after)

    def _ended_by(self, shown_by: Callable[..., None], kind: type, error: BaseException, *more: Any) -> None:
        shown_by(kind, error, *more)
        reducers = self._all()
        known = max((progress.failure_known for progress in reducers), default=0.0)
        if not isinstance(error, Exception) or not reducers or known > reducers[0].ended:
            return  # the others know it, or why
        if isinstance(error, WorkerFailed):
            reducers[0].look_for_the_gone()
        else:
            reducers[0].tell(error)

    def _all(self) -> list[Progress]:
        """Return the progress of all reducers, of the last step first."""
        return sorted(self.port.watched, key=lambda progress: progress.ended, reverse=True)


@functools.cache
def _office() -> _Office:
    return _Office()


def watch(progress: Progress) -> Address:
    """Answer for a reducer from now on, and look after it; return this process's address."""
    office = _office()
    office.port.watched.add(progress)
    return office.port.address
