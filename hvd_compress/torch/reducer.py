"""PyTorch's side of a reducer: hooks in, `p.grad` out."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from hvd_compress.advice.auto import Chooser
from hvd_compress.compressors import AllReduce, Compressor
from hvd_compress.ops.layout import Layout
from hvd_compress.ops.torch import TorchOps
from hvd_compress.reduction.agreement import PlanGivenUp, WorkersDisagree
from hvd_compress.reduction.buckets import Gradient
from hvd_compress.reduction.exchange import Exchange, advance_until
from hvd_compress.reduction.phases import COPY, OTHER, WIRE
from hvd_compress.reduction.reducer import Reducer
from hvd_compress.reduction.roll_call import RollCall
from hvd_compress.reduction.rows import Rows
from hvd_compress.reduction.settings import Settings
from hvd_compress.torch.exchange import TensorExchange
from hvd_compress.torch.phases import recorder
from hvd_compress.torch.saved import read, written
from hvd_compress.torch.sparse import as_rows, as_tensor
from hvd_compress.transports import Transport, WorkerFailed

reducers: weakref.WeakSet[TensorReducer] = weakref.WeakSet()  # those of this process
_averaged_by = WeakIdKeyDictionary()  # a parameter: a weak reference to the reducer of its gradients
SENT_AS = {torch.float16: "float16", torch.float64: "float64"}  # others as float32: Horovod sums no bfloat16


def gradient_was_changed(name: str) -> str:
    """Return what to say of a gradient that was changed after its copy had left."""
    return (
        f"the gradient of {name} was changed after loss.backward() had handed it to the other workers, so that the "
        "change would be lost. Clip or unscale means, after optimizer.synchronize(), and then call step() inside `with "
        "optimizer.skip_synchronize():`"
    )


def _settle(parameter: Tensor) -> None:
    """Wait until a parameter's device has done what it was told."""
    if parameter.is_cuda:
        torch.cuda.current_stream(parameter.device).synchronize()


class TensorReducer(Reducer[TensorExchange]):
    """What is common to PyTorch's reducers.

    Args:
        parameters: (name, parameter) of all that require gradients, in the model's order.
        settings: what the user said.
        transport: who carries the collectives.
        channel: names the group of workers.
    """

    ops = TorchOps()
    new_phases = staticmethod(recorder)
    copies_means = False  # so that exchanges may combine in place

    def __init__(
        self, parameters: Sequence[tuple[str, Tensor]], settings: Settings, transport: Transport, channel: str
    ) -> None:
        super().__init__(settings, transport, channel)
        reducers.add(self)
        self.parameters = dict(parameters)
        self.sparse_dims: dict[str, int] = {}

    def new_exchange(
        self, compressor: Compressor, layout: Layout, *, name: str, dtype: str, device: str, rows: bool
    ) -> TensorExchange:
        own: dict[str, Any] = {"seed": self.settings.seed, "phases": self.phases}
        exchange = TensorExchange(compressor, layout, self.transport, name=name, dtype=dtype, device=device, **own)
        exchange.spare = self.copies_means
        return exchange

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

    @property
    def described(self) -> dict[str, Any]:
        """What must be the same on all workers, beside settings and shapes."""
        return {"dtypes": self.dtypes, "processors": self.processors}

    @property
    def processors(self) -> str:
        """The kinds of devices that the parameters are on, if the means depend on them, or may once one is chosen."""
        if not self.settings.automatic and all(c.bare.portable for c in self.settings.compressors):
            return "any"
        return " and ".join(sorted({p.device.type for p in self.parameters.values()}))

    def _wait(self, finished: Callable[[], bool], exchanges: Sequence[Exchange]) -> None:
        """Advance exchanges until a condition holds."""
        with self.phases.of(WIRE):
            advance_until(finished, exchanges, self.progress.check)

    def fail(self, error: Exception) -> None:
        """Tell the other workers that this one cannot go on, and drop the step under way."""
        if isinstance(error, PlanGivenUp) or not (self.agreed or isinstance(error, WorkersDisagree | WorkerFailed)):
            try:  # they wait, or will wait, for an agreement
                self._agree(error)
            except (WorkersDisagree, WorkerFailed) as answer:
                self._tell(answer)
        else:
            self._tell(error)
        for exchange in self.all:
            exchange.abandon()
        self.progress.pause()
        self._meet_again()

    def _meet_again(self) -> None:
        """After an error, agree before the next step, if a method is still to be chosen.

        The workers count their steps up to the choice, and after an error the numbers may differ.
        """
        if self.settings.undecided:
            self.compare_again()

    def _agree(self, error: Exception | None = None) -> None:
        self.agree(self.gradients, self.described, error=error)

    def _tell(self, error: Exception) -> None:
        self.transport.fail(error, self.waited_for(), told=self._told_of(error))

    def waited_for(self) -> list[str]:
        """Return the names of the collectives that the others may wait for now."""
        unfinished = [exchange for exchange in self.all if not exchange.finished]
        names = [exchange.next_name for exchange in unfinished or self.all]
        # Where all exchanges are done, or not begun, the others may wait for what else there is in a step.
        return [*names, self._roll_call_name, self.once("state")]

    @property
    def _roll_call_name(self) -> str:
        return f"{self.prefix}.roll_call"

    def _told_of(self, error: Exception) -> bool:
        """Tell the other workers of an error of this one, whatever they wait for; return whether all know."""
        if isinstance(error, WorkerFailed) or self.transport.workers == 1:
            return False
        if self.transport.tells:
            return self.progress.tell(error)
        if not isinstance(error, WorkersDisagree):  # which all have found out
            self.progress.refuse(error)
        return True


