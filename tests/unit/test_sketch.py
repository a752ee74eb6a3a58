"""The count sketch against a textbook one, and the sketched methods against what they come to without collisions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hvd_compress.torch as hvdc
from hvd_compress import CountSketch, Layout, Simulation, make, parse
from hvd_compress.compressors.sketches.invertible import InvertibleSketch, _multiples
from hvd_compress.compressors.sketching import FetchSGD, SketchedSGD
from hvd_compress.ops.numpy import NumpyOps
from hvd_compress.ops.torch import TorchOps

REFERENCE = NumpyOps(kernels=False)
OTHERS = {"torch": TorchOps(kernels=False), "numpy with kernels": NumpyOps(), "torch with kernels": TorchOps()}


class Textbook:
    """Count Sketch with a hash for each coordinate: polynomials of degree 3 over a prime field."""

    PRIME = 2**31 - 1

    def __init__(self, size: int, rows: int, columns: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        x = np.arange(size, dtype=np.uint64)

        def hashed() -> np.ndarray:
            value = np.zeros(size, np.uint64)
            for factor in random.integers(1, self.PRIME, 4, dtype=np.uint64):
                value = (value * x + factor) % np.uint64(self.PRIME)
            return value

        self.buckets = [(hashed() % np.uint64(columns)).astype(np.int64) for _ in range(rows)]
        self.signs = [1 - 2 * (hashed() % np.uint64(2)).astype(np.float64) for _ in range(rows)]
        self.columns = columns

    def estimate(self, vector: np.ndarray) -> np.ndarray:
        tables = [np.bincount(b, s * vector, self.columns) for b, s in zip(self.buckets, self.signs, strict=True)]
        return np.median([s * t[b] for t, b, s in zip(tables, self.buckets, self.signs, strict=True)], axis=0)


def gaussian(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def real_gradient() -> np.ndarray:
    """The gradient of a perceptron on the digits that come with scikit-learn."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 200), torch.nn.ReLU(), torch.nn.Linear(200, 10))
    inputs, labels = torch.tensor(digits.data[:64], dtype=torch.float32) / 16, torch.tensor(digits.target[:64])
    torch.nn.functional.cross_entropy(model(inputs), labels).backward()
    return torch.cat([p.grad.reshape(-1) for p in model.parameters()]).numpy()


def heavy_tailed(kind: str) -> np.ndarray:
    size, random = 20_000, np.random.default_rng(1)
    if kind == "gradient":
        return real_gradient()
    vector = random.standard_normal(size) * 0.05
    if kind == "iid":
        vector = random.standard_t(2, size)
    elif kind == "clustered":  # large ones side by side, of one sign
        for start in random.integers(0, size - 20, 10):
            vector[start : start + 20] += random.uniform(2, 4, 20)
    else:  # every 100th, at the same place of many blocks
        vector[7::100] += random.uniform(2, 4, 200)
    return vector.astype(np.float32)


@pytest.mark.parametrize("kind", ["iid", "clustered", "periodic", "gradient"])
@pytest.mark.parametrize("columns", [1000, 2500])
def test_recall_is_that_of_the_textbook_or_better(kind, columns):
    vector, k, seeds = heavy_tailed(kind), 100, 20
    largest = np.argsort(-np.abs(vector))[:k]
    ours, theirs = [], []
    for seed in range(seeds):
        found = CountSketch(len(vector), 5, columns, seed).sketch(vector).heavy_hitters(k)
        ours.append(len(np.intersect1d(found, largest)) / k)
        book = np.argsort(-np.abs(Textbook(len(vector), 5, columns, seed).estimate(vector)))[:k]
        theirs.append(len(np.intersect1d(book, largest)) / k)
    error = np.hypot(np.std(ours), np.std(theirs)) / np.sqrt(seeds)
    assert np.mean(theirs) > 0.2
    assert np.mean(ours) >= np.mean(theirs) - 2 * error


