"""What a compressor's buckets cost on this machine: encoding, bytes and decoding, measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from hvd_compress.advice.model import BucketCosts, Round
from hvd_compress.ops import Array, Ops
from hvd_compress.reduction.buckets import Bucket
from hvd_compress.reduction.exchange import VectorSteps
from hvd_compress.reduction.step import echo

REPETITIONS, SECONDS = 5, 0.5  # at most, of one bucket
DISTRIBUTION = 3.0  # degrees of freedom of Student's t: gradients have heavier tails than normal numbers


def bucket_costs(
    buckets: Sequence[Bucket],
    ops: Ops,
    workers: int,
    seconds: float = SECONDS,
    settle: Callable[[], None] = lambda: None,
) -> list[BucketCosts]:
    """Measure a step of each bucket, with payloads of `workers` workers to decode; the least of some repetitions.

    Args:
        buckets: of one plan.
        ops: the array operations.
        workers: their number.
        seconds: after which a bucket is not repeated.
        settle: waits until the device has done what it was told.
    """
    return [_costs(bucket, ops, workers, seconds, settle) for bucket in buckets]


def _costs(bucket: Bucket, ops: Ops, workers: int, seconds: float, settle: Callable[[], None]) -> BucketCosts:
    random = np.random.default_rng(0)
    gradient = ops.from_numpy(random.standard_t(DISTRIBUTION, bucket.layout.size).astype(np.float32) * np.float32(1e-3))
    peers: Any = SimpleNamespace(rank=0, workers=workers)  # all that the steps of one vector ask of them
    steps = VectorSteps(bucket.compressor, bucket.layout, ops, peers, name=bucket.name)
    best: BucketCosts | None = None
    began = time.perf_counter()
    for repetition in range(REPETITIONS + 1):  # the first is a warm-up, without a residual
        found = _step(steps, gradient, workers, settle)
        if best is None or repetition == 1:
            best = found
        else:
            rounds = zip(best.rounds, found.rounds, strict=True)
            after = tuple(Round(a.kind, a.bytes, min(a.after, b.after)) for a, b in rounds)
            best = BucketCosts(bucket.layout.size, min(best.encode, found.encode), after)
        if repetition and time.perf_counter() - began > seconds:
            break
    assert best is not None
    return best


def _step(steps: VectorSteps, gradient: Array, workers: int, settle: Callable[[], None]) -> BucketCosts:
    settle()
    began = time.perf_counter()
    steps.launch(steps.ops.copy(gradient), overwrite=True)  # a copy, as into the bucket
    settle()
    encode = time.perf_counter() - began
    rounds = []
    while (pending := steps.pending) is not None:
        size = pending.nbytes
        combined = echo(pending, workers)
        settle()
        began = time.perf_counter()
        steps.feed(combined)
        settle()
        rounds.append(Round(pending.kind, size, time.perf_counter() - began))
    steps.commit()
    return BucketCosts(steps.layout.size, encode, tuple(rounds))
