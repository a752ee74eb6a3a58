"""Adam with a compressed momentum: 1-bit Adam and its kin."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hvd_compress.compressors import AdamMomentum, Compressor
from hvd_compress.compressors.feedback import AdamMomentumOfMean
from hvd_compress.compressors.named import as_compressor
from hvd_compress.reduction.buckets import PLAIN, Rule
from hvd_compress.reduction.settings import as_rules
from hvd_compress.torch.carrier import carrier
from hvd_compress.torch.compression import TorchCompression
from hvd_compress.torch.optimizer import DistributedOptimizer
from hvd_compress.torch.reducer import GradientReducer
from hvd_compress.transports import Transport


class FrozenAdam(torch.optim.Optimizer):
    """Adam with a second moment that is frozen once ``p.grad`` holds the averaged first moment.

    The reducer of the gradients knows when that is: in a first phase they are gradients. Weight decay is decoupled
    (Loshchilov and Hutter 2019). A coordinate with a second moment of 0 is not updated, only decayed: it has had no
    gradient, and a compressed first moment is not 0 there.

    Args:
        params: the parameters, or groups of them.
        lr, beta1, beta2, eps, weight_decay: as for ``torch.optim.AdamW``.
        frozen_after: steps of the first phase; 0 stands for never.
    """

    _reducer: GradientReducer | None = None  # that of the `DistributedOptimizer` which this one becomes

    def __init__(
        self,
        params: Any,
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        frozen_after: int,
    ) -> None:
        defaults = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"frozen_after": frozen_after})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters; return what the closure returns, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, except ``frozen_after``: another number of processes may have saved it.

        Where an older one lacks ``exp_avg``, it is 0 until the next step sets it; where it lacks ``variance_steps``,
        the variance was frozen when it said.
        """
        frozen_after = [group["frozen_after"] for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, steps in zip(self.param_groups, frozen_after, strict=True):
            then, group["frozen_after"] = group["frozen_after"], steps
            for parameter in group["params"]:
                if state := self.state.get(parameter):
                    state.setdefault("exp_avg", torch.zeros_like(parameter))
                    state.setdefault("variance_steps", min(state["step"], then or state["step"]))

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["step"] = state["variance_steps"] = 0
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        summed = state["step"]  # the gradients in the first moment
        exchanged = self._reducer.steps_of(parameter) if self._reducer is not None else 0
        if group["frozen_after"] and exchanged > group["frozen_after"]:
            state["exp_avg"].copy_(gradient)
            summed = exchanged
        else:
            state["exp_avg"].lerp_(gradient, 1 - group["beta1"])
            state["exp_avg_sq"].mul_(group["beta2"]).addcmul_(gradient, gradient, value=1 - group["beta2"])
            state["variance_steps"] += 1
        root = math.sqrt(1 - group["beta2"] ** state["variance_steps"])
        denominator = torch.threshold_(state["exp_avg_sq"].sqrt(), 0.0, math.inf).add_(root * group["eps"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.addcdiv_(state["exp_avg"], denominator, value=-group["lr"] * root / (1 - group["beta1"] ** summed))


def CompressedAdam(
    params: Any,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    *,
    named_parameters: Iterable[tuple[str, Tensor]],
    warmup_steps: int,
    compression: TorchCompression | str = "onebit",
    rules: Iterable[Rule | tuple[str, Any]] | None = None,
    process_set: Any = None,
    transport: Transport | str | None = None,
    **settings: Any,
) -> Any:
    """Return Adam in two phases, averaged over Horovod's processes (Tang et al. 2021, algorithm 1).

    In the first phase gradients are averaged uncompressed, and it is AdamW. Then the variance is frozen, and workers
    exchange their momenta, compressed, with error feedback: with ``compression="onebit"``, its default, or
    ``"ef_signsgd"`` that is 1-bit Adam. The feedback that a compression comes with is not used. A coordinate that had
    no gradient in the first phase (of an unused row of an embedding, say) is not updated in the second, but for its
    weight decay: its variance is 0, and its momentum the compression's noise. With a single process the variance is
    never frozen. After `set_compression`, and when other parameters are trained than before, the first phase begins
    anew. The other way to compress under Adam, its gradients, is
    ``DistributedOptimizer(torch.optim.Adam(...), compression=...)``.

    Args:
        params: the parameters, or groups of them.
        lr: learning rate.
        betas: decay of the averages of gradient and square.
        eps: added to the root of the variance.
        weight_decay: decoupled, as of ``torch.optim.AdamW``.
        named_parameters: usually ``model.named_parameters()``.
        warmup_steps: those of the first phase, at least 1: until the variance has settled, some 15 to 20 % of all.
        compression: of the momentum: any that allows error feedback, or "none".
        rules: exceptions, as in `DistributedOptimizer`.
        process_set: as in `DistributedOptimizer`.
        transport: as in `DistributedOptimizer`.
        settings: further arguments of `DistributedOptimizer`.

    Raises:
        ValueError: if an argument is outside its range, or a compression allows no feedback.
        TypeError: if an argument is of the wrong type.
    """
    for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
        if not value >= 0:
            raise ValueError(f"CompressedAdam: {name} must be at least 0; got {value}")
    for i, beta in enumerate(betas):
        if not 0 <= beta < 1:
            raise ValueError(f"CompressedAdam: betas[{i}] must be in [0, 1); got {beta}")
    named = list(named_parameters)

    def of_momentum(compressor: Compressor) -> Compressor:
        if compressor == PLAIN:
            return AdamMomentumOfMean(warmup_steps, betas[0])
        return AdamMomentum(compressor.bare, warmup_steps, betas[0])

    compressor = of_momentum(as_compressor(compression))
    own_rules = [
        replace(rule, compression=of_momentum(rule.compression)) for rule in as_rules(rules, [n for n, _ in named])
    ]
    several = carrier(transport, process_set) is not None
    optimizer = FrozenAdam(params, lr, *betas, eps, weight_decay, warmup_steps if several else 0)
    return DistributedOptimizer(
        optimizer,
        named,
        compressor,  # type: ignore[arg-type]
        sparse_as_dense=True,
        process_set=process_set,
        transport=transport,
        rules=own_rules,
        **settings,
    )
