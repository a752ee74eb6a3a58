"""The compressors under Horovod's own, unpatched optimizer, tensor by tensor."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hvd_compress.compressors import Compressor
from hvd_compress.ops.layout import Layout
from hvd_compress.ops.torch import TorchOps
from hvd_compress.reduction.agreement import WorkersDisagree
from hvd_compress.reduction.buckets import Bucket, Gradient, Rule, one_bucket_each
from hvd_compress.reduction.checkpoint import Saved, SavedExchange
from hvd_compress.reduction.exchange import VectorSteps
from hvd_compress.reduction.phases import COPY, Phases
from hvd_compress.reduction.settings import Settings
from hvd_compress.torch.compression import flat
from hvd_compress.torch.exchange import TensorExchange
from hvd_compress.torch.parameters import check_gradient, once
from hvd_compress.torch.reducer import TensorReducer, gradient_was_changed
from hvd_compress.torch.saved import written
from hvd_compress.transports import Peers
from hvd_compress.transports.horovod_torch import HorovodTransport

INSTEAD = "hvd_compress.torch.DistributedOptimizer"


class SummedByHorovod(VectorSteps):
    """The steps of a vector whose one AllReduce Horovod's optimizer carries, under the parameter's name."""

    def __init__(
        self, compressor: Compressor, layout: Layout, peers: Peers, *, seed: int, device: Any, phases: Phases
    ) -> None:
        self.device = torch.device(device)
        name = layout.parameters[0].name
        super().__init__(compressor, layout, TorchOps(self.device), peers, name=name, seed=seed, phases=phases)

    @property
    def next_name(self) -> str:
        return self.name


class BoundCompression(TensorReducer):
    """A compressor with its state for each of a model's parameters, for Horovod's own optimizer.

    Horovod calls `compress` with a gradient and no name: the parameter is found by identity. If the method is one
    AllReduce, Horovod carries it. Otherwise its collectives are started here, Horovod carries an empty tensor, and
    `decompress` waits for them, advancing all that are ready: workers may ask for them in different orders. A step's
    state is committed when the next step begins.
    """

    ends_alone = True

    def __init__(self, parameters: dict[str, Tensor], settings: Settings) -> None:
        settings.check_each_tensor_alone(INSTEAD)
        trained = [(name, p) for name, p in once(parameters.items()) if p.requires_grad]
        for name, p in trained:
            check_gradient(p, name)
        transport = HorovodTransport(explains=False)  # the others may wait in Horovod's optimizer
        super().__init__(trained, settings, transport, "hvd_compress.bound")
        self._names = {p: name for name, p in trained}
        self._order = [p for _, p in reversed(trained)]
        self._next = 0
        self._dense: set[str] = set()  # whose gradients have come here: Horovod asks to compress no sparse ones
        self._under_way: set[str] = set()  # whose tensors Horovod has
        self._changed: str | None = None  # one whose gradient was changed in this step
        self.plan(self.gradients)

    def new_exchange(
        self, compressor: Compressor, layout: Layout, *, name: str, dtype: str, device: str, rows: bool
    ) -> Any:
        if compressor.collectives == ("allreduce",):
            own: dict[str, Any] = {"seed": self.settings.seed, "phases": self.phases}
            return SummedByHorovod(compressor, layout, self.transport, device=device, **own)
        return super().new_exchange(compressor, layout, name=name, dtype=dtype, device=device, rows=rows)

    def plan(self, gradients: Sequence[Gradient], apart: Collection[str] = ()) -> None:
        super().plan(gradients, apart)
        self._exchanges = {exchange.layout.parameters[0].name: exchange for exchange in self.exchanges}
        # Those whose collectives are started here.
        self._own = [exchange for exchange in self.exchanges if isinstance(exchange, TensorExchange)]

    @property
    def _factor(self) -> int:
        return self.transport.workers if self.settings.op == "sum" else 1

    def renew(self) -> bool:
        renewed = super().renew()
        if renewed:
            self._under_way.clear()
            self._changed = None
            self.plan(self.gradients)
        return renewed

    def divide(self, gradients: Sequence[Gradient]) -> list[Bucket]:
        return one_bucket_each(gradients, self.compressor, self.settings.rules, self.settings.dense_below)

    def carried_here(self) -> list[Any]:
        dense = [exchange for name, exchange in self._exchanges.items() if name in self._dense]
        # Last those that Horovod carries: with groups, it has names of its own for them.
        return sorted(dense, key=lambda exchange: isinstance(exchange, SummedByHorovod))

    def compress(self, tensor: Tensor) -> tuple[Tensor, Any]:
        """Begin the exchange of a gradient; return what Horovod is to sum, and a context.

        Raises:
            LookupError: if the tensor is the gradient of no bound parameter.
            TypeError: if it is not of a real floating dtype.
            WorkersDisagree: in the first step, if the workers' compressors differ in version, settings or parameters.
        """
        with self.phases.of(COPY):
            self.phases.due = 1
            return self._compress(tensor)

    def _compress(self, tensor: Tensor) -> tuple[Tensor, Any]:
        check_gradient(tensor)
        self.renew()
        if not self.agreed:
            try:
                self._agree()
            except WorkersDisagree as error:  # a worker that follows another plan waits in Horovod's optimizer
                self.fail(error)
                raise
        name = self._names[self._find(tensor)]
        self._dense.add(name)
        exchange = self._exchanges[name]
        if exchange.finished:
            self._end_step()
        try:
            vector: Any = flat(tensor, exchange.compressor)
            if name in self.carried:
                vector = self.with_carried(exchange, vector.clone())
            exchange.launch(vector)
        except Exception as error:
            self.fail(error)
            raise
        self._under_way.add(name)
        if isinstance(exchange, SummedByHorovod) and exchange.pending is not None:  # else it has no coordinates
            array = exchange.pending.array  # type: ignore[union-attr]
            # Horovod sums in place, and the compressor may need its array again.
            return (array.clone() if exchange.compressor.stateful else array), (name, tensor, tensor._version)
        return tensor.new_empty(0, dtype=torch.float32), (name, tensor, tensor._version)

    def decompress(self, tensor: Tensor, ctx: Any) -> Tensor:
        """Finish the exchange and return the mean (or sum) of the decoded gradients.

        Raises:
            RuntimeError: with the last gradient of a step, if one was changed since it was compressed: by then nothing
                is under way any more, and the others learn of it in their next step.
        """
        if ctx is None:  # a sparse gradient, which Horovod carries without asking to compress it
            return tensor
        with self.phases.of(COPY):
            self.phases.due = 0
            return self._decompress(tensor, ctx)

    def _decompress(self, tensor: Tensor, ctx: Any) -> Tensor:
        name, gradient, version = ctx
        exchange = self._exchanges[name]
        try:
            if isinstance(exchange, SummedByHorovod) and exchange.pending is not None:
                self.transport.traffic.count("allreduce", tensor.nbytes, tensor.nbytes)
                exchange.feed(tensor / self._factor if self._factor != 1 else tensor)
            self.progress.wait(self.steps)
            self._wait(lambda: exchange.finished, self._own)
            self.progress.pause()
            self._under_way.discard(name)
            if not self._unchanged(name, gradient, version):
                self._changed = name
            if self._changed is not None and not self._under_way:
                changed, self._changed = self._changed, None
                raise RuntimeError(gradient_was_changed(changed))
        except Exception as error:
            self.fail(error)
            raise
        mean = exchange.mean.view(gradient.shape).to(gradient.dtype)
        return mean * self._factor if self._factor != 1 else mean.clone()

    def _unchanged(self, name: str, gradient: Tensor, version: int) -> bool:
        return self.parameters[name].grad is gradient and gradient._version == version

    def set_compression(self, compression: Any, rules: Iterable[Rule | tuple[str, Any]] | None = None) -> None:
        """Use another compressor, with its rules, from the next step on. All workers call it alike, between two steps.

        What residuals hold is added, once, to the next gradients of their parameters; all else begins anew.

        Args:
            compression: as an optimizer's ``compression`` argument.
            rules: as in `bind`; the former ones are forgotten.

        Raises:
            RuntimeError: if a step is under way.
            ValueError, TypeError: as in `bind`.
        """
        settings = self.settings.with_compression(compression, rules)
        settings.check_each_tensor_alone(INSTEAD)
        if any(exchange.launched and not exchange.finished for exchange in self.exchanges):
            raise RuntimeError("set_compression() was called while gradients are exchanged: call it between steps")
        self._end_step()
        self.change(settings)
        self.plan(self.gradients)

    def _tell(self, error: Exception) -> None:
        own = [exchange.next_name for exchange in self._own if not exchange.finished]
        # Horovod carries a tensor under each parameter's name, if only an empty one: in this step, or in the next.
        horovods = [name for name in self._exchanges if name not in self._under_way]
        self.transport.fail(error, [*own, *horovods], told=self._told_of(error))

    def saved(self) -> Saved:
        self._end_step()
        return super().saved()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all parameters' compressors; each worker has its own."""
        saved = self.saved()
        state = written(saved, self.shapes, {})
        state["parameters"] = {entry.parameters[0]: entry.state for entry in saved.exchanges}
        return {key: value for key, value in state.items() if key not in ("buckets", "sparse")}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned.

        Raises:
            ValueError: if it belongs to another compression, other rules or other parameters.
        """
        here = Saved.empty(self.settings, self.transport.rank)
        theirs = (saved["compression"], saved["rules"], sorted(saved["parameters"]))
        ours = (here.compression, here.rules, sorted(self.parameters))
        if theirs != ours:
            raise ValueError(
                "the state was saved with {} and rules {} for {}; here it is ".format(*theirs)
                + "{} and rules {} for {}".format(*ours)
            )
        self.load(
            Saved(
                compression=here.compression,
                rules=here.rules,
                rank=saved.get("rank", next((state["rank"] for state in saved["parameters"].values()), here.rank)),
                steps=saved.get("steps", 0),
                exchanges=[SavedExchange([name], saved["parameters"][name]) for name in self.parameters],
                carried={name: tensor.reshape(-1) for name, tensor in saved.get("carried", {}).items()},
            )
        )

    def compression_stats(self, phases: bool = False, per_bucket: bool = False) -> dict[str, Any]:
        """Return what this worker sent, as ``DistributedOptimizer.compression_stats``.

        Horovod's own time for what it carries is not in ``communication_seconds``, but in the phase "computing".
        """
        self._end_step()
        return self.stats(phases, per_bucket)

    def _end_step(self) -> None:
        """Keep the last step's state if all its means are finite, as the optimizer saw them."""
        done = [exchange for exchange in self.exchanges if exchange.finished]
        if done:
            self.finish(done)

    def _find(self, tensor: Tensor) -> Tensor:
        """Return the parameter whose gradient this is, beginning with the one after the last found."""
        for i in range(len(self._order)):
            position = (self._next + i) % len(self._order)
            if self._order[position].grad is tensor:
                self._next = position + 1
                return self._order[position]
        raise LookupError(
            f"a gradient of shape {tuple(tensor.shape)} belongs to no bound parameter: bind() the named_parameters "
            "that the optimizer has (with sparse_as_dense use hvd_compress.torch.DistributedOptimizer)"
        )
