"""The steps of a training with simulated workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn


class Team(Protocol):
    """The workers of a training: all of them in this process, or one of those on real ranks.

    Attributes:
        number: of all workers.
        own: the ranks of those that are computed in this process.
    """

    number: int
    own: Sequence[int]

    def collect(self) -> None:
        """Take one worker's gradients from the parameters."""

    def reduce(self) -> None:
        """Set the parameters' gradients to the mean of all workers'."""


class Task(Protocol):
    """A model with its data.

    Attributes:
        measure: the name of what `score` returns.
    """

    model: nn.Module
    measure: str

    def order(self, batch: int, random: torch.Generator) -> Tensor:
        """Return the examples in the order of an epoch."""

    def loss(self, chosen: Tensor, random: torch.Generator) -> Tensor:
        """Return the mean loss of some examples."""

    def score(self) -> float:
        """Return the model's measure on data that it is not trained with."""


def warmed_then_linear(largest: float, warmup: float) -> Callable[[int, int], float]:
    """Return a schedule of the learning rate: given the steps done and all steps, the rate of the next step.

    It rises from 0 to `largest` in the first `warmup` of the steps, and falls to 0 at the end.
    """

    def rate(done: int, total: int) -> float:
        rising = max(1, round(warmup * total))
        return largest * min((done + 1) / rising, 1.0) * min(1.0, (total - done) / max(1, total - rising))

    return rate


def train_steps(
    task: Task,
    workers: Team,
    optimizer: torch.optim.Optimizer,
    rate: Callable[[int, int], float],
    *,
    batch: int,
    epochs: int,
    seed: int,
    pause: int = 0,
) -> Iterator[int]:
    """Train, and yield the number of steps done whenever the model is to be scored, which is then in evaluation mode.

    Args:
        task: the model with its data.
        workers: exchange the gradients, and compute those of their own.
        optimizer: of the model's parameters.
        rate: the learning rate of a step, given the steps done and all steps.
        batch: examples a step, of all workers together.
        epochs: passes over the training data.
        seed: of the data's order.
        pause: steps between two scorings; 0 for one at the end of each epoch. After the last step there is always one.
    """
    random = torch.Generator().manual_seed(seed)
    share, done = batch // workers.number, 0
    task.model.train()
    for epoch in range(epochs):
        order = task.order(batch, random)
        steps = len(order) // batch
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate(done, epochs * steps)
            for worker in workers.own:
                first = step * batch + worker * share
                task.loss(order[first : first + share], random).backward()
                workers.collect()
            workers.reduce()
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            last = step == steps - 1 and (not pause or epoch == epochs - 1)
            if last or (pause and done % pause == 0):
                task.model.eval()
                yield done
                task.model.train()
    task.model.eval()
