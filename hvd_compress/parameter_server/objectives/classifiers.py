"""Classifiers of dense rows by cross-entropy: linear, and with one hidden layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hvd_compress.ops.layout import Layout
from hvd_compress.parameter_server.objectives.base import (
    CHUNK,
    MARGIN,
    Regularizer,
    Rows,
    Vector,
    check_columns,
    check_labels,
    check_parameters,
    describe,
    expected_smoothness,
    largest_eigenvalue,
)


class Classifier:
    """What Softmax and Perceptron share: cross-entropy over dense rows, worked on in chunks.

    Args:
        features: of shape (n, p), float32.
        labels: of shape (n,), int64, each in 0 to classes - 1.
        classes: number of classes, at least 2.
        regularizer: h.
        test: features and labels to test with, of as many columns.

    Raises:
        TypeError: if an array is not of its type.
        ValueError: if shapes do not fit, a label is out of range, there are no rows or a feature is not finite.
    """

    task: ClassVar[str]
    layout: Layout

    def __init__(
        self,
        features: NDArray[np.float32],
        labels: NDArray[np.int64],
        classes: int,
        regularizer: Regularizer,
        test: tuple[NDArray[np.float32], NDArray[np.int64]] | None = None,
    ) -> None:
        if classes < 2:
            raise ValueError(f"classes must be at least 2; got {classes}")
        _check_dense("features", features, "labels", labels, classes)
        if test is not None:
            _check_dense("test features", test[0], "test labels", test[1], classes)
            check_columns(test[0], features)
        self.features, self.labels, self.classes, self.regularizer, self.test = (
            np.ascontiguousarray(features),
            labels,
            classes,
            regularizer,
            test,
        )
        self.rows, self.columns = features.shape

    def add_gradient(self, x: Vector, features: Vector, labels: Rows, gradient: Vector) -> float:
        """Add the gradient's sum over these rows to ``gradient``; return the losses' sum."""
        raise NotImplementedError

    def logits(self, x: Vector, features: Vector) -> Vector:
        """Return a number for each row and class, of shape (rows, classes)."""
        raise NotImplementedError

    def gradient(self, x: Vector, rows: Rows | None = None) -> tuple[float, Vector]:
        check_parameters(x, self.layout.size)
        gradient = np.zeros_like(x)
        chunks = _chunks(self.features, self.labels, x.dtype, rows)
        return math.fsum(self.add_gradient(x, features, labels, gradient) for features, labels in chunks), gradient

    def value(self, x: Vector) -> float:
        check_parameters(x, self.layout.size)
        x = x.astype(np.float64, copy=False)
        chunks = _chunks(self.features, self.labels, x.dtype)
        return math.fsum(_cross_entropy(self.logits(x, features), labels) for features, labels in chunks)

    def right(self, x: Vector, index: int = 0, parts: int = 1) -> tuple[int, int] | None:
        """Return for how many test rows the label's logit is the largest."""
        if self.test is None:
            return None
        features, labels = self.test[0][index::parts], self.test[1][index::parts]
        chunks = _chunks(features, labels, x.dtype)
        return sum(int((self.logits(x, part).argmax(axis=1) == own).sum()) for part, own in chunks), len(labels)

    def description(self) -> dict[str, Any]:
        arrays = [self.features, self.labels, *(self.test or ())]
        common = describe(self.task, self.rows, self.columns, self.regularizer, self.labels, arrays)
        return common | {"classes": self.classes}


class Softmax(Classifier):
    """Several classes: cross-entropy of W a_i + b. The parameters are W, (classes, p), and b; zeros to begin with."""

    task: ClassVar[str] = "softmax"

    CURVATURE: ClassVar[float] = 0.5  # the largest eigenvalue of the loss' Hessian with respect to the logits

    def __init__(
        self,
        features: NDArray[np.float32],
        labels: NDArray[np.int64],
        classes: int,
        regularizer: Regularizer,
        test: tuple[NDArray[np.float32], NDArray[np.int64]] | None = None,
    ) -> None:
        super().__init__(features, labels, classes, regularizer, test)
        self.layout = Layout.of([("weights", (classes, self.columns)), ("bias", (classes,))])

    def initial(self, seed: int) -> NDArray[np.float32]:
        return np.zeros(self.layout.size, np.float32)

    def take(self, rows: Rows) -> Softmax:
        return Softmax(self.features[rows], self.labels[rows], self.classes, self.regularizer, self.test)

    def logits(self, x: Vector, features: Vector) -> Vector:
        """Return W a + b for each row a."""
        weights, bias = _split(x, self.layout)
        logits: Vector = features @ weights.T
        logits += bias
        return logits

    def add_gradient(self, x: Vector, features: Vector, labels: Rows, gradient: Vector) -> float:
        """Add the gradient's sum over these rows to ``gradient``; return the losses' sum."""
        slopes = self.logits(x, features)
        loss = _cross_entropy(slopes, labels, derive=True)
        weights, bias = _split(gradient, self.layout)
        weights += slopes.T @ features
        bias += slopes.sum(axis=0)
        return loss

    def smoothness(self, batch: int) -> float:
        return expected_smoothness(*self._smoothness, self.rows, batch)

    @cached_property
    def _smoothness(self) -> tuple[float, float]:
        """L_f and L_max; the bias is one more column, of ones."""

        def gram(vector: Vector) -> Vector:
            products = self.features @ vector[:-1] + vector[-1]
            return np.append(products @ self.features, products.sum())

        whole = largest_eigenvalue(gram, self.columns + 1) / self.rows
        largest = float(np.einsum("ij,ij->i", self.features, self.features).max()) + 1
        return min(whole * MARGIN, largest) * self.CURVATURE, largest * self.CURVATURE


