"""What is minimized: P(x) = f(x) + h(x), where f is the mean of a loss over the rows of a data set.

Data are float32. Gradients are computed in the dtype of the parameters: float32 in training, float64 to find the
optimum. Sums of losses and of gradients are returned, not means, so that those of several parts add up.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hvd_compress.ops.layout import Layout

Vector = NDArray[Any]  # float32 or float64
Rows = NDArray[np.int64]

CHUNK = 1024  # rows of a dense matrix that are worked on at once
MARGIN = 1.01  # factor by which power iterations may underestimate an eigenvalue


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


def largest_eigenvalue(gram: Callable[[Vector], Vector], size: int) -> float:
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


def describe(
    task: str,
    rows: int,
    columns: int,
    regularizer: Regularizer,
    labels: NDArray[Any],
    arrays: Iterable[NDArray[Any]],
) -> dict[str, Any]:
    """Return an objective's description, with a digest of its arrays."""
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


def check_parameters(x: Vector, size: int) -> None:
    """Raise TypeError or ValueError unless x is of shape (size,) and of float32 or float64."""
    if x.dtype not in (np.float32, np.float64):
        raise TypeError(f"x must be of float32 or float64; got {x.dtype}")
    if x.shape != (size,):
        raise ValueError(f"x must be of shape ({size},); got {x.shape}")


def check_labels(name: str, features: Any, label_name: str, labels: NDArray[Any], dtype: Any) -> None:
    """Raise TypeError or ValueError unless there is at least one feature, and one label of this dtype a row."""
    rows, columns = features.shape
    if rows < 1 or columns < 1:
        raise ValueError(f"{name} must have at least a row and a column; got shape {features.shape}")
    if not isinstance(labels, np.ndarray) or labels.dtype != dtype:
        kind = getattr(labels, "dtype", type(labels).__name__)
        raise TypeError(f"{label_name} must be an array of {np.dtype(dtype)}; got {kind}")
    if labels.shape != (rows,):
        raise ValueError(f"{label_name} must be of shape ({rows},), one a row; got {labels.shape}")


def check_columns(test: Any, features: Any) -> None:
    """Raise ValueError unless test features have as many columns as features."""
    if test.shape[1] != features.shape[1]:
        raise ValueError(f"test features must have {features.shape[1]} columns, as features; got {test.shape[1]}")