@pytest.mark.parametrize("kind", ["iid", "clustered", "periodic"])
def test_estimates_are_unbiased_and_of_bounded_variance(kind):
    vector, columns, seeds = heavy_tailed(kind)[:3000], 200, 2000
    estimates = np.array([CountSketch(3000, 1, columns, seed).sketch(vector).estimate() for seed in range(seeds)])
    error = np.abs(estimates.mean(axis=0) - vector)
    assert (error <= 5.5 * estimates.std(axis=0) / np.sqrt(seeds)).all()
    bound = np.sum(vector.astype(np.float64) ** 2) / columns  # the variance of one row
    variance = ((estimates - vector) ** 2).mean(axis=0)
    assert variance.mean() <= bound
    assert variance.max() <= 1.5 * bound
    medians = np.array([CountSketch(3000, 5, columns, seed).sketch(vector).estimate() for seed in range(200)])
    assert ((medians - vector) ** 2).mean() < 0.5 * variance.mean()


def test_the_norm_is_estimated():
    vector = heavy_tailed("iid")
    norms = [CountSketch(len(vector), 5, 1000, seed).sketch(vector).l2_norm() for seed in range(20)]
    assert np.allclose(norms, np.linalg.norm(vector), rtol=0.1)


@given(data=st.data())
def test_all_implementations_have_the_same_table_and_parts_add_up(data):
    size = data.draw(st.integers(1, 400))
    rows = data.draw(st.sampled_from([1, 3, 5, 7, 9, 15]))
    columns = data.draw(st.integers(1, size))
    seed = data.draw(st.integers(0, 2**64))
    cuts = sorted(data.draw(st.lists(st.integers(0, size), max_size=3)))
    vector = gaussian(size, 1) ** 3
    some = np.flatnonzero(gaussian(size, 2) > 1)
    k = data.draw(st.integers(0, size))
    expected = CountSketch(size, rows, columns, seed, ops=REFERENCE).sketch(vector)
    assert np.array_equal(expected.estimate(some), expected.estimate()[some])
    sparse = CountSketch(size, rows, columns, seed, ops=REFERENCE).sketch(np.where(gaussian(size, 2) > 1, vector, 0))
    for ops in OTHERS.values():
        sketch = CountSketch(size, rows, columns, seed, ops=ops)
        for begin, end in zip([0, *cuts], [*cuts, size], strict=True):
            sketch.sketch(ops.from_numpy(vector[begin:end]), begin)
        assert np.array_equal(ops.to_numpy(sketch.table), expected.table)
        assert np.array_equal(ops.to_numpy(sketch.estimate()), expected.estimate())
        assert np.array_equal(ops.to_numpy(sketch.estimate(ops.from_numpy(some))), expected.estimate(some))
        assert np.array_equal(ops.to_numpy(sketch.heavy_hitters(k)), expected.heavy_hitters(k))
        assert sketch.l2_norm() == pytest.approx(expected.l2_norm(), rel=1e-6)
        part = CountSketch(size, rows, columns, seed, ops=ops)
        part.add_sparse(ops.from_numpy(some), ops.from_numpy(vector[some]))
        assert np.array_equal(ops.to_numpy(part.table), sparse.table)


def test_a_sketch_of_tensors_is_that_of_arrays():
    vector = torch.nn.Parameter(torch.randn(1000))
    sketch = hvdc.CountSketch(1000, 5, 100, 3, device="cpu").sketch(vector.detach())
    assert np.array_equal(sketch.table.numpy(), CountSketch(1000, 5, 100, 3).sketch(vector.detach().numpy()).table)
    assert isinstance(sketch + 2 * sketch, hvdc.CountSketch)
    assert torch.equal(sketch.estimate(sketch.heavy_hitters(7)), sketch.estimate()[sketch.heavy_hitters(7)])


def test_sketches_are_linear():
    a, b = gaussian(500, 1), gaussian(500, 2)
    sum_, of_sum = CountSketch(500, 3, 50, 7).sketch(a) + 2 * CountSketch(500, 3, 50, 7).sketch(b), a + 2 * b
    assert np.allclose(sum_.table, CountSketch(500, 3, 50, 7).sketch(of_sum).table, atol=1e-5)


def test_without_collisions_it_is_the_vector():
    vector = gaussian(300)
    sketch = CountSketch(300, 3, 300).sketch(vector)
    assert np.array_equal(sketch.estimate(), vector)
    assert np.array_equal(sketch.heavy_hitters(9), np.sort(np.argsort(-np.abs(vector))[:9]))


