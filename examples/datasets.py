"""The data sets of the examples, as NumPy arrays.

`digits` comes with scikit-learn; `mnist` and `cifar10` are read from a folder, in the formats in which they are
published: MNIST's four IDX files (gzipped or not), CIFAR-10's "binary version". `text` is any file of text, by default
this project's own documents.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

IMAGES = ("digits", "mnist", "cifar10")
TASKS = (*IMAGES, "text")
CONTEXT = 64  # characters of an example of text
DOCUMENTS = Path(__file__).parents[1]


class Dataset(NamedTuple):
    """Images of shape (n, channels, height, width), float32, standardized; labels of shape (n,), int64, 0 to 9.

    Of text, the "images" are its characters, int64 of shape (n, CONTEXT), each the number of one among those that the
    text has, and the labels, of the same shape, are those that follow.
    """

    train_images: NDArray[Any]
    train_labels: NDArray[np.int64]
    test_images: NDArray[Any]
    test_labels: NDArray[np.int64]

    @property
    def classes(self) -> int:
        """The number of different labels."""
        return 1 + int(max(self.train_labels.max(), self.test_labels.max()))


class DataMissing(FileNotFoundError):
    """The folder does not hold what was looked for."""


def load(task: str, folder: str | None) -> Dataset:
    """Load a task's data, from a folder, or from a file of text.

    Raises:
        DataMissing: if the folder is not given or lacks the files; the message says what was looked for.
        ValueError: if a file is not in the expected format, damaged or cut off; the message names it.
    """
    if task == "text":
        return _text(folder)
    if task == "digits":
        arrays = _digits()
    else:
        if folder is None:
            raise DataMissing(f"the task {task} needs --data DIR, a folder with {_FILES[task]}")
        if not Path(folder).is_dir():
            raise DataMissing(f"--data {folder} is no folder; {task} needs one with {_FILES[task]}")
        arrays = _mnist(Path(folder)) if task == "mnist" else _cifar10(Path(folder))
    train, train_labels, test, test_labels = arrays
    mean = train.mean(axis=(0, 2, 3), keepdims=True)
    std = train.std(axis=(0, 2, 3), keepdims=True)
    return Dataset((train - mean) / std, train_labels, (test - mean) / std, test_labels)


_FILES = {
    "mnist": "{train,t10k}-{images-idx3,labels-idx1}-ubyte, with or without .gz",
    "cifar10": "the binary version: data_batch_1.bin (up to data_batch_5.bin) and test_batch.bin, "
    "there or in its folder cifar-10-batches-bin",
}


def _text(file: str | None) -> Dataset:
    paths = [DOCUMENTS / "README.md", *sorted((DOCUMENTS / "docs").glob("*.md"))] if file is None else [Path(file)]
    try:
        text = "".join(path.read_text(encoding="utf-8") for path in paths)
    except (OSError, UnicodeDecodeError) as error:
        raise DataMissing(f"--data {file} cannot be read as text: {error}") from error
    _, numbers = np.unique(list(text), return_inverse=True)
    examples = (len(numbers) - 1) // CONTEXT
    if examples < 20:
        raise ValueError(f"--data {file} has {len(text)} characters; the task text needs {20 * CONTEXT + 1}")
    numbers = numbers.astype(np.int64)
    inputs, following = (numbers[i : i + examples * CONTEXT].reshape(examples, CONTEXT) for i in (0, 1))
    train = examples - examples // 10  # the last tenth is for tests
    return Dataset(inputs[:train], following[:train], inputs[train:], following[train:])


def _digits() -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 1, 8, 8).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order], labels[order].astype(np.int64)
    test = len(images) // 5
    return images[test:], labels[test:], images[:test], labels[:test]


def _mnist(folder: Path) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    def read(name: str) -> NDArray[np.uint8]:
        for path, opener in ((folder / f"{name}.gz", gzip.open), (folder / name, open)):
            if path.is_file():
                try:
                    with opener(path, "rb") as file:
                        data = file.read()
                except (EOFError, OSError, zlib.error) as error:
                    raise ValueError(f"{path} cannot be read: {error}") from error
                return _idx(path, data)
        raise DataMissing(f"{folder} has neither {name}.gz nor {name}; mnist needs {_FILES['mnist']}")

    def pair(part: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        images, labels = read(f"{part}-images-idx3-ubyte"), read(f"{part}-labels-idx1-ubyte")
        if images.ndim != 3 or labels.shape != images.shape[:1] or not images.size or labels.max() > 9:
            raise ValueError(
                f"{folder}: the {part} images, of shape {images.shape}, and labels, of shape {labels.shape} and up to "
                f"{labels.max(initial=0)}, are not images with a label of 0 to 9 each"
            )
        return images[:, None].astype(np.float32), labels.astype(np.int64)

    train, test = pair("train"), pair("t10k")
    if train[0].shape[1:] != test[0].shape[1:]:
        raise ValueError(f"{folder}: the t10k images are not of the size of the train images")
    return *train, *test


def _idx(path: Path, data: bytes) -> NDArray[np.uint8]:
    """Parse IDX: two zero bytes, the type (8: uint8), the number of axes, their sizes (big-endian), the elements."""
    axes = data[3] if len(data) >= 4 else 0
    shape = tuple(np.frombuffer(data, ">u4", axes, 4).tolist()) if len(data) >= 4 + 4 * axes else ()
    if data[:3] != b"\0\0\x08" or len(data) != 4 + 4 * axes + math.prod(shape):
        raise ValueError(f"{path} is not an IDX file of unsigned bytes, or is cut off")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _cifar10(folder: Path) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    if not (folder / "test_batch.bin").is_file() and (folder / "cifar-10-batches-bin").is_dir():
        folder = folder / "cifar-10-batches-bin"
    batches = [path for i in range(1, 6) if (path := folder / f"data_batch_{i}.bin").is_file()]
    missing = [path.name for path in (folder / "data_batch_1.bin", folder / "test_batch.bin") if not path.is_file()]
    if missing:
        raise DataMissing(f"{folder} lacks {' and '.join(missing)}; cifar10 needs {_FILES['cifar10']}")

    def read(paths: list[Path]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        records = []
        for path in paths:
            data = np.fromfile(path, np.uint8)
            if not data.size or data.size % 3073:
                raise ValueError(f"{path} is not of CIFAR-10's binary version: its size is no multiple of 3073 bytes")
            records.append(data.reshape(-1, 3073))
        joined = np.concatenate(records)
        return joined[:, 1:].reshape(-1, 3, 32, 32).astype(np.float32), joined[:, 0].astype(np.int64)

    return *read(batches), *read([folder / "test_batch.bin"])
