"""From the gradients of a backward pass to their compressed means: hooks, buckets, and exchanges in flight."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hvd_compress.compressors import AllReduce, Compressor, spec
from hvd_compress.ops.layout import Layout
from hvd_compress.ops.torch import TorchOps
from hvd_compress.reduction.agreement import WorkersDisagree, check_agreement, describe
from hvd_compress.reduction.buckets import Bucket, Gradient, Rule, make_plan, wanted
from hvd_compress.reduction.exchange import Exchange, advance_until
from hvd_compress.reduction.rows import Rows, sparse_rows
from hvd_compress.torch.sparse import as_rows, as_tensor
from hvd_compress.transports.horovod_torch import HorovodTransport


class _BucketExchange(Exchange):
    """The exchange of one bucket, with the buffer that its gradients are collected in."""

    def __init__(self, bucket: Bucket, parameters: dict[str, Tensor], transport: Any, prefix: str, seed: int) -> None:
        device = torch.device(bucket.device)
        super().__init__(
            bucket.compressor,
            bucket.layout,
            TorchOps(device),
            transport,
            name=f"{prefix}.{bucket.name}",
            seed=seed,
        )
        self.places = {parameters[place.name]: place for place in bucket.layout.parameters}
        self.vector: Tensor = self.ops.cast(self.ops.zeros(bucket.layout.size), bucket.dtype)
        self.missing = len(self.places)

    def commit(self) -> Tensor:
        """As for any exchange; a vector that has become part of the state is replaced by what was there before."""
        before = self.state.local.kept
        mean: Tensor = super().commit()
        free = self.state.local.vacated(self.vector, before, lambda array: array.data_ptr())
        self.vector = torch.empty_like(self.vector) if free is None else free
        return mean


class GradientReducer:
    """Averages gradients over a transport's workers while the backward pass goes on.

    The first `synchronize` compares what the workers say of themselves and plans the buckets: by then it is known
    which gradients are sparse. From the second backward pass on, a bucket is launched as soon as its last gradient is
    there, and communication overlaps with the rest of the pass. After `set_compression` all this is done anew.

    Args:
        parameters: (name, parameter) of all that require gradients, in the model's order.
        compressor: what to exchange them with.
        rules: exceptions, with compressors.
        transport: who carries the collectives.
        scale_before, scale_after: factors on the gradients before, and on the means after.
        passes: backward passes to a step.
        groups: for each parameter's name the number of its group; those not named are grouped by size.
        sparse_as_dense: exchange sparse gradients as dense ones.
        bucket_bytes, dense_below: see `hvd_compress.reduction.buckets.make_plan`.
        seed: of all random numbers.
        prefix: begins the names of all collectives; the same on all workers.
    """

    def __init__(
        self,
        parameters: Sequence[tuple[str, Tensor]],
        compressor: Compressor,
        rules: Sequence[Rule],
        transport: HorovodTransport,
        *,
        scale_before: float,
        scale_after: float,
        passes: int,
        groups: dict[str, int],
        sparse_as_dense: bool,
        bucket_bytes: int,
        dense_below: int,
        seed: int,
        prefix: str,
    ) -> None:
        self.parameters = dict(parameters)
        self.compressor, self.rules, self.transport = compressor, rules, transport
        self.scale_before, self.scale_after = scale_before, scale_after
        self.passes, self.groups, self.sparse_as_dense = passes, groups, sparse_as_dense
        self.bucket_bytes, self.dense_below, self.seed, self.prefix = bucket_bytes, dense_below, seed, prefix
        self.steps = 0
        self.compression_seconds = self.waiting_seconds = 0.0  # beside those that the exchanges count
        # What earlier compressors have not sent, in the parameters' shapes, until it has been added to a gradient.
        self.carried: dict[str, Tensor] = {}
        self._left_plan: tuple[str, str] | None = None
        self.exchanges: list[_BucketExchange] = []
        self.sparse: dict[str, Exchange] = {}
        self.sparse_dims: dict[str, int] = {}
        self.planned = False
        self._exchange_of: dict[Tensor, _BucketExchange] = {}
        self._left = dict.fromkeys(self.parameters.values(), passes)
        self._arrived: set[Tensor] = set()
        self._begun = False
        self._loaded: dict[str, Any] | None = None
        # Weakly: once the optimizer is gone, another may take over its parameters.
        ready = weakref.WeakMethod(self._gradient_ready)
        for p in self._left:
            p.register_post_accumulate_grad_hook(lambda p: method(p) if (method := ready()) else None)

    # --- during the backward pass

    @property
    def busy(self) -> bool:
        """Whether gradients were computed that are not yet synchronized."""
        return self._begun

    @property
    def _all(self) -> list[Exchange]:
        return [*self.exchanges, *self.sparse.values()]

    def set_passes(self, passes: int) -> None:
        """Change the number of backward passes to a step."""
        self.passes = passes
        self._left = dict.fromkeys(self._left, passes)

    def set_compression(self, compressor: Compressor, rules: Sequence[Rule]) -> None:
        """Give up the plan; the next `synchronize` makes one with these compressors, and adds what was not sent.

        Raises:
            RuntimeError: if gradients were computed that are not yet synchronized.
        """
        if self.busy:
            raise RuntimeError(
                "set_compression() was called after loss.backward() but before optimizer.step() or "
                "optimizer.synchronize(): call it between steps"
            )
        # There is never both: what is carried is gone as soon as the new compressors commit a residual.
        self.carried = self.carried | dict(self._residuals())
        self.compression_seconds += sum(e.compression_seconds for e in self._all)
        self.waiting_seconds += sum(e.waiting_seconds for e in self._all)
        used = next((exchange for exchange in self._all if exchange.layout.size), None)
        if used is not None:
            self._left_plan = (used.next_name, used.compressor.collectives[0])
        self.compressor, self.rules = compressor, rules
        self.exchanges, self.sparse, self._exchange_of = [], {}, {}
        self.planned, self._loaded = False, None

    def _residuals(self) -> Iterator[tuple[str, Tensor]]:
        """Give the name of each parameter that this worker has a residual for, and the residual in its shape."""
        state = self.state_dict()
        own = self.transport.rank
        for bucket in state["buckets"]:
            names, kept = bucket["parameters"], bucket["state"]
            if kept["rank"] == own and "residual" in kept["local"]:
                shapes = [self.parameters[name].shape for name in names]
                parts = kept["local"]["residual"].split([shape.numel() for shape in shapes])
                yield from ((name, part.view(shape)) for name, shape, part in zip(names, shapes, parts, strict=True))
        for name, entry in state["sparse"].items():
            kept = entry["state"]
            if kept["rank"] == own and "residual" in kept["local"]:
                local, shape = kept["local"], self.parameters[name].shape
                yield name, as_tensor(local["rows"], local["residual"], shape, entry["axes"])

    def _gradient_ready(self, parameter: Tensor) -> None:
        try:
            if self._left[parameter] <= 0:
                raise AssertionError(
                    "Gradients were computed more than backward_passes_per_step times before call to step(). "
                    "Increase backward_passes_per_step to accumulate gradients locally."
                )
            self._left[parameter] -= 1
            self._begun = True
            exchange = self._exchange_of.get(parameter)
            if self._left[parameter] or exchange is None:
                return  # more passes to come; or no plan yet, or sparse: `synchronize` sends it
            self._collect(exchange, parameter)
            if exchange.missing == 0:
                self._launch(exchange)
                for other in self.exchanges:
                    if other.ready():
                        other.advance()
        except Exception as error:
            self._fail(error)
            raise

    def _collect(self, exchange: _BucketExchange, parameter: Tensor) -> None:
        """Copy a gradient to its place in the bucket."""
        place = exchange.places[parameter]
        self._arrived.add(parameter)
        exchange.missing -= 1
        target = exchange.vector[place.slice].view(place.shape)
        gradient = parameter.grad
        if gradient is None:
            target.zero_()
            return
        if gradient.is_sparse:
            if not self.sparse_as_dense:
                raise ValueError(
                    f"the gradient of {place.name} is sparse, and in the first step it was dense on every worker; "
                    "pass sparse_as_dense=True"
                )
            gradient = gradient.to_dense()
        target.copy_(gradient)

    def _launch(self, exchange: _BucketExchange) -> None:
        vector = exchange.vector if self.scale_before == 1 else exchange.vector * self.scale_before
        for place in exchange.layout.parameters:
            if place.name in self.carried:
                vector[place.slice].view(place.shape).add_(self.carried[place.name].to(vector.device))
        exchange.launch(vector, overwrite=True)

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
            for name, sparse in self.sparse.items():
                sparse.launch(self._rows(name))
            for exchange in self.exchanges:
                if not exchange.launched:
                    for parameter in exchange.places:
                        if parameter not in self._arrived:
                            self._collect(exchange, parameter)
                    self._launch(exchange)
            self.waiting_seconds += advance_until(lambda: all(e.finished for e in self._all), self._all)
        except Exception as error:
            self._fail(error)
            raise
        self._finish()

    def _rows(self, name: str) -> Rows:
        parameter, axes = self.parameters[name], self.sparse_dims[name]
        rows = as_rows(parameter.grad, parameter, axes)
        if self.scale_before != 1:
            rows = replace(rows, values=rows.values * self.scale_before)
        if name in self.carried:
            left = as_rows(self.carried[name].to(rows.values), parameter, axes)
            indices = torch.cat([rows.indices, left.indices])
            rows = Rows(indices, torch.cat([rows.values, left.values]), rows.height)
        return rows

    def _finish(self) -> None:
        # The means are equal on all workers, and so is what they decide here.
        finite = all(exchange.finite for exchange in self._all)
        for exchange in self.exchanges:
            mean = exchange.commit() if finite else exchange.rollback()
            if self.scale_after != 1:
                mean = mean * self.scale_after
            for parameter, place in exchange.places.items():
                self._give(parameter, place.name, mean[place.slice].view(place.shape))
        for name, sparse in self.sparse.items():
            rows, parameter = sparse.commit() if finite else sparse.rollback(), self.parameters[name]
            values = rows.values if self.scale_after == 1 else rows.values * self.scale_after
            parameter.grad = as_tensor(rows.indices, values, parameter.shape, self.sparse_dims[name])
        if finite:
            self.carried = {}
        self.steps += 1
        self._reset()

    def _give(self, parameter: Tensor, name: str, mean: Tensor) -> None:
        mean = mean.to(parameter.dtype)
        if name in self.sparse_dims:
            parameter.grad = mean.to_sparse(self.sparse_dims[name])
        elif parameter.grad is None:
            parameter.grad = mean
        else:
            parameter.grad.set_(mean)  # type: ignore[call-overload]  # undeclared, and what Horovod does

    def _reset(self) -> None:
        self._arrived.clear()
        self._begun = False
        self._left = dict.fromkeys(self._left, self.passes)
        for exchange in self.exchanges:
            exchange.missing = len(exchange.places)

    def mean_loss(self, loss: Any) -> Any:
        """Return the mean of a closure's losses; what is no tensor is returned as it is."""
        if not isinstance(loss, Tensor):
            return loss
        handle = self.transport.start(AllReduce(loss.detach()), f"{self.prefix}.loss")
        mean: Tensor = self.transport.wait(handle)
        return mean

    def _fail(self, error: Exception) -> None:
        self.transport.fail(error, [exchange.next_name for exchange in self._all if not exchange.finished])
        for exchange in self._all:
            exchange.abandon()
        self._reset()

    # --- before the first exchange

    def _make_plan(self) -> None:
        if self._left_plan is not None and not self.transport.all_have_left(*self._left_plan):
            raise WorkersDisagree("the workers disagree on a change of compression: not all called set_compression()")
        self._left_plan = None
        sparse_dims = {name: entry["axes"] for name, entry in self._loaded["sparse"].items()} if self._loaded else {}
        sparse_dims |= {name: rows.sparse_dim() for name, rows in self.carried.items() if rows.is_sparse}
        for name, p in self.parameters.items():
            if p.grad is not None and p.grad.is_sparse:
                sparse_dims[name] = p.grad.sparse_dim()
        layout = Layout.of((name, tuple(p.shape)) for name, p in self.parameters.items())
        description = {
            **describe(self.compressor, self.seed, layout),
            "rules": [str(rule) for rule in self.rules],
            "dtypes": [f"{name} {p.dtype}" for name, p in self.parameters.items()],
            "backward_passes_per_step": self.passes,
            "scaling of gradients": (self.scale_before, self.scale_after),
            "groups": sorted(self.groups.items()),
            "sparse_as_dense": self.sparse_as_dense,
            "bucket_bytes": self.bucket_bytes,
            "dense_below": self.dense_below,
        }
        answers = self.transport.gather_object((description, sparse_dims), f"{self.prefix}.agreement")
        check_agreement([answer[0] for answer in answers])
        for _, dims in answers:
            self.sparse_dims |= dims
        apart = set() if self.sparse_as_dense else set(self.sparse_dims)
        gradients = {
            name: Gradient(
                name,
                tuple(p.shape),
                # Horovod sums no bfloat16.
                {torch.float16: "float16", torch.float64: "float64"}.get(p.dtype, "float32"),
                str(p.device),
                self.groups.get(name),
            )
            for name, p in self.parameters.items()
        }
        buckets = make_plan(
            [gradient for name, gradient in gradients.items() if name not in apart],
            self.compressor,
            self.rules,
            bucket_bytes=self.bucket_bytes,
            dense_below=self.dense_below,
        )
        self.exchanges = [
            _BucketExchange(bucket, self.parameters, self.transport, self.prefix, self.seed) for bucket in buckets
        ]
        self._exchange_of = {p: exchange for exchange in self.exchanges for p in exchange.places}
        self.sparse = {
            name: self._sparse_exchange(name, wanted(gradient, self.compressor, self.dense_below, self.rules))
            for name, gradient in gradients.items()
            if name in apart
        }
        self.planned = True
        if self._loaded is not None:
            self._load(self._loaded)
            self._loaded = None

    def _sparse_exchange(self, name: str, compressor: Compressor) -> Exchange:
        parameter = self.parameters[name]
        return Exchange(
            sparse_rows(name, compressor),
            Layout.of([(name, tuple(parameter.shape))]),
            TorchOps(parameter.device),
            self.transport,
            name=f"{self.prefix}.sparse.{name}",
            seed=self.seed,
        )

    # --- checkpoints and statistics

    def _method(self) -> dict[str, Any]:
        return {"compression": spec(self.compressor), "rules": [str(rule) for rule in self.rules]}

    def state_dict(self) -> dict[str, Any]:
        """Return the compressors' state: tensors, numbers and names only."""
        saved = self._loaded or {}
        return {
            **self._method(),
            "rank": self.transport.rank,
            "steps": self.steps,
            "carried": dict(self.carried),
            "buckets": saved.get("buckets")
            or [
                {"parameters": [p.name for p in exchange.layout.parameters], "state": exchange.state.state_dict()}
                for exchange in self.exchanges
            ],
            "sparse": saved.get("sparse")
            or {
                name: {"axes": self.sparse_dims[name], "state": exchange.state.state_dict()}
                for name, exchange in self.sparse.items()
            },
        }

    def load_state_dict(self, saved: dict[str, Any] | None) -> bool:
        """Take over a saved state (None: begin anew) and drop what is under way; return False if it was another rank's.

        Raises:
            ValueError: if it belongs to another compression or other rules.
        """
        for key, mine in self._method().items():
            if saved is not None and saved[key] != mine:
                raise ValueError(
                    f"the state was saved with {key} {saved[key]}, and this optimizer has {mine}; to begin with an "
                    "empty state, delete its entry 'compression'"
                )
        empty = {"rank": self.transport.rank, "steps": 0, "carried": {}, "buckets": [], "sparse": {}}
        saved = {**empty, **(saved or {})}
        if self.planned:
            self._load(saved)
        else:
            self._loaded = saved
        self._reset()
        self.steps = saved["steps"]
        self.carried = dict(saved["carried"]) if saved["rank"] == self.transport.rank else {}
        states = [entry["state"] for entry in (*saved["buckets"], *saved["sparse"].values())]
        nothing_own = not saved["carried"] and not any(state["local"] for state in states)
        return saved["rank"] == self.transport.rank or nothing_own

    def _load(self, saved: dict[str, Any]) -> None:
        found = [bucket["parameters"] for bucket in saved["buckets"]], sorted(saved["sparse"])
        here = [[p.name for p in exchange.layout.parameters] for exchange in self.exchanges], sorted(self.sparse)
        if found != here and found != ([], []):
            raise ValueError(
                f"the state was saved for the buckets {found[0]} and sparse gradients of {found[1]}, and here they are "
                f"{here[0]} and {here[1]}: the model, bucket_bytes, dense_below, groups and sparse_as_dense must be "
                "those of the run that saved it"
            )
        for exchange in self._all:
            exchange.abandon()
            exchange.state.reset()
        for exchange, bucket in zip(self.exchanges, saved["buckets"], strict=False):
            exchange.state.load_state_dict(_to_device(bucket["state"], exchange.vector.device))
        for name, entry in saved["sparse"].items():
            self.sparse[name].state.load_state_dict(_to_device(entry["state"], self.parameters[name].device))

    def stats(self) -> dict[str, Any]:
        """Return what was sent and how long it took, since construction (see `DistributedOptimizer`)."""
        dense = 4 * sum(p.numel() for p in self.parameters.values()) * self.steps
        states = [exchange.state.local for exchange in self._all]
        residuals = [local["residual"] for local in states if "residual" in local]
        residuals += [left.values() if left.is_sparse else left for left in self.carried.values()]
        sent = self.transport.traffic.sent
        return {
            "steps": self.steps,
            "bytes_sent": sent,
            "bytes_received": self.transport.traffic.received,
            "dense_bytes": dense,
            "ratio": dense / sent if sent else 1.0,
            "compression_seconds": self.compression_seconds + sum(e.compression_seconds for e in self._all),
            "communication_seconds": self.waiting_seconds + sum(e.waiting_seconds for e in self._all),
            "residual_norm": sum(TorchOps().norm(residual) ** 2 for residual in residuals) ** 0.5,
            "collectives": {kind: dict(entry) for kind, entry in self.transport.traffic.collectives.items()},
        }


def _to_device(saved: dict[str, Any], device: torch.device) -> dict[str, Any]:
    moved = {store: {name: tensor.to(device) for name, tensor in saved[store].items()} for store in ("shared", "local")}
    return {**saved, **moved}
