"""Images: MNIST and CIFAR-10."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.simulated.parts import Part, divided
from examples import datasets


class Images:
    """An image classifier with its training data, and those that it is scored with.

    Args:
        name: of the data set, and of its folder in `folder`.
        network: makes the network, given the images' channels and their side.
        folder: of the data.
        limit: training examples, 0 for all.
        augment: whether images are flipped and shifted at random.
        part: see `Part`.
        scored: images to score with at most, 0 for all.

    Attributes:
        model: the network.
        measure: what `score` returns.
    """

    measure = "accuracy"

    def __init__(
        self,
        name: str,
        network: Callable[[int, int], nn.Module],
        folder: str,
        *,
        limit: int = 0,
        augment: bool = False,
        part: Part = "test",
        scored: int = 0,
    ) -> None:
        data = datasets.load(name, str(Path(folder) / name))
        images, labels = (torch.from_numpy(array[: limit or None]) for array in (data.train_images, data.train_labels))
        trained, held_out = divided(len(images), part)
        self.images, self.labels = images[trained], labels[trained]
        tests = (torch.from_numpy(data.test_images), torch.from_numpy(data.test_labels))
        tests = tests if part == "test" else (images[held_out], labels[held_out])
        self.test_images, self.test_labels = (array[: scored or None] for array in tests)
        self.images = self.images.contiguous(memory_format=torch.channels_last)  # convolutions are faster so
        self.model = network(*self.images.shape[1:3]).to(memory_format=torch.channels_last)
        self.augment = augment

    def order(self, batch: int, random: torch.Generator) -> Tensor:
        """Return the examples in the order of an epoch."""
        return torch.randperm(len(self.images), generator=random)

    def loss(self, chosen: Tensor, random: torch.Generator) -> Tensor:
        """Return the mean loss of some examples."""
        images = self.images[chosen]
        return functional.cross_entropy(
            self.model(augmented(images, random) if self.augment else images), self.labels[chosen]
        )

    def score(self) -> float:
        """Return the accuracy on images that it is not trained with."""
        with torch.no_grad():
            right = sum(
                int((self.model(batch).argmax(dim=1) == answers).sum())
                for batch, answers in zip(self.test_images.split(500), self.test_labels.split(500), strict=True)
            )
        return right / len(self.test_images)


def augmented(images: Tensor, random: torch.Generator) -> Tensor:
    """Return images, some of them flipped, all shifted by the same up to 4 pixels."""
    flip = torch.rand(len(images), 1, 1, 1, generator=random) < 0.5
    images = torch.where(flip, images.flip(3), images)
    dy, dx = torch.randint(0, 9, (2,), generator=random).tolist()
    side = images.shape[2]
    return functional.pad(images, (4, 4, 4, 4), mode="reflect")[:, :, dy : dy + side, dx : dx + side]
