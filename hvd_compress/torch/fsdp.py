"""Compressed means between the replicas of a model that FSDP2 shards (hybrid sharding).

from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from hvd_compress.torch import fsdp

mesh = init_device_mesh("cuda", (replicas, shards), mesh_dim_names=("replicate", "shard"))
fully_shard(model, mesh=mesh["shard"])
compression = fsdp.register(model, "topk(ratio=0.01)", mesh["replicate"].get_group())
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from hvd_compress.compressors import Compressor, spec
from hvd_compress.compressors.named import as_compressor
from hvd_compress.ops.layout import Layout
from hvd_compress.ops.torch import TorchOps
from hvd_compress.reduction.buckets import PLAIN
from hvd_compress.reduction.carry import left_over, norm
from hvd_compress.reduction.exchange import Exchange
from hvd_compress.reduction.phases import COPY
from hvd_compress.reduction.stats import bucket_stats, stats_of
from hvd_compress.torch.compression import TorchCompression
from hvd_compress.torch.phases import recorder
from hvd_compress.transports.torch_distributed import ProcessGroupTransport

__all__ = ["ReplicaCompression", "register"]

SIZE = 1 << 20  # coordinates of a vector that shows whether a method compresses it


class ReplicaCompression:
    """The compression between replicas, as `register` returns it: an exchange for each sharded module.

    Args:
        compressor: of all exchanges.
        transport: between the replicas of this rank's shards.
        seed: of the compressor's random numbers.
        modules: their names.
    """

    def __init__(
        self, compressor: Compressor, transport: ProcessGroupTransport, seed: int, modules: Collection[str]
    ) -> None:
        self.modules = set(modules)
        self.compressor, self.transport, self.seed = compressor, transport, seed
        self.exchanges: dict[str, Exchange] = {}
        self.nonfinite = 0  # means of modules
        self.phases = recorder()
        self.phases.line = "fsdp: step"
        self.phases.due = 1  # FSDP hands a shard over, and waits, in the backward pass
        self._saved: dict[str, Any] = {}

    def average(self, name: str, shard: Tensor) -> None:
        """Put the mean over the replicas in the place of this rank's shard of a module's gradients.

        Args:
            name: of the module.
            shard: flat, as FSDP hands it over after its reduce-scatter.
        """
        exchange = self.exchanges.get(name)
        if exchange is None:
            layout, ops = Layout.of([(name, (shard.numel(),))]), TorchOps(shard.device)
            own: dict[str, Any] = {"name": f"fsdp.{name}", "seed": self.seed, "phases": self.phases}
            exchange = Exchange(self.compressor, layout, ops, self.transport, **own)
            self.exchanges[name] = exchange
            if name in self._saved:
                exchange.state.load_state_dict(self._saved.pop(name))
        steps = exchange.state.step
        with self.phases.of(COPY):
            shard.copy_(exchange.reduce(shard.reshape(-1)).view(shard.shape))
        self.nonfinite += exchange.state.step == steps  # then the state stays as it was

    def compression_stats(self, phases: bool = False, per_bucket: bool = False) -> dict[str, Any]:
        """Return what this rank sent to other replicas, as ``DistributedOptimizer.compression_stats``.

        ``nonfinite_steps`` counts the modules' means that were not finite, each by itself.
        """
        exchanges = list(self.exchanges.values())
        residuals = {name: part for name, e in self.exchanges.items() for _, part in left_over(e)}
        return stats_of(
            self.transport.traffic,
            steps=max((exchange.state.step for exchange in exchanges), default=0),
            coordinates=sum(exchange.layout.size for exchange in exchanges),
            seconds=self.phases,
            phases=phases,
            residual=norm(TorchOps(), residuals),
            nonfinite_steps=self.nonfinite,
            workers_lost=0,
            buckets=[bucket_stats(exchange) for exchange in exchanges] if per_bucket else None,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all exchanges, by module: tensors, numbers and names only; each rank has its own."""
        return {name: exchange.state.state_dict() for name, exchange in self.exchanges.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, before the first backward pass.

        Raises:
            RuntimeError: if it comes later.
            ValueError: if the state is of other modules.
        """
        if self.exchanges:
            raise RuntimeError("load_state_dict() must be called before the first backward pass")
        if not self.modules >= state_dict.keys():
            raise ValueError(
                f"the state has modules that are not sharded here: {sorted(state_dict.keys() - self.modules)}"
            )
        self._saved = dict(state_dict)


def register(
    model: nn.Module, compression: TorchCompression | str, replicas: dist.ProcessGroup, *, seed: int = 0
) -> ReplicaCompression:
    """Let the replicas of an FSDP2 model average their shards of the gradients compressed.

    FSDP averages over the shards as ever, and then calls this in the place of an AllReduce between replicas. A
    module's gradients come as one flat vector: methods that need matrices, or the whole model's gradient, cannot be
    used. An error on one rank ends the others when their process group's timeout is over, or when its process ends.

    Args:
        model: one that ``fully_shard`` was given, with the mesh of the shards alone.
        compression: ``hvd_compress.torch.Compression.topk(ratio=0.01)``, or a spec such as ``"topk(ratio=0.01)"``.
        replicas: the processes that have the same shards as this one.
        seed: of the compressor's random numbers, the same on all processes.

    Returns:
        what knows the statistics and the state.

    Raises:
        TypeError: if nothing of the model is sharded.
        ValueError: if the method cannot be used here.
    """
    modules = {name: module for name, module in model.named_modules() if isinstance(module, FSDPModule)}
    if not modules:
        raise TypeError("no module of the model is sharded: call torch.distributed.fsdp.fully_shard() first")
    compressor = as_compressor(compression)
    flat = Layout.of([("shard", (SIZE,))])
    saves = compressor.varying or compressor.payload_bits(flat) < 32 * SIZE
    if compressor.whole_gradient or not (saves or compressor == PLAIN):
        raise ValueError(
            f"{spec(compressor)} cannot be used with FSDP, which hands over each module's gradients as one flat "
            "vector: use a method of single coordinates, such as topk, randomk or qsgd"
        )
    found = ReplicaCompression(compressor, ProcessGroupTransport(replicas), seed, modules)
    if found.transport.workers > 1:
        for name, module in modules.items():
            module.set_all_reduce_hook(partial(found.average, name))
    return found
