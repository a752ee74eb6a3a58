"""Three networks for images of ten classes, `mlp`, `cnn`, `resnet9`, and one for text, `gpt`."""

from __future__ import annotations

import sys
from pathlib import Path

from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
import datasets


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


class GPT(nn.Module):
    """A decoder of transformer blocks, normalized before each part, that tells the next character."""

    def __init__(self, characters: int, context: int, width: int = 128, layers: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.characters, self.positions = nn.Embedding(characters, width), nn.Embedding(context, width)
        block = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.scores = nn.Linear(width, characters, bias=False)

    def forward(self, text: Tensor) -> Tensor:
        """Return the scores of the characters that follow each of `text`, whose shape is (n, context)."""
        length = text.shape[1]
        x = self.characters(text) + self.positions.weight[:length]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        scores: Tensor = self.scores(self.blocks(x, mask=mask, is_causal=True))
        return scores


IMAGE_MODELS = {"mlp": mlp, "cnn": cnn, "resnet9": resnet9}
MODELS = (*IMAGE_MODELS, "gpt")


def build(name: str, data: datasets.Dataset) -> nn.Module:
    """Return a network by name, for some data.

    Raises:
        ValueError: if the data are text and the network is one for images, or the other way round.
    """
    text = data.train_images.ndim == 2
    if text != (name == "gpt"):
        raise ValueError(f"--model {name} is for {'text' if name == 'gpt' else 'images'}, and the task's data are not")
    if text:
        return GPT(data.classes, data.train_images.shape[1])
    return IMAGE_MODELS[name](*data.train_images.shape[1:3])
