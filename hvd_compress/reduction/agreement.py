"""Whether all workers mean the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hvd_compress.ops.layout import Layout
from hvd_compress.transports import Peers, WorkerFailed
from hvd_compress.version import __version__


def describe(layout: Layout) -> dict[str, Any]:
    """Return what must be the same on all workers, whatever their settings: a mapping for `check_agreement`."""
    return {"version": __version__, "parameters": [f"{p.name} {p.shape}" for p in layout.parameters]}


def agree(
    peers: Peers,
    description: Mapping[str, Any],
    name: str,
    told: Any = None,
    error: BaseException | None = None,
    check: Callable[[], None] = lambda: None,
) -> list[Any]:
    """Compare the workers' descriptions; return what each of them told beside, in the order of ranks.

    Args:
        peers: the workers.
        description: what must be the same on all of them, as JSON can hold it.
        name: of the collective.
        told: what else the others are to know.
        error: why this worker cannot go on, if it cannot.
        check: as of `Peers.gather_object`.

    Raises:
        WorkerFailed: if a worker cannot go on; its error is in the message.
        WorkersDisagree: if the descriptions differ, or a worker has not given up the plan that others have.
    """
    text = None if error is None else f"{type(error).__name__}: {error}"
    disagrees = str(error) if isinstance(error, PlanGivenUp) else None
    answers = peers.gather_object([description, told, text, disagrees], name, check)
    if disagree := [answer[3] for answer in answers if answer[3]]:
        raise WorkersDisagree(disagree[0])
    if failed := [f"rank {rank} failed with {answer[2]}" for rank, answer in enumerate(answers) if answer[2]]:
        raise WorkerFailed("; ".join(failed))
    check_agreement([answer[0] for answer in answers])
    return [answer[1] for answer in answers]


class WorkersDisagree(ValueError):
    """The workers were not started with the same version, settings or model."""


class PlanGivenUp(WorkersDisagree):
    """Another worker has given up the plan that this one follows, and waits to agree anew."""


def check_agreement(descriptions: Sequence[Mapping[str, Any]], ranks: Sequence[int] | None = None) -> None:
    """Compare what each worker says of itself.

    Args:
        descriptions: one mapping a worker, in the order of ranks; a list in it is compared item by item.
        ranks: the workers' ranks, if they are not 0, 1, 2 and so on.

    Raises:
        WorkersDisagree: naming what differs, the ranks, and what each has.
    """
    for key in descriptions[0]:
        values: list[Any] = [description.get(key) for description in descriptions]
        if all(value == values[0] for value in values):
            continue
        what = key
        if all(isinstance(value, list) for value in values):
            longest = max(len(value) for value in values)
            padded = [[*value, *["nothing"] * (longest - len(value))] for value in values]
            first = next(i for i in range(longest) if any(value[i] != padded[0][i] for value in padded))
            values, what = [value[first] for value in padded], f"{key}, number {first + 1}"
        having: dict[str, list[int]] = {}
        for rank, value in zip(ranks or range(len(values)), values, strict=True):
            having.setdefault(str(value), []).append(rank)
        listed = "; ".join(
            f"rank{'s' if len(who) > 1 else ''} {', '.join(map(str, who))}: {value}" for value, who in having.items()
        )
        raise WorkersDisagree(f"the workers disagree on {what}: {listed}")
