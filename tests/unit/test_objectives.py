"""Objectives against finite differences, other optimisers and torch; their data against files written here."""

import bz2
import gzip
import json
import subprocess
import sys

import data
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mnist_files import write_mnist
from scipy import sparse
from scipy.optimize import minimize, minimize_scalar

from hvd_compress.parameter_server import DoubleQuantization
from hvd_compress.parameter_server.objectives import (
    LogisticRegression,
    Perceptron,
    Regularizer,
    Softmax,
    expected_smoothness,
    minimum,
)
from hvd_compress.parameter_server.objectives.torch_objective import TorchObjective
from hvd_compress.parameter_server.protocols import JobPlan
from hvd_compress.parameter_server.runtime.roles import Roles

KINDS = ("logistic", "softmax", "mlp", "torch")
NONE = Regularizer()


def sparse_rows(rows: int, columns: int, random: np.random.Generator) -> sparse.csr_array:
    values = random.standard_normal((rows, columns)) * (random.random((rows, columns)) < 0.3)
    values[[0, rows // 2, rows - 1]] = 0  # rows without features: first, last and between
    return sparse.csr_array(values.astype(np.float32))


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))


def problem(kind: str, rows: int = 50, regularizer: Regularizer = NONE):
    """A small objective of each kind with test data."""
    random = np.random.default_rng(0)
    if kind == "logistic":
        features, signs = sparse_rows(rows + 10, 12, random), random.choice([-1, 1], rows + 10).astype(np.float32)
        test = (features[rows:], signs[rows:])
        return LogisticRegression(features[:rows], signs[:rows], regularizer, test)
    features, labels = random.standard_normal((rows + 10, 7)).astype(np.float32), random.integers(0, 3, rows + 10)
    test = (features[rows:], labels[rows:])
    if kind == "softmax":
        return Softmax(features[:rows], labels[:rows], 3, regularizer, test)
    if kind == "mlp":
        return Perceptron(features[:rows], labels[:rows], 3, 5, regularizer, test)
    inputs, targets = torch.from_numpy(features), torch.from_numpy(labels)
    test = (inputs[rows:], targets[rows:])
    loss = torch.nn.functional.cross_entropy
    return TorchObjective(network(), loss, inputs[:rows], targets[:rows], regularizer, test)


