"""The exchange of a bucket's gradients: the buffer that they are collected in, and on a GPU the stream."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hvd_compress.compressors import Compressor
from hvd_compress.ops.layout import Layout
from hvd_compress.ops.torch import TorchOps
from hvd_compress.reduction.exchange import Exchange
from hvd_compress.reduction.phases import Phases
from hvd_compress.reduction.rows import Rows
from hvd_compress.transports import Transport


@functools.cache
def _stream_beside(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of a device in which all its exchanges compress."""
    return torch.cuda.Stream(device)


class TensorExchange(Exchange):
    """An exchange on a device, with the buffer that a bucket's gradients are collected in.

    On a GPU, compression runs in a stream of its own, beside the backward pass; who takes the mean waits for it.
    """

    def __init__(
        self,
        compressor: Compressor,
        layout: Layout,
        transport: Transport,
        *,
        name: str,
        seed: int,
        dtype: str,
        device: Any,
        phases: Phases,
    ) -> None:
        self.device = torch.device(device)
        super().__init__(compressor, layout, TorchOps(self.device), transport, name=name, seed=seed, phases=phases)
        self.vector: Tensor | None = None
        self.dtype = dtype
        self.missing = len(layout.parameters)
        self._shapes = [(parameter.size, parameter.shape) for parameter in layout.parameters]
        self._parts: tuple[Tensor | None, list[Tensor]] = None, []  # of which buffer
        self._stream = _stream_beside(self.device) if self.device.type == "cuda" else None

    def launch(self, vector: Any, *, overwrite: bool = False) -> None:
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
            for tensor in (vector.indices, vector.values) if isinstance(vector, Rows) else (vector,):
                tensor.record_stream(self._stream)
        with self._beside():
            super().launch(vector, overwrite=overwrite)

    def advance(self) -> None:
        with self._beside():
            super().advance()

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """Work in the stream of compression; once the mean is there, let the current stream wait for it."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield
        if self.finished:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def buffer(self) -> Tensor:
        """Return the vector to collect gradients in."""
        if self.vector is None:
            self.vector = self.ops.cast(self.ops.zeros(self.layout.size), self.dtype)
        return self.vector

    def parts(self) -> list[Tensor]:
        """Return the gradients' places in the buffer."""
        vector = self.buffer()
        if self._parts[0] is not vector:
            self._parts = vector, self.cut(vector)
        return self._parts[1]

    def cut(self, vector: Tensor) -> list[Tensor]:
        """Return the parts of a vector, one a parameter and of its shape; they share its memory."""
        pieces = vector.split([size for size, _ in self._shapes])
        return [piece.view(shape) for piece, (_, shape) in zip(pieces, self._shapes, strict=True)]

    def commit(self) -> Any:
        """As of any exchange; a buffer that has become part of the state is replaced by what was there before."""
        before = self.state.local.kept
        mean = super().commit()
        if self.vector is not None:
            self.vector = self.state.local.vacated(self.vector, before, Tensor.data_ptr)
        return mean
