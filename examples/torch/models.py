"""Three networks for images of ten classes: `mlp`, `cnn`, `resnet9`."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def mlp(channels: int, side: int) -> nn.Module:
    """Return a perceptron with two hidden layers of 256."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * side * side, 256),
        nn.ReLU(),
        nn.Linear(256, 256),
        nn.ReLU(),
        nn.Linear(256, 10),
    )


def cnn(channels: int, side: int) -> nn.Module:
    """Return two convolutions with pooling, and two dense layers."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * (side // 4) ** 2, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


class Residual(nn.Module):
    """Adds its input to what two convolutions make of it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(*conv_block(width, width), *conv_block(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return x + f(x)."""
        return x + self.inner(x)


def conv_block(inputs: int, outputs: int) -> list[nn.Module]:
    """Return a 3 x 3 convolution, batch norm and ReLU."""
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


class Scale(nn.Module):
    """Multiplies by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Return the product."""
        return x * self.factor


def resnet9(channels: int, side: int, width: int = 64) -> nn.Module:
    """Return the nine-layer residual network of the DAWNBench entries for CIFAR-10: 6.6 million parameters.

    Its first layer has `width` channels.
    """
    return nn.Sequential(
        *conv_block(channels, width),
        *conv_block(width, 2 * width),
        nn.MaxPool2d(2),
        Residual(2 * width),
        *conv_block(2 * width, 4 * width),
        nn.MaxPool2d(2),
        *conv_block(4 * width, 8 * width),
        nn.MaxPool2d(2),
        Residual(8 * width),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(8 * width, 10, bias=False),
        Scale(0.125),
    )


MODELS = {"mlp": mlp, "cnn": cnn, "resnet9": resnet9}


def build(name: str, images: torch.Size) -> nn.Module:
    """Return a network by name, for images of shape (n, channels, side, side)."""
    return MODELS[name](images[1], images[2])
