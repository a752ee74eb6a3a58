"""The compressors under Horovod's own, unpatched optimizer, tensor by tensor."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import horovod.torch as hvd
import torch
from torch import Tensor

from hvd_compress.compressors import Compressor, spec
from hvd_compress.ops.layout import Layout
from hvd_compress.ops.torch import TorchOps
from hvd_compress.reduction.agreement import check_agreement, describe
from hvd_compress.reduction.buckets import Gradient, Rule, choose
from hvd_compress.reduction.exchange import Exchange, advance_until
from hvd_compress.transports.carrier import Carrier
from hvd_compress.transports.horovod_torch import HorovodTransport

_bound = itertools.count()


class BoundCompression:
    """A compressor with its state for each of a model's parameters, for Horovod's own optimizer.

    Horovod calls `compress` with a gradient and no name: the parameter is found by identity. If the method is one
    AllReduce, Horovod carries it. Otherwise its collectives are started here, Horovod carries an empty tensor, and
    `decompress` waits for them, advancing all that are ready: workers may ask for them in different orders.
    """

    def __init__(
        self,
        compressor: Compressor,
        rules: Sequence[Rule],
        parameters: dict[str, Tensor],
        op: int,
        dense_below: int,
        seed: int,
    ) -> None:
        if op not in (hvd.Average, hvd.Sum):
            raise ValueError(f"op must be hvd.Average ({hvd.Average}) or hvd.Sum ({hvd.Sum}); got {op}")
        self.compressor, self.rules, self.parameters = compressor, [str(rule) for rule in rules], parameters
        self.transport = HorovodTransport(explains=False)  # the others may wait in Horovod's optimizer
        self._prefix = f"hvd_compress.bound.{next(_bound)}"
        self._factor = self.transport.workers if op == hvd.Sum else 1
        self._exchanges: dict[str, Exchange] = {}
        for name, p in parameters.items():
            if not p.requires_grad:
                continue
            check_gradient(p, name)
            chosen = choose(Gradient(name, tuple(p.shape), "float32"), compressor, dense_below, rules)
            alone = chosen.collectives == ("allreduce",)
            t = self.transport
            carrier = Carrier(TorchOps(p.device), t.rank, t.workers, t.traffic) if alone else t
            self._exchanges[name] = tensor_exchange(name, p, chosen, carrier, seed, prefix=self._prefix)
        self._own = [e for e in self._exchanges.values() if e.transport is self.transport]
        self.waiting_seconds = 0.0
        self._names = {p: name for name, p in parameters.items()}
        self._order = list(reversed(parameters.values()))
        self._next = 0
        self._agreed = False
        self._description = {
            **describe(compressor, seed, Layout.of((name, tuple(p.shape)) for name, p in parameters.items())),
            "rules": self.rules,
            "op": op,
            "dense_below": dense_below,
        }

    def compress(self, tensor: Tensor) -> tuple[Tensor, Any]:
        """Begin the exchange of a gradient; return what Horovod is to sum, and a context.

        Raises:
            LookupError: if the tensor is the gradient of no bound parameter.
            TypeError: if it is not of a real floating dtype.
            WorkersDisagree: in the first step, if the workers' compressors differ in version, settings or parameters.
        """
        check_gradient(tensor)
        if not self._agreed:
            self._agree()
        name = self._names[self._find(tensor)]
        exchange = self._exchanges[name]
        if exchange.finished:
            self._end_step()
        try:
            exchange.launch(flat(tensor, exchange.compressor))
        except Exception as error:
            self._fail(error)
            raise
        if isinstance(exchange.transport, Carrier):
            array = exchange.transport.array
            # Horovod sums in place, and the compressor may need its array again.
            return (array.clone() if exchange.compressor.stateful else array), (name, tensor)
        return tensor.new_empty(0), (name, tensor)

    def decompress(self, tensor: Tensor, ctx: Any) -> Tensor:
        """Finish the exchange and return the mean (or sum) of the decoded gradients."""
        if ctx is None:  # a sparse gradient, which Horovod carries without asking to compress it
            return tensor
        name, gradient = ctx
        exchange = self._exchanges[name]
        try:
            if isinstance(exchange.transport, Carrier):
                exchange.transport.result = tensor / self._factor if self._factor != 1 else tensor
                exchange.advance()
            self.waiting_seconds += advance_until(lambda: exchange.finished, self._own)
        except Exception as error:
            self._fail(error)
            raise
        assert exchange.mean is not None
        mean = exchange.mean.view(gradient.shape).to(gradient.dtype)
        return mean * self._factor if self._factor != 1 else mean.clone()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all parameters' compressors; each worker has its own."""
        self._end_step()
        return {
            "compression": spec(self.compressor),
            "rules": self.rules,
            "parameters": {name: e.state.state_dict() for name, e in self._exchanges.items()},
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Load what `state_dict` returned.

        Raises:
            ValueError: if it belongs to another compression, other rules or other parameters.
        """
        theirs = (saved["compression"], saved["rules"], sorted(saved["parameters"]))
        ours = (spec(self.compressor), self.rules, sorted(self._exchanges))
        if theirs != ours:
            raise ValueError(
                "the state was saved with {} and rules {} for {}; here it is ".format(*theirs)
                + "{} and rules {} for {}".format(*ours)
            )
        for name, exchange in self._exchanges.items():
            exchange.abandon()
            exchange.state.load_state_dict(saved["parameters"][name])

    def compression_stats(self) -> dict[str, Any]:
        """Return what this worker sent, with some of the keys of ``DistributedOptimizer.compression_stats``.

        Horovod's own time for what it carries is not in ``communication_seconds``.
        """
        traffic = self.transport.traffic
        return {
            "bytes_sent": traffic.sent,
            "bytes_received": traffic.received,
            "compression_seconds": sum(e.compression_seconds for e in self._exchanges.values()),
            "communication_seconds": self.waiting_seconds + sum(e.waiting_seconds for e in self._own),
            "collectives": {kind: dict(entry) for kind, entry in traffic.collectives.items()},
        }

    def _agree(self) -> None:
        answers = self.transport.gather_object(self._description, f"{self._prefix}.agreement")
        check_agreement(answers)
        self._agreed = True

    def _end_step(self) -> None:
        """Keep the last step's state if all its means are finite, as the optimizer saw them."""
        done = [exchange for exchange in self._exchanges.values() if exchange.finished]
        finite = all(exchange.finite for exchange in done)
        for exchange in done:
            exchange.commit() if finite else exchange.rollback()

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

    def _fail(self, error: Exception) -> None:
        own = [e.next_name for e in self._own if not e.finished]
        horovods = [name for name, e in self._exchanges.items() if not e.launched]
        self.transport.fail(error, [*own, *horovods])
        for exchange in self._exchanges.values():
            exchange.abandon()


def tensor_exchange(
    name: str, tensor: Tensor, compressor: Compressor, transport: Any, seed: int, prefix: str = "unbound"
) -> Exchange:
    """Return the exchange of one tensor."""
    layout = Layout.of([(name, tuple(tensor.shape))])
    return Exchange(compressor, layout, TorchOps(tensor.device), transport, name=f"{prefix}.{name}", seed=seed)


def flat(tensor: Tensor, compressor: Compressor) -> Tensor:
    """Return a gradient as the vector that a compressor takes."""
    vector = tensor.reshape(-1)
    return vector if compressor.keeps_dtype and tensor.dtype != torch.bfloat16 else vector.float()


def check_gradient(tensor: Tensor, name: str = "a gradient") -> None:
    """Raise TypeError unless a tensor is of a real floating dtype."""
    if not tensor.dtype.is_floating_point:
        raise TypeError(f"gradients must be of a real floating dtype; {name} is of {tensor.dtype}")
