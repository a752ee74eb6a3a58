"""`Compression`: the compressors as PyTorch users name them, also for Horovod's own, unpatched optimizer."""

from __future__ import annotations

import inspect
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import horovod.torch as hvd
import torch
from torch import Tensor

from hvd_compress.agreement import check_agreement, describe
from hvd_compress.compressors import Compressor, make, methods, parse, spec
from hvd_compress.compressors.base import AllReduce, Collective
from hvd_compress.exchange import Exchange
from hvd_compress.layout import Layout
from hvd_compress.ops.torch import TorchOps
from hvd_compress.plan import Gradient, choose
from hvd_compress.transports import Traffic
from hvd_compress.transports.horovod_torch import HorovodTransport

_bound = itertools.count()


class TorchCompression:
    """A compressor as an optimizer's ``compression`` argument.

    ``hvd_compress.torch.DistributedOptimizer`` takes it as it is. Horovod's own optimizer takes it after `bind`, or
    unbound if the method keeps no state (``none`` and ``fp16``).
    """

    def __init__(self, compressor: Compressor) -> None:
        self.compressor = compressor

    def __call__(self) -> TorchCompression:
        """Return itself: ``Compression.none`` and ``Compression.none()`` are the same."""
        return self

    def __repr__(self) -> str:
        return f"Compression({spec(self.compressor)!r})"

    def bind(
        self,
        named_parameters: Iterable[tuple[str, Tensor]],
        *,
        op: int = hvd.Average,
        dense_below: int = 1024,
        seed: int = 0,
    ) -> BoundCompression:
        """Attach the compressor's state to parameters, for ``horovod.torch.DistributedOptimizer``.

        Args:
            named_parameters: those that Horovod's optimizer is given.
            op: the one that Horovod's optimizer is given: ``hvd.Average`` or ``hvd.Sum``.
            dense_below: parameters with fewer coordinates than this, and those with one axis, are sent uncompressed.
            seed: of the compressor's random numbers, the same on all workers.

        Raises:
            ValueError: if the method needs the gradient of the whole model at once.
        """
        if self.compressor.whole_gradient:
            raise ValueError(
                f"{spec(self.compressor)} needs the gradient of the whole model at once, and Horovod's optimizer hands "
                "over one tensor at a time; use hvd_compress.torch.DistributedOptimizer"
            )
        return BoundCompression(self.compressor, dict(named_parameters), op, dense_below, seed)

    def compress(self, tensor: Tensor) -> tuple[Tensor, Any]:
        """Compress one gradient without state, as Horovod's optimizer asks.

        Raises:
            RuntimeError: if the method keeps state.
            TypeError: if the gradient is not of a real floating dtype.
        """
        if self.compressor.stateful:
            raise RuntimeError(
                f"{spec(self.compressor)} keeps state for each parameter. Under Horovod's own optimizer, bind it: "
                "compression = compression.bind(model.named_parameters())"
            )
        check_gradient(tensor)
        carrier = _Carrier()
        exchange = _tensor_exchange("gradient", tensor, self.compressor, carrier, 0)
        exchange.launch(_flat(tensor, self.compressor))
        return carrier.array.view(tensor.shape), (exchange, tensor.dtype)

    def decompress(self, tensor: Tensor, ctx: Any) -> Tensor:
        """Return the mean that Horovod's sum of compressed gradients stands for."""
        if ctx is None:  # a sparse gradient, which Horovod carries without asking to compress it
            return tensor
        exchange, dtype = ctx
        exchange.transport.result = tensor.reshape(-1)
        exchange.advance()
        return exchange.commit().view(tensor.shape).to(dtype)


class _Carrier:
    """A transport whose single AllReduce Horovod's optimizer performs."""

    rank, workers = 0, 1

    def __init__(self) -> None:
        self.traffic = Traffic()
        self.array = self.result = torch.empty(0)

    def start(self, collective: Collective, name: str) -> None:
        assert isinstance(collective, AllReduce)
        self.array = collective.array

    def done(self, handle: None) -> bool:
        return True

    def wait(self, handle: None) -> Tensor:
        return self.result

    def fail(self, error: BaseException, names: Sequence[str]) -> None:
        """Leave it to the caller."""


