"""`DistributedOptimizer`: Horovod's, with compressors that see the whole gradient and keep state."""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hvd_compress.compressors import AdamMomentum, spec
from hvd_compress.compressors.feedback import AdamMomentumOfMean
from hvd_compress.reduction.buckets import Rule
from hvd_compress.reduction.groups import as_groups, number_groups
from hvd_compress.reduction.settings import BUCKET_BYTES, DENSE_BELOW, Settings
from hvd_compress.reduction.stats import nothing_sent
from hvd_compress.torch.carrier import carrier
from hvd_compress.torch.compression import Compression, TorchCompression
from hvd_compress.torch.parameters import check_parameters
from hvd_compress.torch.reducer import GradientReducer
from hvd_compress.transports import Transport
from hvd_compress.transports.horovod import op_name


class _Methods:
    """The methods that replace those of the optimizer's own class, `_wrapped`."""

    _wrapped: Any
    _reducer: GradientReducer | None
    _synchronized: bool
    _should_synchronize: bool
    _stepping: bool
    _own_methods: dict[str, Any]  # what the optimizer's own instance had under these names
    _settings: Settings  # what the user said last

    @property
    def _present(self) -> Settings:
        """The settings now, of which the workers may have chosen the compression."""
        return self._settings if self._reducer is None else self._reducer.settings

    def synchronize(self) -> None:
        """Wait until the gradients are averaged, for instance to clip them before `step`.

        Raises:
            WorkersDisagree: in the first step, if the workers differ in version, settings or model.
            WorkerFailed: if another worker failed; its own error is in the message.
            RuntimeError: if gradients were changed after the backward pass.
            NonFiniteGradients: if one is not finite, with ``nonfinite="error"``.
        """
        try:
            _check_momentum(self, self._present)
        except ValueError as error:
            if self._reducer is not None:
                self._reducer.refuse(error)
            raise
        if self._reducer is not None:
            self._reducer.synchronize()
        self._synchronized = True

    @contextmanager
    def skip_synchronize(self) -> Iterator[None]:
        """Let `step` inside this context not synchronize, after a call of `synchronize`."""
        self._should_synchronize = False
        try:
            yield
        finally:
            self._should_synchronize = True

    def ignore_gradients(self) -> AbstractContextManager[None]:
        """Exchange no gradients that are computed inside this context: they are to be thrown away.

        That is how a discriminator's gradients from its generator's loss are discarded: call ``zero_grad`` afterwards.
        All workers must do so alike.
        """
        return self._reducer.ignore() if self._reducer is not None else nullcontext()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Synchronize and update the parameters.

        With a closure, each gradient that it computes is synchronized, and the loss that it returns is averaged over
        the workers: so all of them take the same decisions.

        Raises:
            RuntimeError: if it would exchange means again, after `synchronize` and without `skip_synchronize`, with a
                compressor that keeps state; and as `synchronize` does.
        """
        if self._stepping:  # called by what the optimizer's instance has for a method
            return self._wrapped.step(self, closure)
        self._stepping = True
        try:
            return self._step(closure)
        finally:
            self._stepping = False

    def _step(self, closure: Callable[[], Any] | None) -> Any:
        pending = closure is None or (self._reducer is not None and self._reducer.busy)
        if pending and self._should_synchronize:
            again = self._synchronized and self._reducer is not None and not self._reducer.busy
            if again and self._reducer.stateful:  # type: ignore[union-attr]
                raise RuntimeError(
                    "optimizer.step() was called after optimizer.synchronize() and would exchange the means again, "
                    f"which compression={self._present.named} takes for gradients. Call it inside `with "
                    "optimizer.skip_synchronize():`"
                )
            if self._synchronized:
                warnings.warn(
                    "optimizer.step() called without optimizer.skip_synchronize() context after "
                    "optimizer.synchronize(). This can cause training slowdown. You may want to consider using "
                    "optimizer.skip_synchronize() context if you use optimizer.synchronize() in your code.",
                    stacklevel=2,
                )
            self.synchronize()
        self._synchronized = False
        own = self._own_methods.get("step") or functools.partial(self._wrapped.step, self)
        if closure is None or self._reducer is None:
            return own(closure) if closure is not None else own()
        reducer = self._reducer

        def synchronized() -> Any:
            loss = closure()
            reducer.synchronize()
            return reducer.mean_loss(loss)

        return own(synchronized)

    def zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Reset the gradients.

        Raises:
            AssertionError: if they are on their way to the other workers.
        """
        if self._reducer is not None and self._reducer.busy:
            raise AssertionError(
                "optimizer.zero_grad() was called after loss.backward() but before optimizer.step() or "
                "optimizer.synchronize(). This is prohibited as it can cause a race condition."
            )
        own = self._own_methods.get("zero_grad") or functools.partial(self._wrapped.zero_grad, self)
        own(*args, **kwargs)

    def set_backward_passes_per_step(self, passes: int) -> None:
        """Change the number of backward passes whose gradients a step accumulates."""
        self._settings = replace(self._settings, backward_passes_per_step=passes)
        if self._reducer is not None:
            self._reducer.set_passes(passes)

    def set_compression(
        self, compression: TorchCompression | str, rules: Iterable[Rule | tuple[str, Any]] | None = None
    ) -> None:
        """Use another compressor, with its rules, from the next step on. All workers call it alike, between two steps.

        What residuals hold is added, once, to the next gradients of their parameters; all else begins anew. In the
        next step the workers compare their settings again, and nothing is sent during the backward pass.

        Args:
            compression: as in `DistributedOptimizer`.
            rules: as in `DistributedOptimizer`; the former ones are forgotten.

        Raises:
            RuntimeError: if gradients were computed that are not yet synchronized.
            ValueError, TypeError: as in `DistributedOptimizer`.
        """
        settings = self._present.with_compression(compression, rules)
        _check_momentum(self, settings)
        if self._reducer is not None:
            self._reducer.change(settings)
        self._settings = settings

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse: the workers have agreed on the parameters."""
        raise NotImplementedError(
            "parameters cannot be added to a DistributedOptimizer, they would not be averaged; "
            "add them to the optimizer that it wraps and wrap it anew"
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse: a copy would not be connected with the other workers."""
        raise TypeError(
            "a DistributedOptimizer can be neither copied nor pickled: copy the model, make an optimizer for the copy "
            "and wrap it, or save state_dict()"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimizer's state and, under "compression", the compressors'.

        Residuals are each worker's own: for an exact resumption every worker saves and loads its own state.
        """
        state = self._wrapped.state_dict(self)
        if self._reducer is not None:
            state["compression"] = self._reducer.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; gradients under way are dropped.

        Another worker's state may be loaded: its residual is left out, with a warning. With ``compression="auto"`` the
        state may be of any method: that one is chosen then, and "none" until the next steps are measured.

        Raises:
            ValueError: if the state belongs to another compression or model; then nothing has changed.
        """
        rest = dict(state_dict)
        compression = rest.pop("compression", None)
        former = self._wrapped.state_dict(self)
        self._wrapped.load_state_dict(self, rest)
        if self._reducer is not None:
            try:
                if self._present.automatic and compression and "compression" in compression:
                    _check_momentum(self, self._present.of_saved(compression["compression"]))
                self._reducer.load_state_dict(compression)
            except Exception:
                self._wrapped.load_state_dict(self, former)
                raise
        self._synchronized = False
        self._should_synchronize = True

    def compression_stats(self, phases: bool = False, per_bucket: bool = False) -> dict[str, Any]:
        """Return what this worker sent since construction, counted at the collectives.

        Keys: ``steps``; ``bytes_sent`` and ``bytes_received`` (the buffers handed to and got from the collectives);
        ``dense_bytes`` (what fp32 gradients would have been); ``ratio`` (dense_bytes / bytes_sent);
        ``compression_seconds`` and ``communication_seconds`` (in compressors, and in waiting for collectives);
        ``residual_norm`` (Euclidean, of all residuals); ``nonfinite_steps`` (whose means were not finite);
        ``workers_lost`` (those who left an elastic job, with what they had not sent); ``collectives`` (calls and bytes
        of each kind: "agreement" is the comparison of settings in the first step and after `set_compression`,
        "roll_call" what workers tell each other in each step, "measurement" what the choice for "auto" took). All zero
        with a single worker, who sends nothing.

        Args:
            phases: whether to tell, under "phases", where the seconds go: ``computing``, ``copy``, ``encode``,
                ``start``, ``wire``, ``decode``, ``optimizer`` and ``other``, which add up; and how much of the wire is
                hidden. `hvd_compress.reduction.stats.Stats` and ``docs/timeline.md`` say exactly what each is.
            per_bucket: whether to tell, under "buckets", of each bucket by itself: ``name``, ``compression``,
                ``parameters``, ``coordinates``, ``bytes_sent`` (payloads, since the plan was made) and
                ``residual_norm``.
        """
        return (
            self._reducer.stats(phases, per_bucket) if self._reducer is not None else nothing_sent(phases, per_bucket)
        )


def DistributedOptimizer(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, Tensor]] | None = None,
    compression: TorchCompression | str = Compression.none,
    backward_passes_per_step: int = 1,
    op: int | str = "average",
    gradient_predivide_factor: float = 1.0,
    num_groups: int = 0,
    groups: int | list[list[Tensor]] | None = None,
    sparse_as_dense: bool = False,
    process_set: Any = None,
    *,
    bucket_bytes: int = BUCKET_BYTES,
    dense_below: int = DENSE_BELOW,
    seed: int = 0,
    rules: Iterable[Rule | tuple[str, Any]] | None = None,
    nonfinite: str = "warn",
    grad_scaler: torch.amp.GradScaler | None = None,
    transport: Transport | str | None = None,
) -> Any:
    """Wrap an optimizer so that its gradients are averaged over Horovod's processes, compressed.

    The arguments up to `process_set` are those of ``horovod.torch.DistributedOptimizer``, in its order, and mean the
    same. The result is an instance of the optimizer's own class, and shares its parameters, state and attributes: what
    is made for the optimizer, such as a learning rate scheduler, works with the result. With a single process nothing
    is sent, and gradients stay as they are; but not in an elastic job, where others may join: there one worker is as
    many.

    Args:
        optimizer: any ``torch.optim.Optimizer``.
        named_parameters: usually ``model.named_parameters()``; all workers must have the same in the same order.
        compression: ``hvd_compress.torch.Compression.topk(ratio=0.01)``, or a spec such as ``"topk(ratio=0.01)"``; or
            ``"auto"``: nothing is compressed for 15 steps, which are measured. Then the workers measure the network,
            and on each of them the methods of `hvd_compress.advice.auto.CANDIDATES`, and all change to the one whose
            step is predicted to be the shortest, if it is 3 % shorter than without compression.
        backward_passes_per_step: passes whose gradients are accumulated before they are exchanged.
        op: "average" or "sum", or ``hvd.Average`` or ``hvd.Sum``.
        gradient_predivide_factor: with "average", divides before the sum and multiplies after the mean.
        num_groups: the former name of `groups`.
        groups: the number of buckets to divide the parameters into, or lists of those that share a bucket.
        sparse_as_dense: exchange sparse gradients as dense ones.
        process_set: the Horovod processes to average over (None: all); the others' gradients stay as they are.
        bucket_bytes: largest size of a bucket of gradients, in bytes, at least 1; methods of the whole gradient have
            one bucket.
        dense_below: parameters with fewer coordinates than this, and those with one axis, are sent uncompressed.
        seed: of the compressors' random numbers, the same on all workers.
        rules: exceptions: tuples (pattern, compression) such as ``("embed.*", "topk(ratio=0.001)")``, or
            `hvd_compress.torch.Rule` objects, which know sizes as well. The first that matches a parameter's name and
            size decides, whatever `dense_below` says.
        nonfinite: what comes of gradients that are not finite, on any worker: "warn" (all workers warn once, and the
            means are not finite) or "error" (all raise NonFiniteGradients).
        grad_scaler: the one that scales the loss: compressors then keep what they have not sent without its scale,
            which changes.
        transport: who carries the collectives instead of Horovod: "torch.distributed" (all its processes), or any
            `hvd_compress.transports.Transport` of tensors, such as ``ProcessGroupTransport(group)`` of
            ``hvd_compress.transports.torch_distributed``, or ``MPITransport(ops=TorchOps())`` of
            ``hvd_compress.transports.mpi``; of no other optimizer.

    Raises:
        ValueError: if an argument's value is not allowed, or a parameter has no name, or two have the same, or a rule
            matches no parameter's name, or both a compressor and the optimizer keep a momentum, or the optimizer is
            distributed already.
        TypeError: if `compression` is none, or `rules` holds anything but rules, or a parameter is not of a real
            floating dtype.
        ImportError: if no transport is given, and Horovod cannot be imported.
    """
    if isinstance(getattr(type(optimizer), "_wrapped", None), type):
        raise ValueError("the optimizer is a DistributedOptimizer already: wrap the one that it was made of")
    parameters = check_parameters(optimizer, named_parameters)
    settings = Settings(
        compression,
        rules or (),
        tuple(name for name, _ in parameters),
        op=op_name(op, "torch"),
        gradient_predivide_factor=gradient_predivide_factor,
        sparse_as_dense=sparse_as_dense,
        bucket_bytes=bucket_bytes,
        dense_below=dense_below,
        seed=seed,
        nonfinite=nonfinite,
        chooses=True,
        backward_passes_per_step=backward_passes_per_step,
        groups=number_groups(parameters, as_groups(num_groups, groups)),
    )
    _check_momentum(optimizer, settings)
    carried = carrier(transport, process_set)

    wrapped = type(optimizer)
    # Horovod's `broadcast_optimizer_state` tells a distributed optimizer by the module of its class.
    members = {**vars(_Methods), "_wrapped": wrapped, "__module__": "horovod.torch.optimizer"}
    for name in ("__dict__", "__weakref__"):
        members.pop(name, None)
    result: Any = object.__new__(type(wrapped.__name__, (wrapped,), members))
    object.__setattr__(result, "__dict__", optimizer.__dict__)
    _take_methods(result)
    result._synchronized = result._stepping = False
    result._should_synchronize = True
    result._reducer, result._settings = None, settings
    result._parameter_names = {p: name for name, p in parameters}  # Horovod's name for it, which tools read
    this = weakref.ref(result)

    def trained() -> Iterator[Tensor]:
        groups = own.param_groups if (own := this()) is not None else []
        return (p for group in groups for p in group["params"] if p.requires_grad)

    if carried is not None:
        result._reducer = GradientReducer(parameters, trained, settings, carried, carried.name, grad_scaler)
    return result


