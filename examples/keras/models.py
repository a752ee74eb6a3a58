"""The three networks of examples/torch/models.py in Keras: `mlp`, `cnn`, `resnet9`."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers


def mlp(images: Any) -> Any:
    """Return a perceptron with two hidden layers of 256."""
    x = layers.Flatten()(images)
    for _ in range(2):
        x = layers.Dense(256, activation="relu")(x)
    return layers.Dense(10)(x)


def cnn(images: Any) -> Any:
    """Return two convolutions with pooling, and two dense layers."""
    x = images
    for width in (32, 64):
        x = layers.Conv2D(width, 3, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D()(x)
    x = layers.Dense(128, activation="relu")(layers.Flatten()(x))
    return layers.Dense(10)(x)


def conv_block(x: Any, width: int) -> Any:
    """Return a 3 x 3 convolution, batch norm and ReLU."""
    x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def residual(x: Any, width: int) -> Any:
    """Add to the input what two convolutions make of it."""
    return layers.Add()([x, conv_block(conv_block(x, width), width)])


def resnet9(images: Any, width: int = 64) -> Any:
    """Return the nine-layer residual network of the DAWNBench entries for CIFAR-10: 6.6 million parameters."""
    x = conv_block(images, width)
    x = layers.MaxPooling2D()(conv_block(x, 2 * width))
    x = residual(x, 2 * width)
    x = layers.MaxPooling2D()(conv_block(x, 4 * width))
    x = layers.MaxPooling2D()(conv_block(x, 8 * width))
    x = layers.GlobalMaxPooling2D()(residual(x, 8 * width))
    return layers.Rescaling(0.125)(layers.Dense(10, use_bias=False)(x))


MODELS = {"mlp": mlp, "cnn": cnn, "resnet9": resnet9}


def build(name: str, shape: tuple[int, ...]) -> keras.Model:
    """Return a network by name, for images of shape (side, side, channels)."""
    images = keras.Input(shape)
    return keras.Model(images, MODELS[name](images))
