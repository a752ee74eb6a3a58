"""The gradients of simulated workers, exchanged as real ranks would; bytes are counted as on a real transport."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hvd_compress import Simulation
from hvd_compress.compressors import Compressor
from hvd_compress.ops.torch import TorchOps
from hvd_compress.reduction.buckets import Gradient, Rule, make_plan
from hvd_compress.reduction.settings import BUCKET_BYTES, DENSE_BELOW


class Workers:
    """Exchanges the gradients of all workers, in the buckets that `DistributedOptimizer` would use.

    Args:
        parameters: of the model, by name.
        compressor: what to exchange their gradients with.
        workers: their number.
        seed: of the compressor's random numbers.
        rules: for parameters that are exchanged otherwise.
        bucket_bytes, dense_below: see `make_plan`.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        compressor: Compressor,
        workers: int,
        *,
        seed: int,
        rules: Sequence[Rule] = (),
        bucket_bytes: int = BUCKET_BYTES,
        dense_below: int = DENSE_BELOW,
    ) -> None:
        gradients = [Gradient(name, tuple(p.shape), "float32") for name, p in parameters.items()]
        self.parameters, self.number, self.own = parameters, workers, range(workers)
        self.buckets = make_plan(gradients, compressor, rules, bucket_bytes=bucket_bytes, dense_below=dense_below)
        self.simulations = [
            Simulation(bucket.compressor, bucket.layout, workers, ops=TorchOps(), seed=seed) for bucket in self.buckets
        ]
        self.gradients: list[list[Tensor]] = [[] for _ in self.buckets]

    def collect(self) -> None:
        """Take one worker's gradients from the parameters."""
        for bucket, own in zip(self.buckets, self.gradients, strict=True):
            parts = [self.parameters[p.name].grad.reshape(-1) for p in bucket.layout.parameters]  # type: ignore[union-attr]
            own.append(torch.cat(parts))
        for parameter in self.parameters.values():
            parameter.grad = None

    def reduce(self) -> None:
        """Exchange the collected gradients, and set the parameters' gradients to the mean."""
        for number, (bucket, own) in enumerate(zip(self.buckets, self.gradients, strict=True)):
            mean = self.exchange(number, own)
            own.clear()
            for p in bucket.layout.parameters:
                self.parameters[p.name].grad = mean[p.slice].view(p.shape).clone()

    def exchange(self, number: int, gradients: Sequence[Tensor]) -> Tensor:
        """Return the mean of a bucket's gradients."""
        mean: Tensor = self.simulations[number].reduce(gradients)[0].mean
        return mean

    def bytes(self, way: str) -> int:
        """Return the bytes that a worker has "sent" or "received"."""
        counted = [entry for simulation in self.simulations for entry in simulation.traffic.collectives.values()]
        return sum(entry[way] for entry in counted)
