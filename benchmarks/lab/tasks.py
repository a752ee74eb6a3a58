"""What is trained: five tasks, each with the recipe of its uncompressed training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.common.networks import LARGE_MLP, dense
from benchmarks.simulated.characters import Characters
from benchmarks.simulated.images import Images
from benchmarks.simulated.parts import Part
from benchmarks.simulated.sentiment import Sentiment
from benchmarks.simulated.training import Task
from benchmarks.simulated.translation import Translation
from examples.torch.models import resnet9


@dataclass(frozen=True)
class Recipe:
    """A task, and how it is trained without compression.

    Attributes:
        title: what it is called in documents.
        load: returns the task, given the folder of the data and what it is scored with.
        batch: examples a step, of all workers together.
        epochs: passes over the training data.
        lr: the middle one of the learning rates that are tried.
        optimizer: "sgd", with a momentum of 0.9, or "adam", which is AdamW.
        decay: weight decay.
        larger_is_better: whether a larger score is.
    """

    title: str
    load: Callable[[str, Part], Task]
    batch: int
    epochs: int
    lr: float
    optimizer: str = "sgd"
    decay: float = 0.0
    larger_is_better: bool = True

    @property
    def text(self) -> str:
        """How it is trained, in a line."""
        return f"{self.optimizer}, lr {self.lr:g}, decay {self.decay:g}, batch {self.batch}, epochs {self.epochs}"


def perceptron(channels: int, side: int) -> nn.Module:
    """Return a perceptron with two hidden layers of 1,024: 1.9 million parameters for MNIST."""
    return nn.Sequential(nn.Flatten(), *dense(channels * side * side, 1024, 1024, 10))


def _mlp(folder: str, part: Part) -> Task:
    return Images("mnist", perceptron, folder, part=part)


def _resnet9(folder: str, part: Part) -> Task:
    return Images("cifar10", partial(resnet9, width=8), folder, augment=True, part=part, scored=4000)


def _transformer(folder: str, part: Part) -> Task:
    return Translation(folder, width=128, part=part, scored=300)


def _gpt(folder: str, part: Part) -> Task:
    return Characters(folder, limit=10_000, part=part, scored=300)


def _textcnn(folder: str, part: Part) -> Task:
    return Sentiment(folder, part=part)


class Synthetic:
    """A network with a batch of random numbers: for seconds a step alone."""

    measure = "loss"

    def __init__(self, network: nn.Module, inputs: Tensor, labels: Tensor) -> None:
        self.model, self.inputs, self.labels = network, inputs, labels

    def order(self, batch: int, random: torch.Generator) -> Tensor:
        """Return the numbers of the examples."""
        return torch.arange(len(self.inputs))

    def loss(self, chosen: Tensor, random: torch.Generator) -> Tensor:
        """Return the mean loss of some examples."""
        return functional.cross_entropy(self.model(self.inputs[chosen]), self.labels[chosen])

    def score(self) -> float:
        """Return the mean loss of all examples."""
        return float(self.loss(self.order(0, torch.Generator()), torch.Generator()))


def _large_mlp(folder: str, part: Part) -> Task:
    return Synthetic(dense(*LARGE_MLP), torch.randn(32, LARGE_MLP[0]), torch.randint(10, (32,)))


def _computing(folder: str, part: Part) -> Task:
    return Synthetic(resnet9(3, 32, width=16), torch.randn(192, 3, 32, 32), torch.randint(10, (192,)))


TASKS = {
    "mlp": Recipe("perceptron, MNIST", _mlp, batch=128, epochs=2, lr=0.05),
    "resnet9": Recipe("ResNet-9, CIFAR-10", _resnet9, batch=128, epochs=5, lr=0.2, decay=5e-4),
    "transformer": Recipe(
        "Transformer, Multi30k", _transformer, 64, epochs=1, lr=2e-3, optimizer="adam", larger_is_better=False
    ),
    "gpt": Recipe("GPT, characters", _gpt, batch=16, epochs=1, lr=2e-3, optimizer="adam", larger_is_better=False),
    "textcnn": Recipe("TextCNN, rt-polarity", _textcnn, batch=64, epochs=5, lr=4e-3, optimizer="adam", decay=0.01),
}
TIMED = TASKS | {
    "large-mlp": Recipe("perceptron of 8.4 M", _large_mlp, batch=32, epochs=1, lr=0.01),
    "computing": Recipe("ResNet-9 of 0.4 M", _computing, batch=192, epochs=1, lr=0.01),
}
"""The tasks, and two networks for seconds a step alone: one of many parameters, and one that computes long."""
