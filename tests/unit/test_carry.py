"""What former compressors have not sent, as vectors and as rows."""

import numpy as np
import pytest

from hvd_compress import Layout
from hvd_compress.ops.numpy import NumpyOps
from hvd_compress.reduction.carry import add_carried, cut, norm
from hvd_compress.reduction.rows import Rows

OPS = NumpyOps()
PLACE = Layout.of([("w", (4, 3))])
ROWS = Rows(np.array([1, 3]), np.float32([[1, 2, 3], [4, 5, 6]]), 4)


def dense(rows):
    matrix = np.zeros((rows.height, rows.values.shape[1]), np.float32)
    np.add.at(matrix, rows.indices, rows.values)
    return matrix


def test_a_residual_is_cut_by_parameters():
    layout = Layout.of([("a", (2, 3)), ("b", (4,))])
    parts = dict(cut(layout, {"residual": np.arange(10, dtype=np.float32)}))
    assert [parts[name].tolist() for name in ("a", "b")] == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9]]
    [(name, rows)] = cut(PLACE, {"rows": ROWS.indices, "residual": ROWS.values.reshape(-1)})
    assert (name, rows.height) == ("w", 4)
    assert np.array_equal(dense(rows), dense(ROWS))


@pytest.mark.parametrize("carried", [ROWS, dense(ROWS).reshape(-1)])
def test_it_is_added_to_vectors_and_to_rows(carried):
    vector = np.ones(12, np.float32)
    assert np.array_equal(add_carried(OPS, vector, PLACE, {"w": carried}).reshape(4, 3), 1 + dense(ROWS))
    rows = add_carried(OPS, Rows(np.array([1, 0]), np.ones((2, 3), np.float32), 4), PLACE, {"w": carried})
    expected = dense(ROWS)
    expected[:2] += 1
    assert np.array_equal(dense(rows), expected)
    assert rows.indices.shape == (4,)  # none of zeros
    assert norm(OPS, {"w": carried}) == pytest.approx(np.linalg.norm(ROWS.values))


def test_what_is_of_others_changes_nothing():
    vector = np.ones(12, np.float32)
    assert np.array_equal(add_carried(OPS, vector, PLACE, {"v": ROWS}), np.ones(12))
