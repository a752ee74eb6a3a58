"""PyTorch's side of a reducer: hooks in, `p.grad` out."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hvd_compress.compressors import AllReduce, Compressor
from hvd_compress.ops.layout import Layout
from hvd_compress.ops.torch import TorchOps
from hvd_compress.reduction.buckets import Gradient
from hvd_compress.reduction.exchange import Exchange, advance_until
from hvd_compress.reduction.reducer import Reducer
from hvd_compress.reduction.rows import Rows
from hvd_compress.reduction.settings import Settings
from hvd_compress.torch.saved import read, written
from hvd_compress.torch.sparse import as_rows, as_tensor
from hvd_compress.transports import Transport

SENT_AS = {torch.float16: "float16", torch.float64: "float64"}  # others as float32: Horovod sums no bfloat16


class TensorExchange(Exchange):
    """An exchange on a device, with the buffer that a bucket's gradients are collected in."""

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
    ) -> None:
        self.device = torch.device(device)
        super().__init__(compressor, layout, TorchOps(self.device), transport, name=name, seed=seed)
        self.vector: Tensor | None = None
        self.dtype = dtype
        self.missing = len(layout.parameters)

    def buffer(self) -> Tensor:
        """Return the vector to collect gradients in."""
        if self.vector is None:
            self.vector = torch.zeros(self.layout.size, dtype=getattr(torch, self.dtype), device=self.device)
        return self.vector

    def commit(self) -> Any:
        """As of any exchange; a buffer that has become part of the state is replaced by what was there before."""
        before = self.state.local.kept
        mean = super().commit()
        if self.vector is not None:
            self.vector = self.state.local.vacated(self.vector, before, Tensor.data_ptr)
        return mean


class TensorReducer(Reducer[TensorExchange]):
    """What is common to PyTorch's reducers.

    Args:
        parameters: (name, parameter) of all that require gradients, in the model's order.
        settings: what the user said.
        transport: who carries the collectives.
        prefix: begins the names of all collectives.
    """

    ops = TorchOps()

    def __init__(
        self, parameters: Sequence[tuple[str, Tensor]], settings: Settings, transport: Transport, prefix: str
    ) -> None:
        super().__init__(settings, transport, prefix)
        self.parameters = dict(parameters)
        self.sparse_dims: dict[str, int] = {}
        self.waiting_seconds = 0.0  # beside what the exchanges count

    def new_exchange(
        self, compressor: Compressor, layout: Layout, *, name: str, dtype: str, device: str, rows: bool
    ) -> TensorExchange:
        seed = self.settings.seed
        return TensorExchange(compressor, layout, self.transport, name=name, seed=seed, dtype=dtype, device=device)

    def imported(self, array: Tensor, exchange: TensorExchange) -> Tensor:
        return array.to(exchange.device)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tuple(p.shape) for name, p in self.parameters.items()}

    @property
    def gradients(self) -> list[Gradient]:
        """What the plan must know of the parameters."""
        return [
            Gradient(
                name,
                tuple(p.shape),
                SENT_AS.get(p.dtype, "float32"),
                str(p.device),
                self.settings.groups.get(name),
            )
            for name, p in self.parameters.items()
        ]

    @property
    def dtypes(self) -> list[str]:
        """The parameters' own dtypes, for the agreement."""
        return [f"{name} {p.dtype}" for name, p in self.parameters.items()]

    def change(self, settings: Settings) -> None:
        self.waiting_seconds += sum(exchange.waiting_seconds for exchange in self.all)
        super().change(settings)

    @property
    def communication_seconds(self) -> float:
        return self.waiting_seconds + sum(exchange.waiting_seconds for exchange in self.all)

    def fail(self, error: Exception) -> None:
        """Tell the other workers that this one cannot go on, and drop the step under way."""
        self.transport.fail(error, [exchange.next_name for exchange in self.all if not exchange.finished])
        for exchange in self.all:
            exchange.abandon()


