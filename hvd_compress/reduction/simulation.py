"""W workers in one process, in lock step: for tests, studies, and counting bytes at any scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hvd_compress.compressors.base import AllGather, AllReduce, Collective, Compressor, Reduced
from hvd_compress.compressors.state import State
from hvd_compress.ops import Array, Ops, dtype_name
from hvd_compress.ops.layout import Layout
from hvd_compress.ops.numpy import NumpyOps
from hvd_compress.reduction.exchange import check_vector, taken_dtype
from hvd_compress.reduction.step import Step
from hvd_compress.transports import LENGTH_BYTES, Traffic


class Simulation:
    """The same compressor on W simulated workers.

    Attributes:
        states: each worker's state.
        traffic: the bytes of worker 0 (all workers' are equal unless payloads vary in length).
        payloads: what each worker handed over in the last step, a list of arrays for each collective.
    """

    def __init__(
        self,
        compressor: Compressor,
        layout: Layout | int,
        workers: int,
        *,
        ops: Ops | None = None,
        seed: int = 0,
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1; got {workers}")
        self.compressor = compressor
        self.layout = layout if isinstance(layout, Layout) else Layout.flat(layout)
        self.ops: Ops = NumpyOps() if ops is None else ops
        self.states = [State(self.layout, rank=rank, workers=workers, seed=seed) for rank in range(workers)]
        self.traffic = Traffic()
        self.payloads: list[list[Array]] = []

    def reduce(self, vectors: Sequence[Array]) -> list[Reduced]:
        """Do one step with one vector a worker; return what each worker ends up with, the mean in its vector's dtype.

        Raises:
            ValueError: if the vectors do not fit the layout, or the workers yield different collectives.
            TypeError: if a vector is not of a real floating dtype.
        """
        if len(vectors) != len(self.states):
            raise ValueError(f"{len(self.states)} vectors are expected, one a worker; got {len(vectors)}")
        for rank, vector in enumerate(vectors):
            check_vector(f"worker {rank}", vector, self.layout)
        self.payloads, ops = [], self.ops
        dtypes = [dtype_name(vector) for vector in vectors]
        vectors = [ops.cast(vector, taken_dtype(self.compressor, vector)) for vector in vectors]
        if self.compressor.overwrites:
            vectors = [ops.copy(vector) for vector in vectors]
        steps = [
            Step(self.compressor, ops, vector if self.compressor.spreads else ops.poison(vector)[0], state)
            for vector, state in zip(vectors, self.states, strict=True)
        ]
        while any(step.pending for step in steps):
            pending = [step.pending for step in steps if step.pending is not None]
            if len(pending) < len(steps):
                raise ValueError("some workers are done while others yield another collective")
            combined = self._combine(pending)
            for step in steps:
                step.feed(combined)
        results = [step.result for step in steps if step.result is not None]
        finite = ops.all_finite(results[0].mean)
        for state in self.states:
            state.commit() if finite else state.rollback()
        return [replace(r, mean=ops.cast(r.mean, dtype)) for r, dtype in zip(results, dtypes, strict=True)]

    def _combine(self, collectives: list[Collective]) -> Array | list[Array]:
        first = collectives[0]
        if isinstance(first, AllReduce):
            arrays = [c.array for c in collectives if isinstance(c, AllReduce) and c.op == first.op]
            if len({(tuple(array.shape), str(array.dtype)) for array in arrays}) != 1:
                raise ValueError("the workers reduce arrays of different shapes or dtypes")
        else:
            arrays = [c.payload for c in collectives if isinstance(c, AllGather) and c.varying == first.varying]
            if not first.varying and len({array.shape[0] for array in arrays}) != 1:
                raise ValueError("the workers gather payloads of different lengths that were said to be equal")
        if len(arrays) != len(collectives):
            raise ValueError("the workers yield different collectives")
        self.payloads.append(arrays)
        if isinstance(first, AllReduce):
            self._count(first, arrays[:1], 0)
            return self._reduce(arrays, first.op)
        self._count(first, arrays, LENGTH_BYTES if first.varying else 0)
        return arrays

    def _reduce(self, arrays: list[Array], op: str) -> Array:
        stacked = np.stack([self.ops.to_numpy(array) for array in arrays])
        if op == "max":
            return self.ops.from_numpy(stacked.max(axis=0))
        total = stacked.sum(axis=0, dtype=stacked.dtype)
        return self.ops.from_numpy(total if op == "sum" else (total / len(arrays)).astype(stacked.dtype))

    def _count(self, collective: Collective, arrays: list[Array], header: int) -> None:
        sizes = [self.ops.to_bytes(array).shape[0] + header for array in arrays]
        if isinstance(collective, AllReduce):
            self.traffic.count("allreduce", sizes[0], sizes[0])
        else:
            self.traffic.count("allgather", sizes[0], sum(sizes))