class Perceptron(Classifier):
    """Several classes: cross-entropy of V relu(U a_i + b) + c. No convex one.

    The parameters are U, (hidden, p), b, V, (classes, hidden), and c. To begin with, b and c are zeros, U is as of He
    et al. 2015, for features of about unit variance, and V as of Glorot and Bengio 2010, both normal.

    Args:
        features: as for `Classifier`.
        labels: as for `Classifier`.
        classes: as for `Classifier`.
        hidden: number of hidden units, at least 1.
        regularizer: h.
        test: as for `Classifier`.
    """

    task: ClassVar[str] = "mlp"

    def __init__(
        self,
        features: NDArray[np.float32],
        labels: NDArray[np.int64],
        classes: int,
        hidden: int,
        regularizer: Regularizer,
        test: tuple[NDArray[np.float32], NDArray[np.int64]] | None = None,
    ) -> None:
        super().__init__(features, labels, classes, regularizer, test)
        if hidden < 1:
            raise ValueError(f"hidden must be at least 1; got {hidden}")
        self.hidden = hidden
        self.layout = Layout.of(
            [
                ("hidden.weight", (hidden, self.columns)),
                ("hidden.bias", (hidden,)),
                ("output.weight", (classes, hidden)),
                ("output.bias", (classes,)),
            ]
        )

    def initial(self, seed: int) -> NDArray[np.float32]:
        """Return random weights, the same for the same seed, and biases of zero."""
        random, x = np.random.default_rng(seed), np.zeros(self.layout.size, np.float32)
        first, _, second, _ = _split(x, self.layout)
        first[:] = random.standard_normal(first.shape, np.float32) * math.sqrt(2 / self.columns)
        second[:] = random.standard_normal(second.shape, np.float32) * math.sqrt(2 / (self.hidden + self.classes))
        return x

    def take(self, rows: Rows) -> Perceptron:
        return Perceptron(
            self.features[rows], self.labels[rows], self.classes, self.hidden, self.regularizer, self.test
        )

    def logits(self, x: Vector, features: Vector) -> Vector:
        """Return V relu(U a + b) + c for each row a."""
        return self._forward(x, features)[1]

    def add_gradient(self, x: Vector, features: Vector, labels: Rows, gradient: Vector) -> float:
        """Add the gradient's sum over these rows to ``gradient``; return the losses' sum."""
        active, slopes = self._forward(x, features)
        loss = _cross_entropy(slopes, labels, derive=True)
        first, first_bias, second, second_bias = _split(gradient, self.layout)
        second += slopes.T @ active
        second_bias += slopes.sum(axis=0)
        inner = slopes @ _split(x, self.layout)[2]
        inner *= active > 0
        first += inner.T @ features
        first_bias += inner.sum(axis=0)
        return loss

    def smoothness(self, batch: int) -> None:
        return None

    def description(self) -> dict[str, Any]:
        return super().description() | {"hidden": self.hidden}

    def _forward(self, x: Vector, features: Vector) -> tuple[Vector, Vector]:
        """Return the hidden units' outputs and the logits."""
        first, first_bias, second, second_bias = _split(x, self.layout)
        active: Vector = features @ first.T
        active += first_bias
        np.maximum(active, 0, out=active)
        logits: Vector = active @ second.T
        logits += second_bias
        return active, logits


def _cross_entropy(logits: Vector, labels: Rows, derive: bool = False) -> float:
    """Return the sum of the losses, and overwrite the logits: if `derive`, by the loss' derivatives."""
    logits -= logits.max(axis=1, keepdims=True)
    each = np.arange(len(labels))
    own = logits[each, labels]
    np.exp(logits, out=logits)
    sums = logits.sum(axis=1, keepdims=True)
    if derive:
        logits /= sums
        logits[each, labels] -= 1
    return float(np.log(sums).sum(dtype=np.float64) - own.sum(dtype=np.float64))


def _chunks(
    features: Vector, labels: Rows, dtype: np.dtype[Any], rows: Rows | None = None
) -> Iterator[tuple[Vector, Rows]]:
    """Cut the rows, or all, into parts of bounded size, with the features in this dtype."""
    for begin in range(0, len(labels) if rows is None else len(rows), CHUNK):
        part = slice(begin, begin + CHUNK)
        chosen = part if rows is None else rows[part]
        yield features[chosen].astype(dtype, copy=False), labels[chosen]


def _split(x: Vector, layout: Layout) -> list[Vector]:
    """Return views of the parameters in their shapes."""
    return [x[p.slice].reshape(p.shape) for p in layout.parameters]


def _check_dense(
    name: str, features: NDArray[np.float32], label_name: str, labels: NDArray[np.int64], classes: int
) -> None:
    if not isinstance(features, np.ndarray) or features.dtype != np.float32:
        raise TypeError(
            f"{name} must be an array of float32; got {getattr(features, 'dtype', type(features).__name__)}"
        )
    if features.ndim != 2:
        raise ValueError(f"{name} must be of two axes; got shape {features.shape}")
    check_labels(name, features, label_name, labels, np.int64)
    if not np.isfinite(features).all():
        raise ValueError(f"{name} must be finite")
    wrong = labels[(labels < 0) | (labels >= classes)]
    if wrong.size:
        raise ValueError(f"{label_name} must be in 0 to {classes - 1}; got {wrong[0]}")
