"""The data of the jobs, read from files as they are published.

`logistic` reads a LIBSVM file, or the sentences of the movie review polarity data (rt-polarity.pos and .neg);
`softmax` and `mlp` read MNIST's four IDX files.
"""

from __future__ import annotations

import math
import sys
import zlib
from pathlib import Path

import numpy as np

from hvd_compress.parameter_server.objectives import LogisticRegression, Objective, Perceptron, Regularizer, Softmax

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import datasets

TASKS = ("logistic", "softmax", "mlp")
SENTENCES = ("rt-polarity.neg", "rt-polarity.pos")
LOGISTIC = f"a LIBSVM file (plain, .gz or .bz2), or a folder with one, or with {' and '.join(SENTENCES)}"


MOST_FEATURES = 100_000_000  # of a LIBSVM file, unless --features says how many there are: more are a damaged index


def load(task: str, path: str, hidden: int, regularizer: Regularizer, features: int | None = None) -> Objective:
    """Load a task's data.

    Args:
        task: one of `TASKS`.
        path: for "logistic" a LIBSVM file of two classes, of which the larger label is +1; or a folder with exactly
            one; or a folder with rt-polarity.pos, of +1, and rt-polarity.neg: Latin-1, one sentence a line, turned
            into TF-IDF of single words. Rows are scaled to norm 1. Their order is that of the files, negative
            sentences first. For "softmax" and "mlp" a folder with MNIST's four files. Images are flattened and
            standardized, by the mean and the standard deviation of all training pixels; for "softmax" they are
            divided by 28 as well, which makes the mean square of their norms 1. MNIST has test data.
        hidden: number of hidden units of "mlp".
        regularizer: h.
        features: of a LIBSVM file; None for the largest index in it.

    Raises:
        OSError: if there is no such file; the message says what was looked for.
        ValueError: if the task is another one, or a file is not as expected, damaged or cut off; the message names it.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}; got {task!r}")
    if task == "logistic":
        return _logistic(Path(path), regularizer, features)
    try:
        data = datasets.load("mnist", path)
    except datasets.DataMissing as error:
        raise datasets.DataMissing(str(error) if "--data" in str(error) else f"--data {path}: {error}") from None
    train, test = (images.reshape(len(images), -1) for images in (data.train_images, data.test_images))
    if task == "mlp":
        return Perceptron(train, data.train_labels, 10, hidden, regularizer, (test, data.test_labels))
    scale = np.float32(1 / math.sqrt(train.shape[1]))
    return Softmax(train * scale, data.train_labels, 10, regularizer, (test * scale, data.test_labels))


def _logistic(path: Path, regularizer: Regularizer, features: int | None) -> LogisticRegression:
    if not path.exists():
        raise FileNotFoundError(f"--data {path} does not exist; logistic needs {LOGISTIC}")
    if path.is_file():
        return _libsvm(path, regularizer, features)
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    names = [file.name for file in files]
    if not set(SENTENCES) & set(names):
        if len(files) != 1:
            raise FileNotFoundError(f"--data {path} holds {len(files)} files; logistic needs {LOGISTIC}")
        return _libsvm(files[0], regularizer, features)
    missing = [name for name in SENTENCES if name not in names]
    if missing:
        raise FileNotFoundError(f"--data {path} lacks {missing[0]}; logistic needs {LOGISTIC}")
    return _sentences(path, regularizer)


def _libsvm(path: Path, regularizer: Regularizer, count: int | None) -> LogisticRegression:
    # Imported where they are used: scikit-learn takes longer to import than everything else that a rank needs.
    from sklearn.datasets import load_svmlight_file
    from sklearn.preprocessing import normalize

    try:
        features, labels = load_svmlight_file(str(path), dtype=np.float32)
    except (EOFError, OSError, OverflowError, ValueError, zlib.error) as error:
        raise ValueError(f"--data {path} is not a LIBSVM file, or is damaged: {error}") from error
    found, most = features.shape[1], count or MOST_FEATURES
    if found > most:
        known = "it has" if count else "more are taken for damage unless it has"
        raise ValueError(f"--data {path} has feature {found}; {known} --features {count or 'N'}, at most {most}")
    if count:
        features.resize(features.shape[0], count)
    if not (np.isfinite(features.data).all() and np.isfinite(labels).all()):
        raise ValueError(f"--data {path} must hold finite numbers")
    classes = np.unique(labels)
    if len(classes) != 2:
        some = ", ".join(f"{label:g}" for label in classes[:5])
        raise ValueError(f"--data {path} must have exactly two classes; it has {len(classes)}: {some}")
    signs = np.where(labels == classes[1], 1, -1).astype(np.float32)
    return LogisticRegression(normalize(features), signs, regularizer)


def _sentences(path: Path, regularizer: Regularizer) -> LogisticRegression:
    from sklearn.feature_extraction.text import TfidfVectorizer

    sentences: list[str] = []
    signs: list[int] = []
    for name, sign in zip(SENTENCES, (-1, 1), strict=True):
        lines = [line for line in (path / name).read_text("latin-1").split("\n") if line.strip()]
        if not lines:
            raise ValueError(f"--data {path}: {name} is empty")
        sentences += lines
        signs += [sign] * len(lines)
    try:
        features = TfidfVectorizer(dtype=np.float32).fit_transform(sentences)
    except ValueError as error:
        raise ValueError(f"--data {path}: {' and '.join(SENTENCES)} hold no sentences: {error}") from error
    return LogisticRegression(features, np.array(signs, np.float32), regularizer)