def point(objective, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(objective.layout.size)


# --- losses and gradients


@pytest.mark.parametrize("kind", KINDS[:3])
@pytest.mark.parametrize("rows", [None, np.array([3, 0, 49, 3, 25])])
def test_gradients_are_those_of_finite_differences(kind, rows):
    objective = problem(kind)
    x, step = point(objective), 1e-6
    gradient = objective.gradient(x, rows)[1]
    assert gradient.dtype == np.float64
    for i, direction in enumerate(np.eye(len(x))):
        ahead, behind = (objective.gradient(x + sign * step * direction, rows)[0] for sign in (1, -1))
        assert gradient[i] == pytest.approx((ahead - behind) / (2 * step), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_sums_over_parts_add_up(kind):
    objective = problem(kind, 2500)  # more than two chunks
    x = point(objective).astype(np.float32)
    loss, gradient = objective.gradient(x)
    assert gradient.dtype == np.float32
    assert gradient.shape == (objective.layout.size,)
    parts = np.array_split(np.random.default_rng(2).permutation(2500), 3)
    for some in ([objective.gradient(x, part) for part in parts], [objective.take(p).gradient(x) for p in parts]):
        assert sum(part[0] for part in some) == pytest.approx(loss, rel=1e-5)
        assert all(part[1].dtype == np.float32 for part in some)
        assert np.allclose(sum(part[1] for part in some), gradient, rtol=1e-4, atol=2e-3)
    assert objective.value(x) == pytest.approx(loss, rel=1e-5)
    assert sum(objective.take(part).value(x) for part in parts) == pytest.approx(objective.value(x), rel=1e-6)
    assert [objective.take(part).rows for part in parts] == [834, 833, 833]
    loss, gradient = objective.gradient(x, parts[0][:0])
    assert (loss, np.abs(gradient).sum()) == (0, 0)


def test_logistic_losses_are_stable_and_exact():
    objective = LogisticRegression(
        sparse.csr_array(np.array([[1], [1]], np.float32)), np.array([1, -1], np.float32), NONE
    )
    for x in (1e4, -1e4):
        loss, gradient = objective.gradient(np.array([x], np.float32))
        assert loss == 1e4
        assert gradient[0] == np.sign(x)
    assert objective.value(np.zeros(1, np.float32)) == pytest.approx(2 * np.log(2), rel=1e-15)


@pytest.mark.parametrize("kind", ["softmax", "mlp"])
def test_large_logits_do_not_overflow(kind):
    objective = problem(kind)
    loss, gradient = objective.gradient((1e4 * point(objective)).astype(np.float32))
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()


def test_a_module_s_loss_and_gradient_are_the_perceptron_s():
    ours, theirs = problem("mlp", 1500), problem("torch", 1500)
    assert [p.shape for p in ours.layout.parameters] == [p.shape for p in theirs.layout.parameters]
    x = theirs.initial(0)
    assert np.array_equal(x, torch.cat([p.detach().reshape(-1) for p in network().parameters()]).numpy())
    for rows in (None, np.arange(7, 90)):
        (a, b), (c, d) = ours.gradient(x, rows), theirs.gradient(x, rows)
        assert a == pytest.approx(c, rel=1e-5)
        assert np.allclose(b, d, rtol=1e-4, atol=1e-3)
    assert ours.value(x) == pytest.approx(theirs.value(x), rel=1e-6)
    assert ours.right(x) == theirs.right(x)


@pytest.mark.parametrize("kind", KINDS)
def test_shares_of_the_test_add_up(kind):
    objective = problem(kind)
    x = point(objective).astype(np.float32)
    right, count = objective.right(x)
    assert count == 10
    assert 0 <= right <= 10
    shares = [objective.right(x, index, 3) for index in range(3)]
    assert [share[1] for share in shares] == [4, 3, 3]
    assert sum(share[0] for share in shares) == right
    assert objective.take(np.arange(5)).right(x) == (right, count)


def test_what_is_right():
    features = sparse.csr_array(np.array([[1, 0], [1, 0], [0, 0]], np.float32))
    signs = np.array([1, -1, 1], np.float32)
    assert LogisticRegression(features, signs, NONE).right(np.ones(2, np.float32)) is None
    assert LogisticRegression(features, signs, NONE, (features, signs)).right(np.ones(2, np.float32)) == (1, 3)


def test_initial_parameters_follow_from_the_seed():
    for kind in ("logistic", "softmax"):
        assert not problem(kind).initial(1).any()
        assert problem(kind).initial(1).dtype == np.float32
    random = np.random.default_rng(0)
    objective = Perceptron(random.random((4, 300), np.float32), np.arange(4), 4, 200, NONE)
    x = objective.initial(1)
    assert x.dtype == np.float32
    assert np.array_equal(x, objective.take(np.arange(2)).initial(1))
    assert not np.array_equal(x, objective.initial(2))
    weights, bias, output, output_bias = (x[p.slice] for p in objective.layout.parameters)
    assert np.std(weights) == pytest.approx(np.sqrt(2 / 300), rel=0.05)
    assert np.std(output) == pytest.approx(np.sqrt(2 / 204), rel=0.1)
    assert not bias.any()
    assert not output_bias.any()


@pytest.mark.parametrize("kind", KINDS)
def test_descriptions_tell_data_and_settings_apart(kind):
    one, same = problem(kind).description(), problem(kind).description()
    assert json.loads(json.dumps(one)) == one == same
    assert one["rows"] == 50
    other = problem(kind)
    if kind == "torch":
        other.inputs[1, 1] += 1
    elif kind == "logistic":
        other.features.data[3] += 1
    else:
        other.features[1, 1] += 1
    assert {key for key in one if other.description()[key] != one[key]} == {"digest"}
    other = problem(kind, regularizer=Regularizer(l2=0.1)).description()
    assert {key for key in one if other[key] != one[key]} == {"l2"}


# --- the regularizer


@given(
    x=st.floats(-10, 10),
    step=st.floats(0.01, 10),
    l1=st.floats(0, 3),
    l2=st.floats(0, 3),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_prox_is_what_it_is_defined_to_be(x, step, l1, l2, dtype):
    regularizer = Regularizer(l1, l2)

    def cost(z: float) -> float:
        return step * regularizer.value(np.array([z])) + (z - x) ** 2 / 2

    array = np.array([x], dtype)
    regularizer.prox(array, step)
    found = minimize_scalar(cost, bounds=(-11, 11), method="bounded", options={"xatol": 1e-9})
    assert array.dtype == dtype
    assert array[0] == pytest.approx(found.x, abs=1e-5)
    assert cost(float(array[0])) <= found.fun + 1e-5


def test_prox_works_in_place_and_makes_zeros():
    x = np.array([-3, -1, -0.5, 0, 0.5, 1, 3], np.float32)
    before = x
    assert Regularizer(1, 1).prox(x, 1) is None
    assert x is before
    assert x.tolist() == [-1, 0, 0, 0, 0, 0, 1]
    assert Regularizer(2, 3).value(np.array([1, -2], np.float32)) == 2 * 3 + 1.5 * 5
    NONE.prox(x, 1)
    assert x.tolist() == [-1, 0, 0, 0, 0, 0, 1]
    assert NONE.value(x) == 0


# --- smoothness


def hessian(objective, x: np.ndarray) -> np.ndarray:
    columns = []
    for direction in np.eye(len(x)):
        ahead, behind = (objective.gradient(x + sign * 1e-5 * direction)[1] for sign in (1, -1))
        columns.append((ahead - behind) / (2e-5 * objective.rows))
    return np.array(columns)


@pytest.mark.parametrize("kind", ["logistic", "softmax"])
def test_smoothness_bounds_the_curvature(kind):
    objective = problem(kind)
    whole, single = objective.smoothness(50), objective.smoothness(1)
    assert isinstance(whole, float)
    sizes = [objective.smoothness(batch) for batch in range(1, 51)]
    assert sizes == sorted(sizes, reverse=True)
    for seed in range(20):
        a, b = point(objective, seed), point(objective, seed + 100)
        for rows, bound in ((None, 50 * whole), *((np.array([i]), single) for i in range(50))):
            change = objective.gradient(a, rows)[1] - objective.gradient(b, rows)[1]
            assert np.linalg.norm(change) <= bound * np.linalg.norm(a - b)
    # Where logits are zero, two classes reach the bound, and three are not far from it.
    largest = np.linalg.eigvalsh(hessian(objective, np.zeros(objective.layout.size)))[-1]
    assert largest <= whole <= (1.02 if kind == "logistic" else 1.55) * largest


@pytest.mark.parametrize("kind", ["logistic", "softmax"])
@pytest.mark.parametrize("batch", [1, 4, 20])
def test_expected_smoothness_bounds_the_gradients_of_batches(kind, batch):
    """E ||grad f_B(x) - grad f_B(x*)||^2 <= 2 L(B) (f(x) - f(x*)), over batches without replacement."""
    objective, random = problem(kind), np.random.default_rng(3)
    best, optimum = minimum(objective, iterations=2000)
    bound = objective.smoothness(batch)
    for seed, scale in ((1, 1), (2, 0.1), (3, 0.01)):
        x = optimum + scale * point(objective, seed)
        squares = []
        for _ in range(200):
            rows = random.permutation(50)[:batch]
            change = (objective.gradient(x, rows)[1] - objective.gradient(optimum, rows)[1]) / batch
            squares.append(change @ change)
        error = 3 * np.std(squares) / np.sqrt(200)
        assert np.mean(squares) - error <= 2 * bound * (objective.value(x) / 50 - best)


def test_smoothness_of_a_batch_is_of_its_range():
    assert expected_smoothness(1, 5, 100, 1) == 5
    assert expected_smoothness(1, 5, 100, 100) == 1
    assert expected_smoothness(1, 1, 1, 1) == 1
    for batch in (0, 51):
        with pytest.raises(ValueError, match=f"batch must be in 1 to the number of rows, 50; got {batch}"):
            problem("softmax").smoothness(batch)
    for kind in ("mlp", "torch"):
        assert problem(kind).smoothness(5) is None


def test_a_step_size_needs_a_curvature():
    flat = LogisticRegression(sparse.csr_array((8, 5), dtype=np.float32), np.ones(8, np.float32), NONE)
    for smoothness, message in ((flat.smoothness(4), "is flat: its smoothness is 0"), (None, "has no estimate")):
        plan = JobPlan(flat.layout, flat.rows, NONE, smoothness, None, Roles(1, 2))
        with pytest.raises(ValueError, match=f"step must be given: this objective {message}"):
            DoubleQuantization().check(plan)
        DoubleQuantization(step=0.1).check(plan)


# --- the minimum


@pytest.mark.parametrize("kind", ["logistic", "softmax"])
@pytest.mark.parametrize("l2", [1e-1, 1e-3])
def test_the_minimum_is_that_of_another_optimiser(kind, l2):
    objective = problem(kind, regularizer=Regularizer(l2=l2))

    def cost(x: np.ndarray) -> tuple[float, np.ndarray]:
        loss, gradient = objective.gradient(x)
        return loss / 50 + objective.regularizer.value(x), gradient / 50 + l2 * x

    found = minimize(cost, np.zeros(objective.layout.size), jac=True, method="L-BFGS-B", options={"gtol": 1e-9})
    best, x = minimum(objective)
    assert x.dtype == np.float64
    assert best == pytest.approx(found.fun, abs=2e-10)
    assert best == pytest.approx(cost(x)[0], abs=1e-12)
    assert np.allclose(x, found.x, atol=1e-3)
    assert minimum(objective, tolerance=1e-3)[0] <= found.fun + 1e-3
    assert minimum(objective, iterations=3)[0] > best


@pytest.mark.parametrize("kind", ["logistic", "softmax"])
@pytest.mark.parametrize("l2", [0, 1e-2])
def test_the_minimum_meets_the_conditions_of_optimality(kind, l2):
    l1 = 0.02
    objective = problem(kind, regularizer=Regularizer(l1, l2))
    _, x = minimum(objective, tolerance=1e-14, iterations=3000)
    slope = objective.gradient(x)[1] / 50 + l2 * x
    zero = x == 0
    assert 0 < zero.sum() < len(x)
    assert np.abs(slope[zero]).max() <= l1 + 1e-6
    assert np.allclose(slope[~zero], -l1 * np.sign(x[~zero]), atol=1e-6)


def test_too_low_an_estimate_does_not_end_it_too_early(monkeypatch):
    objective = problem("softmax", regularizer=Regularizer(l2=0.1))
    best, _ = minimum(objective)
    lower = objective.smoothness(50) / 8
    monkeypatch.setattr(objective, "smoothness", lambda batch: lower)
    assert minimum(objective)[0] == pytest.approx(best, abs=2e-10)


def test_only_convex_objectives_have_a_minimum():
    for kind in ("mlp", "torch"):
        with pytest.raises(ValueError, match="objective must be convex"):
            minimum(problem(kind))
    nothing = LogisticRegression(sparse.csr_array((3, 2), dtype=np.float32), np.ones(3, np.float32), Regularizer(l2=1))
    assert minimum(nothing)[0] == pytest.approx(np.log(2))


# --- what does not fit


def test_what_does_not_fit_is_refused():
    for setting, message in (
        ({"l1": -1}, "l1 must be at least 0 and finite; got -1"),
        ({"l2": float("nan")}, "l2 must be at least 0 and finite; got nan"),
        ({"l2": float("inf")}, "l2 must be at least 0 and finite; got inf"),
    ):
        with pytest.raises(ValueError, match=message):
            Regularizer(**setting)
    good, signs = sparse.csr_array(np.eye(3, dtype=np.float32)), np.ones(3, np.float32)
    for args, error, message in (
        ((good.toarray(), signs, NONE), TypeError, "features must be a CSR matrix of float32; got ndarray"),
        ((good.tocsc(), signs, NONE), TypeError, "got csc of float32"),
        ((good.astype(np.float64), signs, NONE), TypeError, "got csr of float64"),
        ((good * np.float32(np.nan), signs, NONE), ValueError, "features must be finite"),
        ((good[:0], signs[:0], NONE), ValueError, "features must have at least a row and a column"),
        ((good, signs[:2], NONE), ValueError, r"labels must be of shape \(3,\), one a row; got \(2,\)"),
        ((good, signs.astype(int), NONE), TypeError, "labels must be an array of float32; got int64"),
        ((good, 0 * signs, NONE), ValueError, "labels must be -1 or \\+1; got 0"),
        ((good, signs, NONE, (good, 2 * signs)), ValueError, "test labels must be -1 or \\+1; got 2"),
        ((good, signs, NONE, (good[:, :2], signs)), ValueError, "test features must have 3 columns, .* got 2"),
    ):
        with pytest.raises(error, match=message):
            LogisticRegression(*args)
    dense, labels = np.ones((3, 2), np.float32), np.arange(3)
    for args, error, message in (
        ((dense.astype(np.float64), labels, 3, NONE), TypeError, "features must be an array of float32; got float64"),
        (([[1.0]], labels, 3, NONE), TypeError, "features must be an array of float32; got list"),
        ((dense[0], labels, 3, NONE), ValueError, "features must be of two axes"),
        ((dense * np.inf, labels, 3, NONE), ValueError, "features must be finite"),
        ((dense, labels.astype(np.int32), 3, NONE), TypeError, "labels must be an array of int64; got int32"),
        ((dense, labels, 2, NONE), ValueError, "labels must be in 0 to 1; got 2"),
        ((dense, labels - 1, 3, NONE), ValueError, "labels must be in 0 to 2; got -1"),
        ((dense, labels * 0, 1, NONE), ValueError, "classes must be at least 2; got 1"),
        ((dense, labels, 3, NONE, (dense, labels + 1)), ValueError, "test labels must be in 0 to 2; got 3"),
    ):
        with pytest.raises(error, match=message):
            Softmax(*args)
    with pytest.raises(ValueError, match="hidden must be at least 1; got 0"):
        Perceptron(dense, labels, 3, 0, NONE)
    loss, tensor = torch.nn.functional.mse_loss, torch.ones(3, 7)
    for args, error, message in (
        ((torch.nn.ReLU(), loss, tensor, tensor), ValueError, "module must have parameters"),
        ((network().double(), loss, tensor, tensor), TypeError, "0.weight is of torch.float64"),
        ((network(), loss, tensor, tensor[:2]), ValueError, "targets must be as many as inputs, and some; got 2"),
        ((network(), loss, tensor, tensor, NONE, (tensor, tensor[:1])), ValueError, "test targets must be as many"),
    ):
        with pytest.raises(error, match=message):
            TorchObjective(*args)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_that_do_not_fit_are_refused(kind):
    objective = problem(kind)
    size = objective.layout.size
    for evaluate in (objective.gradient, objective.value):
        with pytest.raises(ValueError, match=rf"x must be of shape \({size},\); got \({size + 1},\)"):
            evaluate(np.zeros(size + 1, np.float32))
        with pytest.raises(TypeError, match=r"x must be of float32.*; got float16"):
            evaluate(np.zeros(size, np.float16))


# --- files

LIBSVM = "2 1:3 3:4  # a comment\n1 2:-0.5\n2 4:1e0 5:1\n1\n"


@pytest.mark.parametrize(
    ("name", "compress"), [("a", bytes), ("a.txt", bytes), ("a.gz", gzip.compress), ("a.bz2", bz2.compress)]
)
def test_a_libsvm_file_is_read(tmp_path, name, compress):
    (tmp_path / name).write_bytes(compress(LIBSVM.encode()))
    half = np.sqrt(0.5)
    expected = [[0.6, 0, 0.8, 0, 0], [0, -1, 0, 0, 0], [0, 0, 0, half, half], [0, 0, 0, 0, 0]]
    for path in (tmp_path / name, tmp_path):  # the file, or a folder with nothing else
        objective = data.load("logistic", str(path), 0, Regularizer(l2=0.5))
        assert np.allclose(objective.features.toarray(), expected)
        assert objective.labels.tolist() == [1, -1, 1, -1]
        assert objective.description()["features"] == 5
        assert objective.regularizer.l2 == 0.5
        assert objective.gradient(np.zeros(5, np.float32), np.array([3, 1, 3]))[1].tolist() == [0, -0.5, 0, 0, 0]


def test_sentences_are_read(tmp_path):
    (tmp_path / "rt-polarity.pos").write_bytes("a good film \n a caf\xe9 , good\x85 food\n".encode("latin-1"))
    (tmp_path / "rt-polarity.neg").write_bytes(b"a bad film\n- \nbad , bad\n")
    objective = data.load("logistic", str(tmp_path), 0, NONE)
    assert objective.rows == 5
    assert objective.layout.size == 5  # bad, café, film, food, good
    assert objective.labels.tolist() == [-1, -1, -1, 1, 1]
    norms = np.linalg.norm(objective.features.toarray(), axis=1)
    assert np.allclose(norms, [1, 0, 1, 1, 1])
    assert objective.gradient(np.zeros(5, np.float32))[0] == pytest.approx(5 * np.log(2))


@pytest.mark.parametrize("compress", [False, True])
def test_digits_are_read(tmp_path, compress):
    write_mnist(tmp_path, compress)
    softmax = data.load("softmax", str(tmp_path), 9, NONE)
    perceptron = data.load("mlp", str(tmp_path), 9, NONE)
    assert softmax.features.shape == (256, 784)
    assert np.square(softmax.features).sum(axis=1).mean() == pytest.approx(1, rel=1e-4)
    assert np.allclose(perceptron.features, 28 * softmax.features, rtol=1e-5)
    assert np.allclose(perceptron.test[0], 28 * softmax.test[0], rtol=1e-5)
    assert softmax.layout.size == 7850
    assert perceptron.layout.size == 785 * 9 + 10 * 10
    assert softmax.right(softmax.initial(0), 1, 2)[1] == 32


def test_what_is_missing_is_said(tmp_path):
    for task, name, error, message in (
        ("sgd", "", ValueError, "task must be one of logistic, softmax, mlp; got 'sgd'"),
        ("logistic", "no", FileNotFoundError, "--data .*no does not exist; logistic needs a LIBSVM file"),
        ("logistic", "", FileNotFoundError, "--data .* holds 0 files; logistic needs a LIBSVM file"),
        ("softmax", "no", FileNotFoundError, "--data .*no is no folder; mnist needs one with"),
        ("mlp", "", FileNotFoundError, "--data .* has neither train-images-idx3-ubyte.gz nor"),
    ):
        with pytest.raises(error, match=message):
            data.load(task, str(tmp_path / name), 5, NONE)
    (tmp_path / "rt-polarity.pos").write_text("")
    with pytest.raises(FileNotFoundError, match=r"--data .* lacks rt-polarity.neg; logistic needs"):
        data.load("logistic", str(tmp_path), 0, NONE)
    (tmp_path / "rt-polarity.neg").write_text("bad\n")
    with pytest.raises(ValueError, match=r"--data .*: rt-polarity.pos is empty"):
        data.load("logistic", str(tmp_path), 0, NONE)
    file = tmp_path / "file"
    for text, message in (
        ("not a number 1:2\n", "--data .*file is not a LIBSVM file, or is damaged: "),
        ("1 1:2\n1 2:2\n", "must have exactly two classes; it has 1: 1$"),
        ("1 1:2\n2 2:2\n3 1:1\n", "must have exactly two classes; it has 3: 1, 2, 3$"),
        ("", "--data .*file"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            data.load("logistic", str(file), 0, NONE)


def test_importing_brings_no_framework_in():
    program = (
        "import sys, hvd_compress.parameter_server.objectives; "
        "print([m for m in ('torch', 'sklearn', 'horovod', 'mpi4py', 'tensorflow') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