def test_what_does_not_fit_is_refused():
    sketch = CountSketch(100, 3, 10)
    table = sketch.table.copy()
    for args, error, message in (
        ((100, 3, 101), ValueError, "columns must be in 1 to the vector's size, 100; got 101"),
        ((100, 4, 10), ValueError, "rows must be odd"),
        ((100, 17, 10), ValueError, "rows must be in 1 to 15; got 17"),
        ((0, 3, 1), ValueError, "size must be in 1 to"),
        ((100, 3.0, 10), TypeError, "rows must be an integer; got 3.0"),
    ):
        with pytest.raises(error, match=message):
            CountSketch(*args)
    for vector, offset, error, message in (
        (np.zeros(101, np.float32), 0, ValueError, "does not lie"),
        (np.zeros(10, np.float32), 91, ValueError, "does not lie"),
        (np.zeros(10, np.float32), -1, ValueError, "does not lie"),
        (np.zeros((2, 5), np.float32), 0, ValueError, "does not lie"),
        (np.zeros(10, np.float16), 0, TypeError, "must be of float32; got float16"),
        (torch.zeros(10), 0, TypeError, "must be of type numpy.ndarray, as the table is; got torch.Tensor"),
        ([0.0] * 10, 0, TypeError, "must be of type numpy.ndarray, as the table is; got builtins.list"),
        (np.full(10, np.nan, np.float32), 0, ValueError, "must be finite"),
        (np.full(10, np.inf, np.float32), 0, ValueError, "must be finite"),
    ):
        with pytest.raises(error, match=message):
            sketch.sketch(vector, offset)
    for other in (CountSketch(101, 3, 10), CountSketch(100, 1, 10), CountSketch(100, 3, 9), CountSketch(100, 3, 10, 1)):
        with pytest.raises(ValueError, match="cannot be added"):
            sketch + other
    for count in (-1, 101):
        with pytest.raises(ValueError, match="heavy hitters must be in 0 to 100"):
            sketch.heavy_hitters(count)
    assert np.array_equal(sketch.table, table)


# --- the invertible sketch


