"""Sparse gradients (of embeddings) as Horovod sends them: all rows of all workers, gathered and averaged."""

from __future__ import annotations

import torch
from torch import Tensor

from hvd_compress.compressors.base import AllGather
from hvd_compress.ops.torch import TorchOps
from hvd_compress.transports import Transport


class SparseExchange:
    """The mean of one sparse gradient; the same verbs as `hvd_compress.exchange.Exchange`.

    A payload is the coalesced indices (int64) and then the values.
    """

    compression_seconds = waiting_seconds = 0.0

    def __init__(self, name: str, parameter: Tensor, sparse_dim: int, transport: Transport) -> None:
        self.name, self.shape, self.dtype = name, parameter.shape, parameter.dtype
        self.sparse_dim, self.transport = sparse_dim, transport
        self.ops = TorchOps(parameter.device)
        self.mean: Tensor | None = None
        self._handle: object = None

    @property
    def launched(self) -> bool:
        """Whether a step is under way or finished."""
        return self._handle is not None or self.mean is not None

    @property
    def finished(self) -> bool:
        """Whether the mean is there."""
        return self.mean is not None

    @property
    def next_name(self) -> str:
        """The name under which the other workers would start the next collective."""
        return f"{self.name}.{int(self.launched)}"

    def launch(self, gradient: Tensor | None) -> None:
        """Start gathering; a gradient that this worker lacks counts as zero, a dense one is made sparse."""
        if gradient is None:
            indices = torch.zeros(self.sparse_dim, 0, dtype=torch.int64, device=self.ops.device)
            values = torch.zeros(0, dtype=self.dtype, device=self.ops.device)
        else:
            gradient = gradient if gradient.is_sparse else gradient.to_sparse(self.sparse_dim)
            gradient = gradient.coalesce()
            indices, values = gradient.indices(), gradient.values()
        payload = torch.cat([self.ops.to_bytes(part.reshape(-1)) for part in (indices, values)])
        self._handle = self.transport.start(AllGather(payload, varying=True), f"{self.name}.0")

    def ready(self) -> bool:
        """Tell whether `advance` would not have to wait."""
        return not self.finished and self.transport.done(self._handle)

    def advance(self) -> None:
        """Wait for the payloads and average them."""
        payloads = self.transport.wait(self._handle)
        dense_shape = self.shape[self.sparse_dim :]
        entry = 8 * self.sparse_dim + self.dtype.itemsize * dense_shape.numel()
        indices, values = [], []
        for payload in payloads:
            count, rest = divmod(payload.shape[0], entry)
            if rest:
                raise ValueError(f"{self.name}: {payload.shape[0]} bytes came in, no multiple of {entry}")
            cut = 8 * self.sparse_dim * count
            indices.append(self.ops.from_bytes(payload[:cut], "int64").reshape(self.sparse_dim, count))
            kind = str(self.dtype).removeprefix("torch.")
            values.append(self.ops.from_bytes(payload[cut:], kind).reshape(count, *dense_shape))
        self.mean = torch.sparse_coo_tensor(  # checked: indices from outside the shape raise
            torch.cat(indices, dim=1), torch.cat(values) / len(payloads), self.shape, check_invariants=True
        ).coalesce()
        self._handle = None

    def commit(self) -> Tensor:
        """End the step and return the mean, coalesced; there is no state to keep."""
        assert self.mean is not None
        mean, self.mean = self.mean, None
        return mean

    rollback = commit

    def abandon(self) -> None:
        """Drop the step under way."""
        self._handle = self.mean = None