def _take_methods(result: Any) -> None:
    """Let what an instance has in place of a method, of a learning rate scheduler for instance, go through ours."""
    members = vars(result)
    result._own_methods = {}
    for name in ("step", "zero_grad"):
        if name not in members:
            continue
        own = members.pop(name)
        own = getattr(own, "_own", own)  # of an optimizer that was wrapped before
        ours = weakref.WeakMethod(getattr(result, name))

        def through_ours(*args: Any, ours: Any = ours, own: Any = own, **kwargs: Any) -> Any:
            method = ours()
            return own(*args, **kwargs) if method is None else method(*args, **kwargs)

        functools.update_wrapper(through_ours, own)
        through_ours._own = own  # type: ignore[attr-defined]
        result._own_methods[name] = own
        members[name] = through_ours


def _check_momentum(optimizer: Any, settings: Settings) -> None:
    """Raise ValueError if both a compressor and the optimizer would keep a momentum."""
    every = settings.compressors
    keeps = [c for c in every if c.has_momentum]
    for group in optimizer.param_groups:
        frozen = group.get("frozen_after")
        if frozen and not all(isinstance(c, AdamMomentum | AdamMomentumOfMean) and c.start == frozen for c in every):
            raise ValueError(
                "CompressedAdam exchanges its momentum, and its compression is chosen when it is made; another one "
                f"must have feedback=adam(start={frozen}); got {spec(settings.compression)}"
            )
        own = group.get("momentum") or (group.get("betas") or [0])[0]
        if keeps and own:
            raise ValueError(
                f"{spec(keeps[0])} keeps the momentum itself, so that the optimizer's must be 0; it is {own}. Set it "
                "to 0, or choose another feedback, such as feedback=ef"
            )