def subsets(size: int, counts: list[int], seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [np.sort(random.choice(size, count, replace=False)) for count in counts]


def named(size: int, rows: int, columns: int, parts: list[np.ndarray], seed: int = 0, ops=REFERENCE):
    """The sum of the workers' tables, and what is read from it."""
    sketches = [InvertibleSketch(size, rows, columns, seed, ops=ops) for _ in parts]
    for sketch, part in zip(sketches, parts, strict=True):
        sketch.add(ops.from_numpy(part))
    sketches[0].table = sum((sketch.table for sketch in sketches[1:]), start=sketches[0].table)
    found, unread = sketches[0].recover(len(parts))
    return ops.to_numpy(sketches[0].table), ops.to_numpy(found), unread


@pytest.mark.parametrize("workers", [1, 2, 16, 256])
@pytest.mark.parametrize("size", [20_000, 1_000_000])
def test_all_names_are_read_from_a_table_with_room(size, workers):
    """At 1.3 sums for each coordinate, shared by workers or not; blocks are many or few."""
    count, read = 2000, []
    for seed in range(10):
        every = subsets(size, [count], seed)[0]
        shared = every[: count // 10]  # that all workers name
        parts = [np.union1d(every[rank::workers], shared) for rank in range(workers)]
        _, found, unread = named(size, 3, int(1.3 * count / 3), parts, seed)
        read.append(len(np.intersect1d(found, every)) / count)
        assert len(np.setdiff1d(found, every)) <= 3  # read by mistake, with a probability of blocks * workers / 2^32
        assert unread < 0.01
    assert np.mean(read) > 0.999


def test_of_too_many_names_some_are_read_and_the_rest_is_told():
    every = subsets(50_000, [1500])[0]
    _, found, unread = named(50_000, 3, 433, [every])
    assert unread > 0.5
    assert set(found) < set(every)
    for more in (named(50_000, 3, 433, [every[:0]]), named(5, 3, 2, [np.arange(0)])):
        assert more[1].shape == (0,)
        assert more[2] == 0


@given(data=st.data())
def test_all_implementations_read_the_same_names(data):
    size = data.draw(st.integers(1, 400))
    rows = data.draw(st.integers(1, 7))
    columns = data.draw(st.integers(1, size))
    counts = data.draw(st.lists(st.integers(0, min(size, 30)), min_size=1, max_size=4))
    seed = data.draw(st.integers(0, 2**64))
    parts = subsets(size, counts, counts[0])
    table, found, unread = named(size, rows, columns, parts, seed)
    assert table.dtype == np.int32
    for ops in OTHERS.values():
        other = named(size, rows, columns, parts, seed, ops)
        assert np.array_equal(other[0], table)
        assert np.array_equal(other[1], found)
        assert other[2] == unread
    assert (np.diff(found) > 0).all()
    if unread == 0:  # what is left over is no coordinate
        assert set(found) == set(np.concatenate(parts))


@given(seed=st.integers(0, 2**32), most=st.integers(1, 40))
def test_whatever_table_comes_in_is_read_within_bounds(seed, most):
    random = np.random.default_rng(seed)
    size, columns = 500, int(random.integers(1, 501))
    codes = np.array([0, 1, -1, -(2**31), *_multiples(-(-size // columns), most)[0]], np.int32)
    for ops in (REFERENCE, *OTHERS.values()):
        sketch = InvertibleSketch(size, 3, columns, ops=ops)
        sketch.table = ops.from_numpy(np.random.default_rng(seed).choice(codes, 3 * columns))
        found = ops.to_numpy(sketch.recover(most)[0])
        assert ((found >= 0) & (found < size)).all()
        assert (np.diff(found) > 0).all()


def test_a_table_is_not_used_up():
    sketch = InvertibleSketch(1000, 3, 50)
    sketch.add(np.arange(0, 1000, 50))
    table = sketch.table.copy()
    assert np.array_equal(sketch.recover(1)[0], sketch.recover(1)[0])
    assert np.array_equal(sketch.table, table)
    with pytest.raises(ValueError, match="InvertibleSketch: columns must be in 1 to the vector's size, 10; got 11"):
        InvertibleSketch(10, 3, 11)


# --- the methods


def run(spec: str, steps: list[list[np.ndarray]], workers: int = 2) -> list[np.ndarray]:
    simulation = Simulation(parse(spec), steps[0][0].shape[0], workers)
    return [simulation.reduce(vectors)[0].mean for vectors in steps]


def arrays(*numbers: list[float]) -> list[np.ndarray]:
    return [np.array(number, np.float32) for number in numbers]


def test_one_parameter_by_hand():
    """Momentum 0.5 with masking: the momentum is sent in each step, and begins anew."""
    steps = [arrays([2.0], [4.0]), arrays([-1.0], [3.0])]
    means = run("sketched_sgd(k=1, rows=1, columns=1, p1=0, p2=1, momentum=0.5)", steps)
    assert [mean.tolist() for mean in means] == [[3.0], [1.0]]
    # Without masking the momentum of the first gradients pushes half of it.
    means = run("sketched_sgd(k=1, rows=1, columns=1, p1=0, p2=1, momentum=0.5, masking=False)", steps)
    assert [mean.tolist() for mean in means] == [[3.0], [2.5]]


def test_two_parameters_by_hand():
    steps = [arrays([4.0, 1.0], [2.0, -3.0]), arrays([0.0, 1.0], [1.0, 5.0]), arrays([1.0, 0.0], [1.0, 0.0])]
    both = "rows=1, columns=2, p1=0, p2=1"
    # k = 2 sends all: with masking there is no momentum left.
    assert [m.tolist() for m in run(f"sketched_sgd(k=2, {both}, momentum=0.5)", steps)] == [[3, -1], [0.5, 3], [1, 0]]
    # k = 1, masking: coordinate 1 keeps u = (1, -3), v = the same; then u = (1.5, 3.5), v = (2.5, 0.5); then
    # coordinate 0 has v = (0, 1) + u with u = (0, 1) / 2 + (1, 1).
    means = run(f"sketched_sgd(k=1, {both}, momentum=0.5)", steps)
    assert [m.tolist() for m in means] == [[3, 0], [0, 1.5], [1.75, 0]]
    # k = 1, error feedback: residuals (0, 1) and (0, -3); (0, 2) and (1, 2), coordinate 1 is sent; (1, 0), (2, 0).
    means = run(f"sketched_sgd(k=1, {both}, momentum=0)", steps)
    assert [m.tolist() for m in means] == [[3, 0], [0, 2], [1.5, 0]]
    # Momentum and error in the sketch, which has no collisions here: u = (3, -1), e = u; then u = (0, -0.5) + (0.5, 3),
    # e = (0.5, 1.5); then u = (0.25, 0) + (1, 0), e = (1.75, 0).
    means = run("fetchsgd(k=1, rows=1, columns=2, momentum=0.5)", steps)
    assert [m.tolist() for m in means] == [[3, 0], [0, 1.5], [1.75, 0]]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_without_collisions_the_largest_of_the_mean_are_applied(workers):
    size, k = 400, 20
    simulation = Simulation(parse(f"sketched_sgd(k={k}, rows=1, columns={size}, p1=0, momentum=0)"), size, workers)
    residual = np.zeros((workers, size))
    for step in range(5):
        vectors = [gaussian(size, 10 * step + rank) for rank in range(workers)]
        corrected = residual + vectors
        chosen = np.argsort(-np.abs(corrected.mean(axis=0)))[:k]
        expected = np.zeros(size)
        expected[chosen] = corrected.mean(axis=0)[chosen]
        corrected[:, chosen] = 0
        residual = corrected
        assert np.allclose(simulation.reduce(vectors)[0].mean, expected, atol=1e-5)
        assert np.allclose([state.local["residual"] for state in simulation.states], residual, atol=1e-5)


@pytest.mark.parametrize("workers", [2, 4, 16])
def test_what_is_large_for_a_worker_is_applied_exactly(workers):
    """Workers' names are all read, and all of the workers' values are sent at these coordinates."""
    size, k = 30_000, 600
    simulation = Simulation(parse(f"sketched_sgd(k={k}, feedback=none)"), size, workers)
    for step in range(4):
        vectors = [gaussian(size, 10 * step + rank) ** 3 for rank in range(workers)]
        part = float(simulation.states[0].shared["part"][0]) if step else 1 / workers
        mean = simulation.reduce(vectors)[0].mean
        expected = np.mean(vectors, axis=0, dtype=np.float64)
        chosen = np.flatnonzero(mean)
        assert len(chosen) == k
        assert np.allclose(mean[chosen], expected[chosen], atol=1e-5)
        largest = [np.argsort(-np.abs(vector))[: round(part * k)] for vector in vectors]
        assert len(np.setdiff1d(np.concatenate(largest), chosen)) <= 0.02 * k


@pytest.mark.parametrize("alike", [True, False])
def test_workers_name_as_many_as_there_is_room_for(alike):
    """The more their names coincide, the more of them; never more than can be read."""
    size, k, workers = 20_000, 400, 8
    simulation = Simulation(parse(f"sketched_sgd(k={k}, feedback=none)"), size, workers)
    for step in range(12):
        vectors = [gaussian(size, step if alike else 100 * step + rank) for rank in range(workers)]
        simulation.reduce(vectors)
    part = float(simulation.states[0].shared["part"][0])
    assert 0.9 < part <= 1 if alike else 0.9 / workers < part < 1.1 / workers
    assert all(state.shared["part"] == simulation.states[0].shared["part"] for state in simulation.states)


def test_too_many_names_make_workers_name_fewer():
    size, k, workers = 20_000, 400, 8
    simulation = Simulation(parse(f"sketched_sgd(k={k}, columns=50, feedback=none)"), size, workers)
    parts = []
    for step in range(8):
        simulation.reduce([gaussian(size, 100 * step + rank) for rank in range(workers)])
        parts.append(float(simulation.states[0].shared["part"][0]))
    assert parts[0] == pytest.approx(0.7 / workers)
    assert min(parts) < 0.35 / workers  # 115 of 400 names can be read


def test_bytes_of_a_worker_do_not_depend_on_their_number():
    for spec in ("sketched_sgd", "fetchsgd", "sketched_sgd(heavymix=True)", "sketched_sgd(p1=2, p2=4)"):
        sent = set()
        for workers in (1, 2, 16, 64):
            simulation = Simulation(parse(spec), 4000, workers)
            simulation.reduce([gaussian(4000, rank) for rank in range(workers)])
            sent.add((simulation.traffic.sent, simulation.traffic.received))
        assert len(sent) == 1
        assert 0.9 * 16000 / 40 <= sent.pop()[0] <= 16000 / 40


@pytest.mark.parametrize("method", [SketchedSGD, FetchSGD])
@pytest.mark.parametrize("budget", [0.5, 1 / 40, 1 / 400])
def test_a_budget_is_kept(method, budget):
    for size in (10_000, 1_000_003):
        split = method(budget=budget).split(size)
        assert budget * size - split.rows < split.numbers <= budget * size  # less than a column is left over
        assert split.k >= 1


def test_settings_override_the_budget():
    split = SketchedSGD(k=100, columns=500, rows=3, p2=2, p1=1).split(10_000)
    assert split == (100, 3, 500, 200)
    assert SketchedSGD(ratio=0.01).split(10_000).k == 100
    assert SketchedSGD(k=8000, p2=4).split(10_000).candidates == 10_000
    for setting, message in (
        ({"k": 101}, "k must be at most the vector's size, 100; got 101"),
        ({"columns": 101}, "columns must"),
    ):
        with pytest.raises(ValueError, match=message):
            Simulation(make("sketched_sgd", **setting), 100, 1).reduce([gaussian(100)])
    for setting, message in (
        ({"rows": 4}, "rows must be odd"),
        ({"p2": 0.5}, "p2 must be 0 or at least 1"),
        ({"k": 0}, "k must be in"),
    ):
        with pytest.raises(ValueError, match=message):
            make("sketched_sgd", **setting)
    with pytest.raises(ValueError, match="the sketch cannot change during training"):
        parse("fetchsgd(k=linear(10, 5, steps=3))")
    assert parse("fetchsgd(k=linear(10, 5, steps=3), columns=50, rows=3)").at(3).split(100).k == 5


def test_heavymix_takes_what_is_heavy_and_fills_up_at_random():
    size, k = 1000, 10
    vector = np.zeros(size, np.float32)
    vector[[5, 500, 999]] = 10, -20, 15
    vector += 0.01 * gaussian(size)
    simulation = Simulation(make("sketched_sgd", k=k, columns=200, heavymix=True, p1=0, feedback="none"), size, 2)
    drawn = np.zeros(size)
    for _ in range(400):
        mean = simulation.reduce([vector, vector])[0].mean
        chosen = np.flatnonzero(mean)
        assert len(chosen) == k
        assert {5, 500, 999} <= set(chosen)
        assert np.array_equal(mean[chosen], vector[chosen])
        drawn[chosen] += 1
    others = np.delete(drawn, [5, 500, 999])
    expected = 400 * 7 / (size - 3)
    assert abs(others.mean() - expected) < 1e-9
    assert ((others - expected) ** 2).mean() == pytest.approx(expected, rel=0.2)  # as of a Poisson number


def test_iterates_are_averaged_with_the_theorem_s_weights():
    from hvd_compress.torch import averaged_iterates

    model = torch.nn.Linear(3, 2)
    averaged, seen = averaged_iterates(model, 5.0), []
    for step in range(20):
        with torch.no_grad():
            model.weight.copy_(torch.randn(2, 3, generator=torch.Generator().manual_seed(step)))
        seen.append(model.weight.detach().clone())
        averaged.update_parameters(model)
    weights = (5.0 + torch.arange(20)) ** 2
    expected = (torch.stack(seen) * weights[:, None, None]).sum(dim=0) / weights.sum()
    assert torch.allclose(averaged.module.weight, expected, atol=1e-5)
    with pytest.raises(ValueError, match="shift must be above 0; got 0"):
        averaged_iterates(model, 0)


def test_momentum_is_a_setting_or_a_feedback():
    assert parse("sketched_sgd") == make("sketched_sgd", momentum=0, feedback="ef")
    assert parse("sketched_sgd(momentum=0.9, masking=False)").masking is False
    assert parse("sketched_sgd(momentum=0.5)").momentum == 0.5


def test_a_layout_of_several_parameters_is_one_vector():
    layout = Layout.of([("a", (10, 10)), ("b", (50,))])
    vectors = [gaussian(150, rank) for rank in range(2)]
    a = Simulation(parse("sketched_sgd(k=5)"), layout, 2, seed=1).reduce(vectors)[0].mean
    assert np.count_nonzero(a) == 5
