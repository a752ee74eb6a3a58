"""An objective whose loss and gradient are those of a torch module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hvd_compress.ops.layout import Layout
from hvd_compress.parameter_server.objectives.base import CHUNK, Regularizer, Rows, Vector, digest


class TorchObjective:
    """The mean loss of a module over rows, as an `Objective`, on the CPU and in float32.

    The parameters of the module are overwritten whenever something is evaluated. Parts made by `take` share it.

    Args:
        module: as many outputs as inputs; no row's output may depend on other rows, nor may it draw at random.
        loss: ``loss(output, targets)`` returns the mean over the rows.
        inputs: one a row, along the first axis.
        targets: as many as inputs.
        regularizer: h.
        test: inputs and targets to test with: a row is right if its largest output is at its target.

    Raises:
        TypeError: if a parameter is not of float32.
        ValueError: if there are no parameters, no rows, or not as many targets as inputs.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        loss: Callable[[Any, torch.Tensor], torch.Tensor],
        inputs: torch.Tensor,
        targets: torch.Tensor,
        regularizer: Regularizer | None = None,
        test: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        named = list(module.named_parameters())
        if not named:
            raise ValueError("module must have parameters; it has none")
        for name, parameter in named:
            if parameter.dtype != torch.float32:
                raise TypeError(f"parameters must be of float32; {name} is of {parameter.dtype}")
        for what, (some, answers) in {"": (inputs, targets), "test ": test or (inputs, targets)}.items():
            if not 1 <= len(some) == len(answers):
                raise ValueError(f"{what}targets must be as many as {what}inputs, and some; got {len(answers)}")
        self.module, self.loss, self.inputs, self.targets, self.test = module, loss, inputs, targets, test
        self.regularizer = regularizer or Regularizer()
        self.rows = len(targets)
        self.layout = Layout.of((name, tuple(parameter.shape)) for name, parameter in named)
        self._parameters = [parameter for _, parameter in named]

    def initial(self, seed: int) -> NDArray[np.float32]:
        """Return the module's parameters as they are, whatever the seed."""
        return _flat(self._parameters)

    def take(self, rows: Rows) -> TorchObjective:
        """Return this objective with a copy of some rows only, and the same module."""
        chosen = torch.from_numpy(rows)
        return TorchObjective(
            self.module, self.loss, self.inputs[chosen], self.targets[chosen], self.regularizer, self.test
        )

    def gradient(self, x: Vector, rows: Rows | None = None) -> tuple[float, NDArray[np.float32]]:
        """Return the sums of the losses and of their gradients; those of unused parameters are zero."""
        self._load(x)
        total, gradient = 0.0, np.zeros_like(x)
        for inputs, targets in _chunks(self.inputs, self.targets, rows):
            loss = self.loss(self.module(inputs), targets) * len(targets)
            total += loss.item()
            parts = torch.autograd.grad(loss, self._parameters, allow_unused=True)
            gradient += _flat(
                [torch.zeros_like(p) if part is None else part for p, part in zip(self._parameters, parts, strict=True)]
            )
        return total, gradient

    def value(self, x: Vector) -> float:
        self._load(x)
        with torch.no_grad():
            chunks = _chunks(self.inputs, self.targets)
            return sum(self.loss(self.module(inputs), targets).item() * len(targets) for inputs, targets in chunks)

    def smoothness(self, batch: int) -> None:
        return None

    def right(self, x: Vector, index: int = 0, parts: int = 1) -> tuple[int, int] | None:
        """Return for how many test rows the target's output is the largest."""
        if self.test is None:
            return None
        self._load(x)
        inputs, targets = self.test[0][index::parts], self.test[1][index::parts]
        with torch.no_grad():
            chunks = _chunks(inputs, targets)
            return sum(int((self.module(part).argmax(dim=1) == own).sum()) for part, own in chunks), len(targets)

    def description(self) -> dict[str, Any]:
        tensors = [self.inputs, self.targets, *(self.test or ())]
        return {
            "task": "torch",
            "module": str(self.module),
            "rows": self.rows,
            "features": list(self.inputs.shape[1:]),
            "dtype": "float32",
            "l1": self.regularizer.l1,
            "l2": self.regularizer.l2,
            "digest": digest(tensor.detach().numpy() for tensor in tensors),
        }

    def _load(self, x: Vector) -> None:
        """Copy the parameters into the module."""
        if x.dtype != np.float32:
            raise TypeError(f"x must be of float32; got {x.dtype}")
        if x.shape != (self.layout.size,):
            raise ValueError(f"x must be of shape ({self.layout.size},); got {x.shape}")
        with torch.no_grad():
            for place, parameter in zip(self.layout.parameters, self._parameters, strict=True):
                parameter.copy_(torch.from_numpy(x[place.slice]).view(place.shape))


def _flat(tensors: list[Any]) -> NDArray[np.float32]:
    flat: NDArray[np.float32] = torch.cat([tensor.detach().reshape(-1) for tensor in tensors]).numpy()
    return flat


def _chunks(
    inputs: torch.Tensor, targets: torch.Tensor, rows: Rows | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Cut the rows, or all, into parts of bounded size."""
    for begin in range(0, len(targets) if rows is None else len(rows), CHUNK):
        part = slice(begin, begin + CHUNK)
        chosen = part if rows is None else torch.from_numpy(rows[part])
        yield inputs[chosen], targets[chosen]