class GradientReducer(TensorReducer):
    """Averages gradients while the backward pass goes on.

    The first `synchronize` plans the buckets: by then it is known which gradients are sparse. From the second backward
    pass on, a bucket is launched as soon as its last gradient is there, and communication overlaps with the rest of the
    pass. After `change`, and when the parameters are others, all this is done anew.

    Args:
        named: all parameters that may ever be trained, in the model's order.
        trained: returns those that the optimizer has and that require gradients, now.
        settings, transport, channel: as of any reducer.
        scaler: of the loss, if there is one: gradients are exchanged without its scale, and the means have it again.

    Attributes:
        busy: whether gradients were computed that are not yet synchronized.
        ignoring: whether gradients that are computed now are none of this reducer's.
        complete: whether so far all workers have had all gradients in each step.
    """

    def __init__(
        self,
        named: Sequence[tuple[str, Tensor]],
        trained: Callable[[], Iterable[Tensor]],
        settings: Settings,
        transport: Transport,
        channel: str,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        super().__init__((), settings, transport, channel)
        self.scaler = scaler
        self._take_scales()
        self.named = dict(named)
        self._name_of = {p: name for name, p in named}
        self._trained = trained
        self._now: set[Tensor] = set()  # those of `parameters`
        self._hooked: set[Tensor] = set()
        self._place_of: dict[Tensor, tuple[TensorExchange, int]] = {}  # which part of whose buffer
        self._left: dict[Tensor, int] = {}  # passes that are still to come in this step
        self._arrived: set[Tensor] = set()  # gradients that were copied to their buckets
        self._seen: dict[Tensor, tuple[int, int]] = {}  # gradients as they came: identity and version
        self._roll_call = RollCall(transport, self.ops)
        self.complete = True
        self._first = next(iter(self.named.values()))
        self._settle = partial(_settle, self._first)
        self._chooser = Chooser(transport, self.progress.check, self._settle)
        self._retired = self.busy = self.ignoring = self._choosing = False
        self._look_at_parameters()
        self._reset()

    # --- which parameters

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tuple(p.shape) for name, p in self.named.items()}

    @property
    def coordinates(self) -> int:
        return sum(p.numel() for p in self.parameters.values())

    def _look_at_parameters(self) -> None:
        """Give up the plan if the optimizer has other parameters than it is for, or trains others of them.

        Raises:
            ValueError: if one of them has no name.
        """
        now = set(self._trained())
        if now == self._now:
            return
        unknown = [tuple(p.shape) for p in now if p not in self._name_of]
        if unknown:
            raise ValueError(
                "the optimizer has parameters that it had not when it was wrapped, and nobody averages their "
                f"gradients; their shapes: {', '.join(map(str, unknown))}. Wrap the optimizer anew, with the "
                "named_parameters of the model as it is now"
            )
        if self.planned:
            self.change(self.settings)
        self._now = now
        self.parameters = {name: p for name, p in self.named.items() if p in now}
        for p in self.parameters.values():
            if p not in self._hooked:
                self._take(p)
        self._left = {p: self._left.get(p, self.settings.backward_passes_per_step) for p in now}

    def _take(self, parameter: Tensor) -> None:
        """Average this parameter's gradients from now on, and nobody else."""
        former = _averaged_by.get(parameter)
        if former is not None and (other := former()) is not None and other is not self:
            other._retired = True
        _averaged_by[parameter] = weakref.ref(self)
        self._hooked.add(parameter)
        self._listen_to(parameter)

    def _listen_to(self, parameter: Tensor) -> None:
        """Let `_gradient_ready` be called with this parameter whenever its gradient is there."""
        ready = weakref.WeakMethod(self._gradient_ready)
        parameter.register_post_accumulate_grad_hook(lambda p: method(p) if (method := ready()) else None)

    # --- during the backward pass

    @contextmanager
    def ignore(self) -> Iterator[None]:
        """Leave out the gradients that are computed inside."""
        self.ignoring = True
        try:
            yield
        finally:
            self.ignoring = False

    def set_passes(self, passes: int) -> None:
        """Change the number of backward passes to a step."""
        self.settings = replace(self.settings, backward_passes_per_step=passes)
        self._left = dict.fromkeys(self._now, passes)

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

    def _give_up_plan(self) -> None:
        super()._give_up_plan()
        self._place_of = {}

    def renew(self) -> bool:
        if not super().renew():
            return False
        self._take_scales()
        self._empty_buckets()
        return True

    def _gradient_ready(self, parameter: Tensor) -> None:
        self._gradients_ready([parameter])

    def _gradients_ready(self, parameters: Sequence[Tensor]) -> None:
        """Take gradients that have just been computed, and launch the buckets that are complete with them."""
        if self.ignoring or self._retired:
            return
        with self.phases.of(COPY):
            self.phases.due = 1
            try:
                there = [parameter for parameter in parameters if self._is_due(parameter)]
                if not self.agreed:
                    return  # no plan yet: `synchronize` makes it
                self._collect(there)
                if self.transport.ordered:
                    self._launch_in_order()
                else:
                    self._launch_complete(there)
            except Exception as error:
                self.fail(error)
                raise

    def _is_due(self, parameter: Tensor) -> bool:
        """Note that a gradient is there; tell whether it goes to a bucket now."""
        if not self.busy:
            self.renew()
            self._look_at_parameters()
            self._take_scales()
        if parameter not in self._now:
            return False  # not the optimizer's any more
        left = self._left[parameter]
        if left <= 0:
            raise AssertionError(
                "Gradients were computed more than backward_passes_per_step times before call to step(). "
                "Increase backward_passes_per_step to accumulate gradients locally."
            )
        self._left[parameter] = left - 1
        self.busy = True
        if left > 1:
            return False
        gradient = parameter.grad
        if gradient is not None:
            self._seen[parameter] = id(gradient), gradient._version
        return parameter in self._place_of  # a sparse one is sent by `synchronize`

    def _collect(self, parameters: Sequence[Tensor]) -> None:
        """Copy gradients to their places in the buckets."""
        targets, sources = [], []
        for parameter in parameters:
            exchange, number = self._place_of[parameter]
            self._arrived.add(parameter)
            exchange.missing -= 1
            target = exchange.parts()[number]
            gradient = self._gradient_of(parameter)
            if gradient is None:
                target.fill_(math.nan if self.complete else 0.0)
                continue
            if gradient.is_sparse:
                if not self.settings.sparse_as_dense:
                    raise ValueError(
                        f"the gradient of {self._name_of[parameter]} is sparse, and in the first step it was dense on "
                        "every worker; pass sparse_as_dense=True"
                    )
                gradient = gradient.to_dense()
            if target.data_ptr() != gradient.data_ptr():
                targets.append(target)
                sources.append(gradient.detach())  # it may have a graph of its own
        if targets:
            torch._foreach_copy_(targets, sources)

    def _gradient_of(self, parameter: Tensor) -> Tensor | None:
        """Return what this worker contributes."""
        return parameter.grad

    def _launch_in_order(self) -> None:
        """Launch the complete buckets before which all are launched: every worker starts collectives in this order."""
        for exchange in self.exchanges:
            if exchange.missing:
                break
            if not exchange.launched:
                self.progress.wait(self.steps)  # for that is what such a transport does
                self._launch(exchange)
                self.progress.pause()

    def _launch_complete(self, parameters: Sequence[Tensor]) -> None:
        """Launch the buckets that some gradients have completed, and go on with those whose collectives have ended."""
        complete = {e: None for p in parameters if (e := self._place_of[p][0]).missing == 0}
        for exchange in complete:
            self._launch(exchange)
        for other in self.exchanges if complete else ():
            if other.ready():
                other.advance()

    def _take_scales(self) -> None:
        """Find the factors of this step. A residual that held the scale would be wrong once the scale is another."""
        scale = 1.0 if self.scaler is None else self.scaler.get_scale()
        before, after = self.settings.scales(self.transport.workers)
        self.scale_before, self.scale_after = before / scale, after * scale

    def _launch(self, exchange: TensorExchange) -> None:
        vector = exchange.buffer() if self.scale_before == 1 else exchange.buffer().mul_(self.scale_before)
        exchange.launch(self.with_carried(exchange, vector), overwrite=True)

    # --- at the end of it

    def steps_of(self, parameter: Tensor) -> int:
        """Return how many steps the compressor of a parameter's gradients has taken since the last plan."""
        place = self._place_of.get(parameter)
        return 0 if place is None else place[0].state.step

    @property
    def stateful(self) -> bool:
        """Whether an exchange leaves traces in a compressor's state."""
        return self.settings.automatic or any(compressor.stateful for compressor in self.settings.compressors)

    def synchronize(self) -> None:
        """Wait for all gradients and put their means into the parameters' ``grad``.

        Raises:
            WorkersDisagree: in the first step, if the workers differ in version, settings or model.
            WorkerFailed: if another worker failed; its own error is in the message.
            RuntimeError: if gradients were changed since they were computed.
            NonFiniteGradients: if one is not finite, and the user has asked for an error.
        """
        if self.settings.undecided:  # what a GPU still computes is not waiting for others
            self._settle()
        with self.phases.of(OTHER):
            self.phases.due = 0
            self._synchronize()

    def _synchronize(self) -> None:
        try:
            self._check_gradients()
            if not self.planned:
                self._look_for_sparse()
            if not (self.planned and self.agreed):
                self._agree()
            if not self.planned:
                self._make_plan()
            nobodys, finite = self._exchange_all()
            method = self._find_method() if self._chooses_now else None
        except Exception as error:
            self.fail(error)
            raise
        try:
            try:
                means = self.finish(nobodys=nobodys, finite=finite)
            finally:
                self._reset()
            with self.phases.of(COPY):
                self._give(dict(zip(self.all, means, strict=True)), nobodys)
        finally:  # an error may be this worker's alone, and the others have chosen as well
            if method is not None:
                self.choose(method)
            elif self.settings.undecided:
                self._chooser.note(self.progress.since, self.phases)

    def _exchange_all(self) -> tuple[list[str], bool]:
        """Finish all exchanges; return the names of the gradients that no worker has, and whether means are finite."""
        roll = None
        while True:
            self.progress.wait(self.steps)
            self._launch_all()
            if roll is None and not self.complete:
                self._start_roll_call()
            self._wait(lambda: all(e.finished for e in self.all), self.all)
            finite = all(exchange.finite for exchange in self.all)
            if self.complete and finite:
                return [], True
            if roll is None:
                if self.complete:
                    self._start_roll_call()
                self._wait(self._roll_call.ready, ())
                roll = self._roll_call.finish()
            if not self.complete or all(roll.everywhere):
                return [n for n, there in zip(self.parameters, roll.anywhere, strict=True) if not there], finite
            self.complete = False  # a worker has sent NaN for a gradient that it lacks
            for exchange in self.all:
                exchange.rollback()
            self._empty_buckets()

    def not_finite(self, exchange: TensorExchange) -> bool:
        gradients = [self.parameters[place.name].grad for place in exchange.layout.parameters]
        values = [g.coalesce().values() if g.is_sparse else g for g in gradients if g is not None]
        return not all(self.ops.all_finite(value.reshape(-1)) for value in values)

    def _launch_all(self) -> None:
        for exchange in self.exchanges:
            if not exchange.launched:
                with self.phases.of(COPY):
                    all_of_it = (self.parameters[place.name] for place in exchange.layout.parameters)
                    self._collect([parameter for parameter in all_of_it if parameter not in self._arrived])
                self._launch(exchange)
        for name, exchange in self.rows.items():  # after all buckets, of which hooks have launched some
            exchange.launch(self.with_carried(exchange, self._rows(name)))

    def _start_roll_call(self) -> None:
        self._roll_call.start(self._roll_call_name, self.steps, [*map(self._has, self.parameters.values())])

    def _has(self, parameter: Tensor) -> bool:
        """Tell whether this worker has a gradient of a parameter in this step."""
        return parameter.grad is not None

    def _check_gradients(self) -> None:
        if self._retired:
            raise RuntimeError(
                "the parameters of this DistributedOptimizer were given to another one, which averages their "
                "gradients now: use that one, and make learning rate schedulers for it"
            )
        former = self._now
        self.renew()
        self._look_at_parameters()
        if not self.busy:  # no gradient has come here, and the means have the scale of this step all the same
            self._take_scales()
        if self._now != former and any(exchange.launched for exchange in self.all):
            raise RuntimeError("the optimizer's parameters were changed after loss.backward() and before the step")
        changed = [
            self._name_of[p]
            for p, seen in self._seen.items()
            if p in self._now and (p.grad is None or (id(p.grad), p.grad._version) != seen)
        ]
        if changed:
            if not self.transport.ordered and self.exchanges and all(exchange.launched for exchange in self.all):
                # Nothing is left to refuse in this step: the others learn of it in the next one. Where order counts,
                # they may have begun a roll call before the rounds that would be resumed here.
                self._wait(lambda: all(e.finished for e in self.all), self.all)
            raise RuntimeError(gradient_was_changed(changed[0]))

    def _rows(self, name: str) -> Rows:
        parameter = self.parameters[name]
        gradient = self._gradient_of(parameter)
        rows = as_rows(gradient, parameter, self.sparse_dims[name])
        if gradient is None and self.complete:
            rows = Rows(
                rows.indices.new_zeros(1), rows.values.new_full((1, rows.values.shape[1]), math.nan), rows.height
            )
        return rows if self.scale_before == 1 else replace(rows, values=rows.values * self.scale_before)

    def _give(self, means: Mapping[TensorExchange, Any], nobodys: Sequence[str]) -> None:
        """Put the means into the parameters' ``grad``, but not those of gradients that no worker had."""
        for exchange in self.exchanges:
            mean = means[exchange] if self.scale_after == 1 else means[exchange] * self.scale_after
            self._give_bucket(exchange, mean, nobodys)
        for name, exchange in self.rows.items():
            if name in nobodys:
                continue
            rows, parameter = means[exchange], self.parameters[name]
            values = rows.values if self.scale_after == 1 else rows.values * self.scale_after
            self._put(parameter, as_tensor(rows.indices, values, parameter.shape, self.sparse_dims[name]))

    def _give_bucket(self, exchange: TensorExchange, mean: Tensor, nobodys: Sequence[str]) -> None:
        parameters, parts = [], []
        for name, part in zip(exchange.layout.names, exchange.cut(mean), strict=True):
            if name in nobodys:
                continue
            if name in self.sparse_dims:
                self._put(self.parameters[name], part.to_sparse(self.sparse_dims[name]).to(self.parameters[name].dtype))
            else:
                parameters.append(self.parameters[name])
                parts.append(part)
        self._put_all(parameters, parts)

    def _put_all(self, parameters: Sequence[Tensor], means: Sequence[Tensor]) -> None:
        """Put dense means where the user, and the optimizer, look for them."""
        for parameter, mean in zip(parameters, means, strict=True):
            self._put(parameter, mean.to(parameter.dtype))

    def _put(self, parameter: Tensor, mean: Tensor) -> None:
        """Put a mean where the user, and the optimizer, look for it."""
        if mean.is_sparse:
            parameter.grad = mean
        elif parameter.grad is None or parameter.grad.is_sparse:
            parameter.grad = mean.clone()  # a view would share its version with all gradients of the bucket
        else:
            parameter.grad.set_(mean)  # type: ignore[call-overload]  # undeclared, and what Horovod does

    def _reset(self) -> None:
        self._seen.clear()
        self.busy = False
        self._left = dict.fromkeys(self._now, self.settings.backward_passes_per_step)
        self._empty_buckets()

    def _empty_buckets(self) -> None:
        self._arrived.clear()
        for exchange in self.exchanges:
            exchange.missing = len(exchange.layout.parameters)

    def mean_loss(self, loss: Any) -> Any:
        """Return the mean of a closure's losses; what is no tensor is returned as it is."""
        if not isinstance(loss, Tensor):
            return loss
        with self.phases.of(WIRE):
            handle = self.transport.start(AllReduce(loss.detach()), f"{self.prefix}.loss")
            mean: Tensor = self.transport.wait(handle)
        return mean.view(loss.shape)

    def fail(self, error: Exception) -> None:
        super().fail(error)
        self._choosing = False
        self._reset()

    def refuse(self, error: Exception) -> None:
        """Tell the other workers that this one does not take the step, which may be taken all the same if none does."""
        if self.agreed and self.transport.tells:
            self.progress.refuse(error)
            self._meet_again()
        else:
            self.fail(error)

    # --- which compression, where that is "auto"

    @property
    def _chooses_now(self) -> bool:
        """Whether the workers choose in this step: all have taken as many since they agreed."""
        return self.settings.undecided and self.transport.workers > 1 and self._chooser.enough(self.progress.since)

    def _find_method(self) -> str:
        dense = [g for g in self.gradients if self.settings.sparse_as_dense or g.name not in self.sparse_dims]
        self._choosing = True
        method = self._chooser.choose(dense, self.settings, TorchOps(self._first.device), self.once("choice"))
        self._choosing = False
        return method

    def waited_for(self) -> list[str]:
        if not self._chooses_now:
            return super().waited_for()
        choice = self._chooser.collectives(self.once("choice"))
        if self._choosing:
            return choice
        if self.all and all(exchange.finished for exchange in self.all):  # the next step's are not begun before
            return [self._roll_call_name, *choice]
        return [*super().waited_for(), *choice]

    # --- before the first exchange

    def _look_for_sparse(self) -> None:
        for name, p in self.parameters.items():
            if p.grad is not None and p.grad.is_sparse:
                self.sparse_dims[name] = p.grad.sparse_dim()

    def _make_plan(self) -> None:
        try:
            self.plan(self.gradients, () if self.settings.sparse_as_dense else self.sparse_dims)
        finally:  # also when a state that was loaded does not fit: all go on without it
            self._find_places()

    def _agree(self, error: Exception | None = None) -> None:
        self._hear(self.agree(self.gradients, self.described, self._to_tell(), error))

    def _to_tell(self) -> dict[str, Any]:
        """Return what the others are to know of this worker before they plan."""
        return {"sparse": self.sparse_dims, "complete": all(map(self._has, self.parameters.values()))}

    def _hear(self, told: Sequence[Mapping[str, Any]]) -> None:
        for answer in told:
            self.sparse_dims |= answer["sparse"]
        self.complete = all(answer["complete"] for answer in told)

    def _find_places(self) -> None:
        self._place_of = {
            self.parameters[name]: (exchange, number)
            for exchange in self.exchanges
            for number, name in enumerate(exchange.layout.names)
        }

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
        self.load(state, stacklevel=5)
        self.sparse_dims |= sparse_dims
        self._reset()
