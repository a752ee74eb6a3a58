"""What a worker has sent, and how long it took."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hvd_compress.compressors import spec
from hvd_compress.reduction.carry import left_over, norm
from hvd_compress.reduction.exchange import VectorSteps
from hvd_compress.reduction.phases import Phases
from hvd_compress.transports import Traffic

Stats = dict[str, Any]
"""Keys: ``steps``; ``bytes_sent`` and ``bytes_received`` (the buffers handed to and got from the collectives);
``dense_bytes`` (what fp32 gradients would have been); ``ratio`` (dense_bytes / bytes_sent); ``compression_seconds``
(in compressors); ``communication_seconds`` (in waiting for collectives); ``residual_norm`` (Euclidean, of all
residuals); ``nonfinite_steps`` (whose means were not finite); ``workers_lost`` (those who left an elastic job while
this one was in it: what they had not sent is lost); ``collectives`` (calls and bytes of each kind: "agreement" is the
comparison of settings and states, "roll_call" what workers tell each other of their step, "measurement" what the choice
of a method for ``compression="auto"`` took).

With ``phases=True`` also ``phases``: where the ``seconds`` go from the first gradient to the end of the last step. Each
moment is in one phase, so that they add up: ``seconds`` is the sum of ``computing`` (forward and backward pass, and
all else that the script does, less what follows), ``optimizer`` (in the ``step`` of PyTorch's optimizers; None where
that is not seen, and then it is in ``computing``), and the ``exposed`` seconds of these:

``copy``: gradients into the buckets, and means back. ``encode``: the compressor, until its first collective. ``start``:
handing collectives to the transport; MPI's, in this time, lets the workers agree on lengths. ``wire``: waiting for
collectives under way and, of a single worker's, for those who come late. ``decode``: the compressor, after a
collective: in a method of several rounds that encodes the next one as well. ``other``: agreements, plans, and ends of
steps.

``in_backward`` is the part of ``exposed`` before the step's last gradient was there: in a hook, which the backward pass
waits for. ``wire["hidden"]`` are seconds in addition: collectives were under way and this worker did not wait.

With ``per_bucket=True`` also ``buckets``, for each vector that is exchanged by itself, in the order in which they are
launched: ``name``; ``compression``, a spec; ``parameters``, their names; ``coordinates``; ``bytes_sent`` (its payloads,
since the plan was made); ``residual_norm`` (of what its compressor has not sent)."""


def stats_of(
    traffic: Traffic,
    *,
    steps: int,
    coordinates: int,
    seconds: Phases,
    residual: float,
    nonfinite_steps: int,
    workers_lost: int,
    phases: bool = False,
    buckets: Sequence[Mapping[str, Any]] | None = None,
) -> Stats:
    """Return the statistics of a worker.

    Args:
        traffic: what it has sent.
        steps: that were taken.
        coordinates: of all gradients of a step.
        seconds: where they went.
        residual: norm of all that is left over.
        nonfinite_steps: in how many of them the means were not finite.
        workers_lost: how many have gone.
        phases: whether to tell where the time goes in each phase.
        buckets: of each bucket, if that is asked for.
    """
    dense, sent = 4 * coordinates * steps, traffic.sent
    return {
        "steps": steps,
        "bytes_sent": sent,
        "bytes_received": traffic.received,
        "dense_bytes": dense,
        "ratio": dense / sent if sent else 1.0,
        "compression_seconds": seconds.compression_seconds,
        "communication_seconds": seconds.communication_seconds,
        "residual_norm": residual,
        "nonfinite_steps": nonfinite_steps,
        "workers_lost": workers_lost,
        "collectives": {kind: dict(entry) for kind, entry in traffic.collectives.items()},
        **({"phases": seconds.report()} if phases else {}),
        **({} if buckets is None else {"buckets": list(buckets)}),
    }


def bucket_stats(exchange: VectorSteps, label: Callable[[str], str] = str) -> dict[str, Any]:
    """Return the statistics of one bucket; `label` returns what users call a parameter of the layout."""
    return {
        "name": exchange.name,
        "compression": spec(exchange.compressor),
        "parameters": [label(name) for name in exchange.layout.names],
        "coordinates": exchange.layout.size,
        "bytes_sent": exchange.sent,
        "residual_norm": norm(exchange.ops, dict(left_over(exchange))),
    }


def nothing_sent(phases: bool = False, per_bucket: bool = False) -> Stats:
    """Return the statistics of a worker that is alone, and sends nothing."""
    return stats_of(
        Traffic(),
        steps=0,
        coordinates=0,
        seconds=Phases(),
        residual=0.0,
        nonfinite_steps=0,
        workers_lost=0,
        phases=phases,
        buckets=[] if per_bucket else None,
    )


def added(one: Mapping[str, Any], other: Mapping[str, Any]) -> Stats:
    """Return the statistics of two reducers of the same gradients, of which each reduces some of the steps."""
    total: Stats = _sum(one, other)
    total["workers_lost"] = max(one["workers_lost"], other["workers_lost"])
    total["ratio"] = total["dense_bytes"] / total["bytes_sent"] if total["bytes_sent"] else 1.0
    return total


def _sum(one: Any, other: Any) -> Any:
    """Return the sum of two numbers, or of what two mappings have under each key; None is nothing."""
    if one is None or other is None:
        return one if other is None else other
    if isinstance(one, Mapping):
        return {key: _sum(one.get(key), other.get(key)) for key in {**one, **other}}
    return one + other  # of two lists of buckets all
