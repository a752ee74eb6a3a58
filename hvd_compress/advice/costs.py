"""What a compressor's buckets cost on this machine: encoding, bytes and decoding, measured."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from hvd_compress.advice.model import BucketCosts, Round
from hvd_compress.compressors import AllReduce
from hvd_compress.compressors.base import Collective
from hvd_compress.compressors.state import State
from hvd_compress.ops import Array, Ops
from hvd_compress.reduction.buckets import Bucket
from hvd_compress.reduction.step import Step, echo

REPETITIONS, SECONDS = 5, 0.5  # at most, of one bucket
DISTRIBUTION = 3.0  # degrees of freedom of Student's t: gradients have heavier tails than normal numbers


def bucket_costs(buckets: Sequence[Bucket], ops: Ops, workers: int) -> list[BucketCosts]:
    """Measure a step of each bucket, with payloads of `workers` workers to decode; the least of some repetitions."""
    return [_costs(bucket, ops, workers) for bucket in buckets]


def _costs(bucket: Bucket, ops: Ops, workers: int) -> BucketCosts:
    random = np.random.default_rng(0)
    gradient = ops.from_numpy(random.standard_t(DISTRIBUTION, bucket.layout.size).astype(np.float32) * np.float32(1e-3))
    state = State(bucket.layout, workers=workers)
    best: BucketCosts | None = None
    began = time.perf_counter()
    for repetition in range(REPETITIONS + 1):  # the first is a warm-up, without a residual
        found = _step(bucket, ops, gradient, state, workers)
        if best is None or repetition == 1:
            best = found
        else:
            rounds = zip(best.rounds, found.rounds, strict=True)
            after = tuple(Round(a.kind, a.bytes, min(a.after, b.after)) for a, b in rounds)
            best = BucketCosts(bucket.layout.size, min(best.encode, found.encode), after)
        if repetition and time.perf_counter() - began > SECONDS:
            break
    assert best is not None
    return best


def _step(bucket: Bucket, ops: Ops, gradient: Array, state: State, workers: int) -> BucketCosts:
    began = time.perf_counter()
    vector = ops.copy(gradient)  # into the bucket
    if bucket.compressor.stateful and not bucket.compressor.spreads:
        ops.poison(vector, True)
    step = Step(bucket.compressor, ops, vector, state)
    encode = time.perf_counter() - began
    rounds = []
    while step.pending is not None:
        pending = step.pending
        combined = echo(pending, workers)
        began = time.perf_counter()
        step.feed(combined)
        rounds.append(Round(pending.kind, _size(ops, pending), time.perf_counter() - began))
    state.commit()
    return BucketCosts(bucket.layout.size, encode, tuple(rounds))


def _size(ops: Ops, collective: Collective) -> int:
    payload: Any = collective.array if isinstance(collective, AllReduce) else collective.payload
    return int(ops.to_bytes(payload).shape[0])
