"""What a server does with a shard of the model in a step: each class is an algorithm's box."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from hvd_compress.parameter_server.codecs import Codec, Decoded, Model, Vector, affine
from hvd_compress.parameter_server.messages import Bytes
from hvd_compress.parameter_server.objectives import Regularizer


class Method(Protocol):
    """A server's part of an algorithm, for the coordinates that it owns.

    Attributes:
        snapshot: what the workers hold exactly since the epoch's beginning, float32 of shape (shard's size,).
        wants_gradient: whether it needs the gradient of f at the snapshot.
    """

    snapshot: Vector
    wants_gradient: bool

    def begin(self, epoch: int, gradient: Vector | None) -> None:
        """Begin an epoch; `gradient` is that of f at the snapshot."""

    def start(self, worker: int) -> Bytes:
        """Return what gives a worker the snapshot."""

    def model(self, worker: int) -> Bytes:
        """Return what a worker is sent for it to compute at."""

    def decode(self, worker: int, payload: Bytes) -> Any:
        """Return what a worker has sent; Malformed if it is nothing that a worker can have meant."""

    def ask(self, answers: Sequence[Any]) -> Bytes | None:
        """Return what else those who answered are asked for before there is a step, or None."""

    def step(self, answers: Sequence[Any]) -> None:
        """Do a step with the mean of some answers."""

    def end(self) -> None:
        """End the epoch: take the next snapshot."""

    def state(self) -> dict[str, Any]:
        """Return what `load` needs to go on from the last `end`: arrays that will not change, and numbers."""

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""


class AsyLPG:
    """Asynchronous low-precision gradient, variance-reduced (Yu, Wu, Huang 2019, algorithm 1); the server's part.

    1. grad f(x~), of all rows, comes from the workers.
    2. A worker is sent Q_x(x), and sends back Q(a), a = grad f_B(Q_x(x)) - grad f_B(x~) of a batch B:
       u = Q(a) + grad f(x~);  x <- prox_(eta h)(x - eta u).
    3. x~ <- x.

    With sparsified gradients it is Sparse-AsyLPG (algorithm 2 there), with floats both ways asynchronous SVRG.

    Args:
        start: x~ of the first epoch; it is not modified.
        regularizer: h.
        step: eta.
        up: how gradients come in.
        down: how the model goes out.
    """

    wants_gradient = True

    def __init__(self, start: Vector, regularizer: Regularizer, step: float, up: Codec, down: Model) -> None:
        self.snapshot = start
        self.regularizer, self.eta = regularizer, step
        self.up, self.down = up, down
        self.x = start.copy()
        self.gradient = start

    def begin(self, epoch: int, gradient: Vector | None) -> None:
        """Keep grad f(x~)."""
        assert gradient is not None
        self.gradient = gradient

    def start(self, worker: int) -> Bytes:
        """Return x~."""
        return self.snapshot.view(np.uint8)

    def model(self, worker: int) -> Bytes:
        """Return Q_x(x)."""
        return self.down.encode(self.x, self.snapshot)

    def decode(self, worker: int, payload: Bytes) -> Decoded:
        """Return Q(a)."""
        return self.up.decode(payload)

    def ask(self, answers: Sequence[Decoded]) -> None:
        """Nothing else."""

    def step(self, answers: Sequence[Decoded]) -> None:
        """Step x."""
        self._descend(self.x, answers)

    def end(self) -> None:
        """Let x~ <- x."""
        self.snapshot = self.x.copy()

    def state(self) -> dict[str, Any]:
        """Return x~."""
        return {"snapshot": self.snapshot}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from x~."""
        self.snapshot = state["snapshot"]
        self.x = self.snapshot.copy()

    def _descend(self, x: Vector, answers: Sequence[Decoded]) -> None:
        """Let x <- prox_(eta h)(x - eta grad f(x~) - eta Q(a))."""
        affine(x, 1.0, self.gradient, -self.eta, x)
        for answer in answers:
            answer.add_to(x, -self.eta / len(answers))
        self.regularizer.prox(x, self.eta)


class AccAsyLPG(AsyLPG):
    """The accelerated algorithm (Yu, Wu, Huang 2019, algorithm 3): one momentum, coupled to the snapshot.

    x = x~ + theta (y - x~), and gradients are taken at Q_x(x);  y <- prox_(eta h)(y - eta u);  x~ <- the mean of the
    epoch's x. y is carried from epoch to epoch, and eta = 1 / (sigma L theta).

    Args:
        step: eta * theta, that is 1 / (sigma L).
        theta: constant, for a strongly convex P; None for 2 / (s + 2) in epoch s.
    """

    def __init__(
        self,
        start: Vector,
        regularizer: Regularizer,
        step: float,
        up: Codec,
        down: Model,
        theta: float | None = None,
    ) -> None:
        super().__init__(start, regularizer, step, up, down)
        self.constant, self.product = theta, step
        self.theta = theta or 1.0
        self.y = start.copy()
        self._carried = self.y.copy()
        self._sum, self._steps = np.zeros_like(start), 0

    def begin(self, epoch: int, gradient: Vector | None) -> None:
        """Set theta and eta, and x."""
        super().begin(epoch, gradient)
        self.theta = self.constant or 2 / (epoch + 2)
        self.eta = self.product / self.theta
        self._couple()
        self._sum[:], self._steps = 0, 0

    def step(self, answers: Sequence[Decoded]) -> None:
        """Step y, and x with it."""
        self._descend(self.y, answers)
        self._couple()
        affine(self._sum, 1.0, self.y, 1.0, self._sum)
        self._steps += 1

    def end(self) -> None:
        """Let x~ <- the mean of x~ + theta (y - x~)."""
        if self._steps:
            mean = self._sum / np.float32(self._steps)
            self.snapshot = affine(self.snapshot, 1 - self.theta, mean, self.theta)
        self._carried = self.y.copy()

    def state(self) -> dict[str, Any]:
        """Return x~ and y."""
        return {"snapshot": self.snapshot, "y": self._carried}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from x~ and y."""
        super().load(state)
        self._carried = state["y"]
        self.y = self._carried.copy()

    def _couple(self) -> None:
        """Let x <- x~ + theta (y - x~)."""
        affine(self.snapshot, 1 - self.theta, self.y, self.theta, self.x)