class BoundCompression:
    """A compressor with its state for each of a model's parameters, for Horovod's own optimizer.

    Horovod calls `compress` with a gradient and no name: the parameter is found by identity. If the method is one
    AllReduce, Horovod carries it. Otherwise its collectives are started here, Horovod carries an empty tensor, and
    `decompress` waits for them, advancing all that are ready: workers may ask for them in different orders.
    """

    def __init__(
        self, compressor: Compressor, parameters: dict[str, Tensor], op: int, dense_below: int, seed: int
    ) -> None:
        if op not in (hvd.Average, hvd.Sum):
            raise ValueError(f"op must be hvd.Average ({hvd.Average}) or hvd.Sum ({hvd.Sum}); got {op}")
        self.compressor, self.parameters = compressor, parameters
        self.transport = HorovodTransport(explains=False)  # the others may wait in Horovod's optimizer
        self._prefix = f"hvd_compress.bound.{next(_bound)}"
        self._factor = self.transport.workers if op == hvd.Sum else 1
        self._exchanges: dict[str, Exchange] = {}
        for name, p in parameters.items():
            if not p.requires_grad:
                continue
            check_gradient(p, name)
            chosen = choose(Gradient(name, tuple(p.shape), "float32"), compressor, dense_below)
            alone = chosen.collectives == ("allreduce",)
            carrier = _CountingCarrier(self.transport) if alone else self.transport
            self._exchanges[name] = _tensor_exchange(name, p, chosen, carrier, seed, prefix=self._prefix)
        self._names = {p: name for name, p in parameters.items()}
        self._order = list(reversed(parameters.values()))
        self._next = 0
        self._agreed = False
        self._description = {
            **describe(compressor, seed, Layout.of((name, tuple(p.shape)) for name, p in parameters.items())),
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
            exchange.launch(_flat(tensor, exchange.compressor))
        except Exception as error:
            self._fail(error)
            raise
        if isinstance(exchange.transport, _CountingCarrier):
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
            if isinstance(exchange.transport, _CountingCarrier):
                exchange.transport.result = tensor / self._factor if self._factor != 1 else tensor
                exchange.advance()
            while not exchange.finished:
                ready = [e for e in self._exchanges.values() if e.transport is self.transport and e.ready()]
                for other in ready:
                    other.advance()
                if not ready:
                    time.sleep(5e-5)
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
            "parameters": {name: e.state.state_dict() for name, e in self._exchanges.items()},
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Load what `state_dict` returned.

        Raises:
            ValueError: if it belongs to another compression or other parameters.
        """
        if saved["compression"] != spec(self.compressor) or set(saved["parameters"]) != set(self._exchanges):
            raise ValueError(
                f"the state was saved with {saved['compression']} for {sorted(saved['parameters'])}; here it is "
                f"{spec(self.compressor)} for {sorted(self._exchanges)}"
            )
        for name, exchange in self._exchanges.items():
            exchange.abandon()
            exchange.state.load_state_dict(saved["parameters"][name])

    def compression_stats(self) -> dict[str, Any]:
        """Return what this worker sent: see ``DistributedOptimizer.compression_stats``."""
        traffic = self.transport.traffic
        return {
            "bytes_sent": traffic.sent,
            "bytes_received": traffic.received,
            "compression_seconds": sum(e.compression_seconds for e in self._exchanges.values()),
            "collectives": {kind: dict(entry) for kind, entry in traffic.collectives.items()},
        }

    def _agree(self) -> None:
        answers = self.transport.gather_object(self._description, f"{self._prefix}.agreement")
        check_agreement(answers)
        self._agreed = True

    def _end_step(self) -> None:
        """Keep the last step's state if all its means are finite, as the optimizer saw them."""
        done = [exchange for exchange in self._exchanges.values() if exchange.finished]
        finite = all(exchange.ops.all_finite(exchange.mean) for exchange in done)
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
        exchanges = self._exchanges.items()
        own = [e.next_name for _, e in exchanges if not e.finished and e.transport is self.transport]
        horovods = [name for name, e in exchanges if not e.launched]
        self.transport.fail(error, [*own, *horovods])
        for exchange in self._exchanges.values():
            exchange.abandon()


class _CountingCarrier(_Carrier):
    """A carrier that counts towards a transport's traffic, and has its rank."""

    def __init__(self, transport: HorovodTransport) -> None:
        super().__init__()
        self.rank, self.workers, self.traffic = transport.rank, transport.workers, transport.traffic

    def wait(self, handle: None) -> Tensor:
        self.traffic.count("allreduce", self.array.nbytes, self.array.nbytes)
        return self.result


def _tensor_exchange(
    name: str, tensor: Tensor, compressor: Compressor, transport: Any, seed: int, prefix: str = "unbound"
) -> Exchange:
    layout = Layout.of([(name, tuple(tensor.shape))])
    return Exchange(compressor, layout, TorchOps(tensor.device), transport, name=f"{prefix}.{name}", seed=seed)


def _flat(tensor: Tensor, compressor: Compressor) -> Tensor:
    vector = tensor.reshape(-1)
    return vector if compressor.keeps_dtype and tensor.dtype != torch.bfloat16 else vector.float()


def check_gradient(tensor: Tensor, name: str = "a gradient") -> None:
    """Raise TypeError unless a tensor is of a real floating dtype."""
    if not tensor.dtype.is_floating_point:
        raise TypeError(f"gradients must be of a real floating dtype; {name} is of {tensor.dtype}")


def as_compressor(compression: Any) -> Compressor:
    """Return the compressor that a ``compression`` argument means: an object of `Compression`, or a spec.

    Raises:
        TypeError: if it is neither.
        ValueError: if a spec is not valid.
    """
    if isinstance(compression, str):
        return parse(compression)
    if isinstance(compression, Compressor):
        return compression
    if callable(compression) and not isinstance(compression, type):
        compression = compression()
    if isinstance(compression, TorchCompression):
        return compression.compressor
    raise TypeError(
        "compression must be one of hvd_compress.torch.Compression, such as Compression.topk(ratio=0.01), or a spec "
        f"such as 'topk(ratio=0.01)'; got {compression!r}"
    )


def _factory(name: str) -> Callable[..., TorchCompression]:
    cls = methods()[name]

    def method(*args: Any, feedback: str | None = None, **settings: Any) -> TorchCompression:
        return TorchCompression(make(name, *args, feedback=feedback, **settings))

    method.__name__ = method.__qualname__ = name
    method.__doc__ = cls.__doc__
    feedback = inspect.Parameter("feedback", inspect.Parameter.KEYWORD_ONLY, default=None)
    signature = inspect.signature(cls)
    method.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), feedback], return_annotation=TorchCompression
    )
    return method


class Compression:
    """The compressors by name, each a function of its settings: ``Compression.topk(ratio=0.01)``.

    ``Compression.none`` and ``Compression.fp16`` have no settings and stand for themselves, so that this class can
    replace Horovod's. Every function takes ``feedback`` as well: "ef", "none", or None for the method's default.
    """

    none = TorchCompression(make("none"))
    fp16 = TorchCompression(make("fp16"))


for _name in methods():
    if not hasattr(Compression, _name):
        setattr(Compression, _name, staticmethod(_factory(_name)))
