"""Logistic regression over sparse rows."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import expit

from hvd_compress.ops.layout import Layout
from hvd_compress.parameter_server.objectives.base import (
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


class LogisticRegression:
    """Two classes: f_i(x) = log(1 + exp(-y_i <a_i, x>)), for sparse rows a_i. Only zeros to begin with.

    Args:
        features: of shape (n, d), CSR, float32.
        labels: y, of shape (n,), float32, each -1 or +1.
        regularizer: h.
        test: features and labels to test with, of as many columns; a product of 0 counts as wrong.

    Raises:
        TypeError: if an array is not of its type.
        ValueError: if shapes do not fit, a label is another one, there are no rows or a feature is not finite.
    """

    CURVATURE: ClassVar[float] = 0.25  # the largest second derivative of the loss

    def __init__(
        self,
        features: Any,
        labels: NDArray[np.float32],
        regularizer: Regularizer,
        test: tuple[Any, NDArray[np.float32]] | None = None,
    ) -> None:
        _check_sparse("features", features, "labels", labels)
        if test is not None:
            _check_sparse("test features", test[0], "test labels", test[1])
            check_columns(test[0], features)
        self.features, self.labels, self.regularizer, self.test = sparse.csr_array(features), labels, regularizer, test
        self.rows, columns = features.shape
        self.layout = Layout.flat(columns, "weights")

    def initial(self, seed: int) -> NDArray[np.float32]:
        return np.zeros(self.layout.size, np.float32)

    def take(self, rows: Rows) -> LogisticRegression:
        return LogisticRegression(self.features[rows], self.labels[rows], self.regularizer, self.test)

    def gradient(self, x: Vector, rows: Rows | None = None) -> tuple[float, Vector]:
        check_parameters(x, self.layout.size)
        if rows is None:
            margins = self.labels * (self.features @ x)
            return _log_losses(margins), self.features.T @ (-self.labels * expit(-margins))
        # scipy.sparse takes more time to cut such a batch out than to multiply by it.
        indptr, labels = self.features.indptr, self.labels[rows]
        begins = indptr[rows]
        counts = indptr[rows + 1] - begins
        ends = np.cumsum(counts)
        places = np.arange(counts.sum()) + np.repeat(begins - ends + counts, counts)
        columns, values = self.features.indices[places], self.features.data[places]
        owners = np.repeat(np.arange(len(rows)), counts)
        margins = labels * np.bincount(owners, values * x[columns], len(rows))
        slopes = -labels * expit(-margins)
        gradient = np.bincount(columns, values * slopes[owners], self.layout.size)
        return _log_losses(margins), gradient.astype(x.dtype, copy=False)

    def value(self, x: Vector) -> float:
        check_parameters(x, self.layout.size)
        return _log_losses(self.labels * (self.features @ x.astype(np.float64)))

    def smoothness(self, batch: int) -> float:
        return expected_smoothness(*self._smoothness, self.rows, batch)

    def right(self, x: Vector, index: int = 0, parts: int = 1) -> tuple[int, int] | None:
        """Return how many test rows are on their label's side."""
        if self.test is None:
            return None
        features, labels = self.test[0][index::parts], self.test[1][index::parts]
        return int(np.count_nonzero(labels * (features @ x) > 0)), len(labels)

    def description(self) -> dict[str, Any]:
        arrays = []
        for features, labels in ((self.features, self.labels), *([self.test] if self.test else [])):
            arrays += [features.indptr, features.indices, features.data, labels]
        return describe("logistic", self.rows, self.layout.size, self.regularizer, self.labels, arrays)

    @cached_property
    def _smoothness(self) -> tuple[float, float]:
        """L_f and L_max."""
        features = self.features
        whole = largest_eigenvalue(lambda v: features.T @ (features @ v), self.layout.size) / self.rows
        largest = float(features.power(2).sum(axis=1).max())
        return min(whole * MARGIN, largest) * self.CURVATURE, largest * self.CURVATURE


def _log_losses(margins: Vector) -> float:
    return float(np.logaddexp(0, -margins).sum(dtype=np.float64))


def _check_sparse(name: str, features: Any, label_name: str, labels: NDArray[np.float32]) -> None:
    if not sparse.issparse(features) or features.format != "csr" or features.dtype != np.float32:
        what = f"{features.format} of {features.dtype}" if sparse.issparse(features) else type(features).__name__
        raise TypeError(f"{name} must be a CSR matrix of float32; got {what}")
    check_labels(name, features, label_name, labels, np.float32)
    if not np.isfinite(features.data).all():
        raise ValueError(f"{name} must be finite")
    if not (np.abs(labels) == 1).all():
        raise ValueError(f"{label_name} must be -1 or +1; got {labels[np.abs(labels) != 1][0]}")
