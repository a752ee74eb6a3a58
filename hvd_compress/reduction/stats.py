"""What a worker has sent, and how long it took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hvd_compress.transports import Traffic

Stats = dict[str, Any]
"""Keys: ``steps``; ``bytes_sent`` and ``bytes_received`` (the buffers handed to and got from the collectives);
``dense_bytes`` (what fp32 gradients would have been); ``ratio`` (dense_bytes / bytes_sent); ``compression_seconds``
(in compressors); ``communication_seconds`` (in waiting for collectives); ``residual_norm`` (Euclidean, of all
residuals); ``nonfinite_steps`` (whose means were not finite); ``workers_lost`` (those who left an elastic job while
this one was in it: what they had not sent is lost); ``collectives`` (calls and bytes of each kind: "agreement" is the
comparison of settings and states, "roll_call" what workers tell each other of their step)."""


def stats_of(
    traffic: Traffic,
    *,
    steps: int,
    coordinates: int,
    compression: float,
    communication: float,
    residual: float,
    nonfinite_steps: int,
    workers_lost: int,
) -> Stats:
    """Return the statistics of a worker.

    Args:
        traffic: what it has sent.
        steps: that were taken.
        coordinates: of all gradients of a step.
        compression: seconds in compressors.
        communication: seconds in waiting for collectives.
        residual: norm of all that is left over.
        nonfinite_steps: in how many of them the means were not finite.
        workers_lost: how many have gone.
    """
    dense, sent = 4 * coordinates * steps, traffic.sent
    return {
        "steps": steps,
        "bytes_sent": sent,
        "bytes_received": traffic.received,
        "dense_bytes": dense,
        "ratio": dense / sent if sent else 1.0,
        "compression_seconds": compression,
        "communication_seconds": communication,
        "residual_norm": residual,
        "nonfinite_steps": nonfinite_steps,
        "workers_lost": workers_lost,
        "collectives": {kind: dict(entry) for kind, entry in traffic.collectives.items()},
    }


def nothing_sent() -> Stats:
    """Return the statistics of a worker that is alone, and sends nothing."""
    zero = {"compression": 0.0, "communication": 0.0, "residual": 0.0}
    return stats_of(Traffic(), steps=0, coordinates=0, nonfinite_steps=0, workers_lost=0, **zero)


def added(one: Mapping[str, Any], other: Mapping[str, Any]) -> Stats:
    """Return the statistics of two reducers of the same gradients, of which each reduces some of the steps."""
    total = {name: value + other[name] for name, value in one.items() if name != "collectives"}
    total["workers_lost"] = max(one["workers_lost"], other["workers_lost"])
    total["ratio"] = total["dense_bytes"] / total["bytes_sent"] if total["bytes_sent"] else 1.0
    collectives: dict[str, dict[str, int]] = {}
    for stats in (one, other):
        for kind, entry in stats["collectives"].items():
            before = collectives.get(kind, {})
            collectives[kind] = {key: count + before.get(key, 0) for key, count in entry.items()}
    return {**total, "collectives": collectives}