class GradientReducer(TensorReducer):
    """Averages gradients while the backward pass goes on.

    The first `synchronize` plans the buckets: by then it is known which gradients are sparse. From the second backward
    pass on, a bucket is launched as soon as its last gradient is there, and communication overlaps with the rest of the
    pass. After `change` all this is done anew.
    """

    def __init__(
        self, parameters: Sequence[tuple[str, Tensor]], settings: Settings, transport: Transport, prefix: str
    ) -> None:
        super().__init__(parameters, settings, transport, prefix)
        self.scale_before, self.scale_after = settings.scales(transport.workers)
        self._exchange_of: dict[Tensor, TensorExchange] = {}
        self._left: dict[Tensor, int] = {}  # passes that are still to come in this step
        self._arrived: set[Tensor] = set()
        self.busy = False  # whether gradients were computed that are not yet synchronized
        self._reset()
        # Weakly: once the optimizer is gone, another may take over its parameters.
        ready = weakref.WeakMethod(self._gradient_ready)
        for p in self.parameters.values():
            p.register_post_accumulate_grad_hook(lambda p: method(p) if (method := ready()) else None)

    # --- during the backward pass

    def set_passes(self, passes: int) -> None:
        """Change the number of backward passes to a step."""
        self.settings = replace(self.settings, backward_passes_per_step=passes)
        self._left = dict.fromkeys(self.parameters.values(), passes)

    def change(self, settings: Settings) -> None:
        """As of any reducer.

        Raises:
            RuntimeError: if gradients were computed that are not yet synchronized.
        """
        if self.busy:
            raise RuntimeError(
                "set_compression() was called after loss.backward() but before optimizer.step() or "
                "optimizer.synchronize(): call it between steps"
            )
        super().change(settings)
        self._exchange_of = {}

    def _gradient_ready(self, parameter: Tensor) -> None:
        try:
            if self._left[parameter] <= 0:
                raise AssertionError(
                    "Gradients were computed more than backward_passes_per_step times before call to step(). "
                    "Increase backward_passes_per_step to accumulate gradients locally."
                )
            self._left[parameter] -= 1
            self.busy = True
            exchange = self._exchange_of.get(parameter)
            if self._left[parameter] or exchange is None:
                return  # more passes to come; or no plan yet, or sparse: `synchronize` sends it
            self._collect(exchange, parameter)
            if self.transport.ordered:
                self._launch_in_order()
            elif exchange.missing == 0:
                self._launch(exchange)
                for other in self.exchanges:
                    if other.ready():
                        other.advance()
        except Exception as error:
            self.fail(error)
            raise

    def _collect(self, exchange: TensorExchange, parameter: Tensor) -> None:
        """Copy a gradient to its place in the bucket."""
        place = self._places[parameter]
        self._arrived.add(parameter)
        exchange.missing -= 1
        target = exchange.buffer()[place.slice].view(place.shape)
        gradient = parameter.grad
        if gradient is None:
            target.zero_()
            return
        if gradient.is_sparse:
            if not self.settings.sparse_as_dense:
                raise ValueError(
                    f"the gradient of {place.name} is sparse, and in the first step it was dense on every worker; "
                    "pass sparse_as_dense=True"
                )
            gradient = gradient.to_dense()
        target.copy_(gradient)

    def _launch_in_order(self) -> None:
        """Launch the complete buckets before which all are launched: every worker starts collectives in this order."""
        for exchange in self.exchanges:
            if exchange.missing:
                break
            if not exchange.launched:
                self._launch(exchange)

    def _launch(self, exchange: TensorExchange) -> None:
        vector = exchange.buffer() if self.scale_before == 1 else exchange.buffer() * self.scale_before
        exchange.launch(self.with_carried(exchange, vector), overwrite=True)

    # --- at the end of it

    def synchronize(self) -> None:
        """Wait for all gradients and put their means into the parameters' ``grad``.

        Raises:
            WorkersDisagree: in the first step, if the workers differ in version, settings or model.
            WorkerFailed: if another worker failed; its own error is in the message.
        """
        try:
            if not self.planned:
                self._make_plan()
            for exchange in self.exchanges:
                if not exchange.launched:
                    for place in exchange.layout.parameters:
                        if self.parameters[place.name] not in self._arrived:
                            self._collect(exchange, self.parameters[place.name])
                    self._launch(exchange)
            for name, exchange in self.rows.items():  # after all buckets, of which hooks have launched some
                exchange.launch(self.with_carried(exchange, self._rows(name)))
            self.waiting_seconds += advance_until(lambda: all(e.finished for e in self.all), self.all)
        except Exception as error:
            self.fail(error)
            raise
        self._give(dict(zip(self.all, self.finish(), strict=True)))
        self._reset()

    def _rows(self, name: str) -> Rows:
        parameter = self.parameters[name]
        rows = as_rows(parameter.grad, parameter, self.sparse_dims[name])
        return rows if self.scale_before == 1 else replace(rows, values=rows.values * self.scale_before)

    def _give(self, means: Mapping[TensorExchange, Any]) -> None:
        """Put the means into the parameters' ``grad``."""
        for exchange in self.exchanges:
            mean = means[exchange] if self.scale_after == 1 else means[exchange] * self.scale_after
            for place in exchange.layout.parameters:
                self._give_one(self.parameters[place.name], place.name, mean[place.slice].view(place.shape))
        for name, exchange in self.rows.items():
            rows, parameter = means[exchange], self.parameters[name]
            values = rows.values if self.scale_after == 1 else rows.values * self.scale_after
            parameter.grad = as_tensor(rows.indices, values, parameter.shape, self.sparse_dims[name])

    def _give_one(self, parameter: Tensor, name: str, mean: Tensor) -> None:
        mean = mean.to(parameter.dtype)
        if name in self.sparse_dims:
            parameter.grad = mean.to_sparse(self.sparse_dims[name])
        elif parameter.grad is None:
            parameter.grad = mean
        else:
            parameter.grad.set_(mean)  # type: ignore[call-overload]  # undeclared, and what Horovod does

    def _reset(self) -> None:
        self._arrived.clear()
        self.busy = False
        self._left = dict.fromkeys(self.parameters.values(), self.settings.backward_passes_per_step)
        for exchange in self.exchanges:
            exchange.missing = len(exchange.layout.parameters)

    def mean_loss(self, loss: Any) -> Any:
        """Return the mean of a closure's losses; what is no tensor is returned as it is."""
        if not isinstance(loss, Tensor):
            return loss
        handle = self.transport.start(AllReduce(loss.detach()), f"{self.prefix}.loss")
        mean: Tensor = self.transport.wait(handle)
        return mean.view(loss.shape)

    def fail(self, error: Exception) -> None:
        super().fail(error)
        self._reset()

    # --- before the first exchange

    def _make_plan(self) -> None:
        for name, p in self.parameters.items():
            if p.grad is not None and p.grad.is_sparse:
                self.sparse_dims[name] = p.grad.sparse_dim()
        self.sparse_dims |= self.agree(self.gradients, {"dtypes": self.dtypes}, self.sparse_dims)
        try:
            self.plan(self.gradients, () if self.settings.sparse_as_dense else self.sparse_dims)
        finally:  # also when a state that was loaded does not fit: all go on without it
            self._find_places()

    def _find_places(self) -> None:
        self._exchange_of = {
            self.parameters[place.name]: exchange for exchange in self.exchanges for place in exchange.layout.parameters
        }
        self._places = {self.parameters[p.name]: p for exchange in self.exchanges for p in exchange.layout.parameters}

    # --- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return the compressors' state: tensors, numbers and names only."""
        return written(self.saved(), self.shapes, self.sparse_dims)

    def load_state_dict(self, saved: dict[str, Any] | None) -> None:
        """Take over a saved state (None: begin anew) and drop what is under way.

        Raises:
            ValueError: if it belongs to another compression or other rules.
        """
        state, sparse_dims = read(saved, self.settings, self.transport.rank)
        self.sparse_dims |= sparse_dims
        self._reset()
        self.load(state, stacklevel=5)
