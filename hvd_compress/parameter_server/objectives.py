"""What is minimized: P(x) = f(x) + h(x), where f is the mean of a loss over the rows of a data set.

Data are float32. Gradients are computed in the dtype of the parameters: float32 in training, float64 to find the
optimum. Sums of losses and of gradients are returned, not means, so that those of several parts add up.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import expit

from hvd_compress.ops.layout import Layout

Vector = NDArray[Any]  # float32 or float64
Rows = NDArray[np.int64]

CHUNK = 1024  # rows of a dense matrix that are worked on at once
MARGIN = 1.01  # for the error of the power iterations
SHRINK = 0.95  # of the curvature in an iteration of `minimum`, at most
ROUNDING = 1e-14  # of a mean of losses, relative


@dataclass(frozen=True)
class Regularizer:
    """h(x) = l1 ||x||_1 + l2/2 ||x||^2, over all coordinates.

    Attributes:
        l1: at least 0.
        l2: at least 0.

    Raises:
        ValueError: if one of them is negative or not finite.
    """

    l1: float = 0.0
    l2: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("l1", self.l1), ("l2", self.l2)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite; got {value}")

    def value(self, x: Vector) -> float:
        """Return h(x), computed in float64."""
        total = 0.0
        if self.l1:
            total += self.l1 * float(np.abs(x).sum(dtype=np.float64))
        if self.l2:
            exact = x.astype(np.float64, copy=False)
            total += self.l2 / 2 * float(exact @ exact)
        return total

    def prox(self, x: Vector, step: float) -> None:
        """Replace x, float32 or float64, by the z that minimizes step h(z) + ||z - x||^2 / 2; step is above 0."""
        if self.l1:
            threshold = step * self.l1
            x -= np.clip(x, -threshold, threshold)
        if self.l2:
            x *= 1 / (1 + step * self.l2)


class Objective(Protocol):
    """P(x) = f(x) + h(x) with f = (1/n) sum_i f_i, where f_i is the loss on row i.

    Attributes:
        layout: where the parameters lie in x, of shape (d,).
        rows: n.
        regularizer: h.
    """

    layout: Layout
    rows: int
    regularizer: Regularizer

    def initial(self, seed: int) -> NDArray[np.float32]:
        """Return the parameters to begin with, of shape (d,)."""
        ...

    def take(self, rows: Rows) -> Objective:
        """Return this objective with a copy of some rows only: a worker's part. The test data stay."""
        ...

    def gradient(self, x: Vector, rows: Rows | None = None) -> tuple[float, Vector]:
        """Return the sums of f_i(x) and of its gradients, computed in the dtype of x.

        Args:
            x: the parameters, of shape (d,).
            rows: which i, in 0 to n - 1, as often as they occur; None stands for all.

        Raises:
            TypeError: if x is of a dtype that is not supported.
            ValueError: if x is not of shape (d,).
        """
        ...

    def value(self, x: Vector) -> float:
        """Return the sum of f_i(x) over all rows."""
        ...

    def smoothness(self, batch: int) -> float | None:
        """Return the expected smoothness of the mean over a batch, or None if there is no bound on it.

        Args:
            batch: number of different rows, drawn uniformly, in 1 to n; for n it is the smoothness of f.
        """
        ...

    def right(self, x: Vector, index: int = 0, parts: int = 1) -> tuple[int, int] | None:
        """Return how many test rows are classified right, and of how many; None without test data.

        Args:
            x: the parameters.
            index: which share of the test data to evaluate: rows ``index``, ``index + parts`` and so on.
            parts: number of shares.
        """
        ...

    def description(self) -> dict[str, Any]:
        """Return what all workers must agree on, as JSON can hold it; the digest is of the data."""
        ...


def digest(arrays: Iterable[NDArray[Any]]) -> str:
    """Return 16 hexadecimal digits that depend on the arrays' bytes."""
    state = hashlib.blake2b(digest_size=8)
    for array in arrays:
        state.update(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
    return state.hexdigest()


def expected_smoothness(whole: float, largest: float, rows: int, batch: int) -> float:
    """Return n(B-1) / (B(n-1)) L_f + (n-B) / (B(n-1)) L_max (Gower et al. 2019, proposition 3.8).

    Args:
        whole: L_f, the smoothness of f.
        largest: L_max, the largest smoothness of an f_i.
        rows: n.
        batch: B, in 1 to n.

    Raises:
        ValueError: if the batch is not in 1 to n.
    """
    if not 1 <= batch <= rows:
        raise ValueError(f"batch must be in 1 to the number of rows, {rows}; got {batch}")
    if batch == rows:
        return whole
    return (rows * (batch - 1) * whole + (rows - batch) * largest) / (batch * (rows - 1))


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
            _check_columns(test[0], features)
        self.features, self.labels, self.regularizer, self.test = sparse.csr_array(features), labels, regularizer, test
        self.rows, columns = features.shape
        self.layout = Layout.flat(columns, "weights")

    def initial(self, seed: int) -> NDArray[np.float32]:
        """Return zeros."""
        return np.zeros(self.layout.size, np.float32)

    def take(self, rows: Rows) -> LogisticRegression:
        """Return this objective with a copy of some rows only."""
        return LogisticRegression(self.features[rows], self.labels[rows], self.regularizer, self.test)

    def gradient(self, x: Vector, rows: Rows | None = None) -> tuple[float, Vector]:
        """Return the sums of the losses and of their gradients."""
        _check_parameters(x, self.layout.size)
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
        """Return the sum of the losses, computed in float64."""
        _check_parameters(x, self.layout.size)
        return _log_losses(self.labels * (self.features @ x.astype(np.float64)))

    def smoothness(self, batch: int) -> float:
        """Return the expected smoothness of a batch."""
        return expected_smoothness(*self._smoothness, self.rows, batch)

    def right(self, x: Vector, index: int = 0, parts: int = 1) -> tuple[int, int] | None:
        """Return how many test rows are on their label's side."""
        if self.test is None:
            return None
        features, labels = self.test[0][index::parts], self.test[1][index::parts]
        return int(np.count_nonzero(labels * (features @ x) > 0)), len(labels)

    def description(self) -> dict[str, Any]:
        """Return what all workers must agree on."""
        arrays = []
        for features, labels in ((self.features, self.labels), *([self.test] if self.test else [])):
            arrays += [features.indptr, features.indices, features.data, labels]
        return _describe("logistic", self.rows, self.layout.size, self.regularizer, self.labels, arrays)

    @cached_property
    def _smoothness(self) -> tuple[float, float]:
        """L_f and L_max."""
        features = self.features
        whole = _largest_eigenvalue(lambda v: features.T @ (features @ v), self.layout.size) / self.rows
        largest = float(features.power(2).sum(axis=1).max())
        return min(whole * MARGIN, largest) * self.CURVATURE, largest * self.CURVATURE


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
            _check_columns(test[0], features)
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
        """Return the sums of the losses and of their gradients."""
        _check_parameters(x, self.layout.size)
        gradient = np.zeros_like(x)
        chunks = _chunks(self.features, self.labels, x.dtype, rows)
        return math.fsum(self.add_gradient(x, features, labels, gradient) for features, labels in chunks), gradient

    def value(self, x: Vector) -> float:
        """Return the sum of the losses, computed in float64."""
        _check_parameters(x, self.layout.size)
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
        """Return what all workers must agree on."""
        arrays = [self.features, self.labels, *(self.test or ())]
        common = _describe(self.task, self.rows, self.columns, self.regularizer, self.labels, arrays)
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
        """Return zeros."""
        return np.zeros(self.layout.size, np.float32)

    def take(self, rows: Rows) -> Softmax:
        """Return this objective with a copy of some rows only."""
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
        """Return the expected smoothness of a batch."""
        return expected_smoothness(*self._smoothness, self.rows, batch)

    @cached_property
    def _smoothness(self) -> tuple[float, float]:
        """L_f and L_max; the bias is one more column, of ones."""

        def gram(vector: Vector) -> Vector:
            products = self.features @ vector[:-1] + vector[-1]
            return np.append(products @ self.features, products.sum())

        whole = _largest_eigenvalue(gram, self.columns + 1) / self.rows
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
        """Return this objective with a copy of some rows only."""
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
        """Return None: there is no bound."""
        return None

    def description(self) -> dict[str, Any]:
        """Return what all workers must agree on."""
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


def minimum(objective: Objective, tolerance: float = 1e-10, iterations: int = 10_000) -> tuple[float, Vector]:
    """Minimise a convex objective in float64; return P* and x*.

    Accelerated proximal gradient steps (Beck and Teboulle 2009) that begin anew when the momentum points uphill
    (O'Donoghue and Candes 2015). The step t is 1 / L, where L is the curvature of f seen between the last two
    gradients; it falls by at most 5 % an iteration.

    For l2 > 0 they end when P(x) - P* is at most the tolerance for sure: with G = (y - x) / t, and f(x) below the
    parabola of curvature L at y, it is at most (1/(2 l2) + t/2) ||G||^2. Otherwise all iterations are done.

    Args:
        objective: a convex one.
        tolerance: of P.
        iterations: at most so many, each about the cost of one gradient of all rows.

    Raises:
        ValueError: if the objective has no bound on its smoothness: it is not convex.
    """
    rows, regularizer = objective.rows, objective.regularizer
    bound = objective.smoothness(rows)
    if bound is None:
        raise ValueError("objective must be convex, with a bound on its smoothness; this one has none")
    curvature = bound or 1.0  # 0 if all features are zero
    x = objective.initial(0).astype(np.float64)
    y, weight = x, 1.0
    last: tuple[Vector, Vector] | None = None
    for _ in range(iterations):
        loss, gradient = objective.gradient(y)
        gradient /= rows
        if last is not None:
            moved, change = y - last[0], gradient - last[1]
            product = float(moved @ change)
            if product > 0:
                curvature = max(SHRINK * curvature, float(change @ change) / product)
        last = y, gradient
        following = y - gradient / curvature
        regularizer.prox(following, 1 / curvature)
        moved = following - y
        square = float(moved @ moved)
        if regularizer.l2 and (curvature / regularizer.l2 + 1) * curvature / 2 * square <= tolerance:
            parabola = loss / rows + float(gradient @ moved) + curvature / 2 * square
            if objective.value(following) / rows <= parabola + tolerance / 100 + ROUNDING * abs(parabola):
                x = following
                break
            curvature *= 2
            continue
        if moved @ (following - x) < 0:
            weight = 1.0
        grown = (1 + math.sqrt(1 + 4 * weight**2)) / 2
        y = following + (weight - 1) / grown * (following - x)
        x, weight = following, grown
    return objective.value(x) / rows + regularizer.value(x), x


def _log_losses(margins: Vector) -> float:
    return float(np.logaddexp(0, -margins).sum(dtype=np.float64))


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


def _largest_eigenvalue(gram: Any, size: int) -> float:
    """Return the largest eigenvalue of a symmetric positive semi-definite product, by power iterations in float32."""
    vector = np.random.default_rng(0).standard_normal(size, np.float32)
    vector /= np.linalg.norm(vector)
    value = 0.0
    for _ in range(200):
        vector = gram(vector)
        before, value = value, float(np.linalg.norm(vector))
        if value == 0 or abs(value - before) <= 1e-5 * value:
            break
        vector /= np.float32(value)
    return value


def _describe(
    task: str,
    rows: int,
    columns: int,
    regularizer: Regularizer,
    labels: NDArray[Any],
    arrays: Iterable[NDArray[Any]],
) -> dict[str, Any]:
    return {
        "task": task,
        "rows": rows,
        "features": columns,
        "labels": np.unique(labels).astype(int).tolist(),
        "dtype": "float32",
        "l1": regularizer.l1,
        "l2": regularizer.l2,
        "digest": digest(arrays),
    }


def _check_parameters(x: Vector, size: int) -> None:
    if x.dtype not in (np.float32, np.float64):
        raise TypeError(f"x must be of float32 or float64; got {x.dtype}")
    if x.shape != (size,):
        raise ValueError(f"x must be of shape ({size},); got {x.shape}")


def _check_sparse(name: str, features: Any, label_name: str, labels: NDArray[np.float32]) -> None:
    if not sparse.issparse(features) or features.format != "csr" or features.dtype != np.float32:
        what = f"{features.format} of {features.dtype}" if sparse.issparse(features) else type(features).__name__
        raise TypeError(f"{name} must be a CSR matrix of float32; got {what}")
    _check_labels(name, features, label_name, labels, np.float32)
    if not np.isfinite(features.data).all():
        raise ValueError(f"{name} must be finite")
    if not (np.abs(labels) == 1).all():
        raise ValueError(f"{label_name} must be -1 or +1; got {labels[np.abs(labels) != 1][0]}")


def _check_dense(
    name: str, features: NDArray[np.float32], label_name: str, labels: NDArray[np.int64], classes: int
) -> None:
    if not isinstance(features, np.ndarray) or features.dtype != np.float32:
        raise TypeError(
            f"{name} must be an array of float32; got {getattr(features, 'dtype', type(features).__name__)}"
        )
    if features.ndim != 2:
        raise ValueError(f"{name} must be of two axes; got shape {features.shape}")
    _check_labels(name, features, label_name, labels, np.int64)
    if not np.isfinite(features).all():
        raise ValueError(f"{name} must be finite")
    wrong = labels[(labels < 0) | (labels >= classes)]
    if wrong.size:
        raise ValueError(f"{label_name} must be in 0 to {classes - 1}; got {wrong[0]}")


def _check_labels(name: str, features: Any, label_name: str, labels: NDArray[Any], dtype: Any) -> None:
    rows, columns = features.shape
    if rows < 1 or columns < 1:
        raise ValueError(f"{name} must have at least a row and a column; got shape {features.shape}")
    if not isinstance(labels, np.ndarray) or labels.dtype != dtype:
        kind = getattr(labels, "dtype", type(labels).__name__)
        raise TypeError(f"{label_name} must be an array of {np.dtype(dtype)}; got {kind}")
    if labels.shape != (rows,):
        raise ValueError(f"{label_name} must be of shape ({rows},), one a row; got {labels.shape}")


def _check_columns(test: Any, features: Any) -> None:
    if test.shape[1] != features.shape[1]:
        raise ValueError(f"test features must have {features.shape[1]} columns, as features; got {test.shape[1]}")
