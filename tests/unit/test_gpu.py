"""The GPU's kernels: the bytes of the CPU's. On a GPU if there is one, else under Triton's interpreter."""

import importlib
import math

import numpy as np
import pytest
import torch
from gpu_kernels import compiled, recorded
from gpu_work import CUDA, counted
from hypothesis import given, settings
from hypothesis import strategies as st

from hvd_compress import Layout, Simulation, make, methods, parse
from hvd_compress.compressors import quantize
from hvd_compress.compressors.indices import decode_indices, encode_indices, index_bytes
from hvd_compress.compressors.sketches.count_sketch import CountSketch
from hvd_compress.compressors.sketches.invertible import InvertibleSketch
from hvd_compress.compressors.sparsify import about_largest, inclusion_scale
from hvd_compress.compressors.state import State
from hvd_compress.ops.numpy import NumpyOps
from hvd_compress.ops.random import Stream, distinct
from hvd_compress.ops.torch import TorchOps
from hvd_compress.reduction.step import Step, echo

kernels = pytest.importorskip("hvd_compress.native.gpu.kernels")
selection = importlib.import_module("hvd_compress.native.gpu.selection")

few = settings(max_examples=100 if CUDA else 12)  # the interpreter is slow
DEVICE = torch.device("cuda" if CUDA else "cpu")
GPU, NUMPY = TorchOps(DEVICE, kernels=kernels.GpuKernels(DEVICE)), NumpyOps(kernels=False)
LAYOUT = Layout.of([("a", (30, 20)), ("b", (7,)), ("empty", (0, 3)), ("c", (16, 3, 3, 3)), ("scalar", ())])
LARGE = Layout.of([("a", (1000, 700)), ("b", (4097,)), ("empty", (0, 3)), ("c", (16, 3, 3, 3)), ("d", (70_001,))])
ROUNDED = ("powersgd",)  # products of matrices, which libraries add up in orders of their own

# With its own number of columns it takes the interpreter long.
DEFAULTS = ["fetchsgd(columns=100, k=20)" if name == "fetchsgd" else name for name in methods()]
SPECS = [
    *DEFAULTS,
    *("topk(values=fp16)", "topk(values=qsgd(bits=3, block=16))", "topk(ratio=0.3, scope=model)", "topk(ratio=1)"),
    *("dgc(ratio=0.1, feedback=momentum(nesterov=True))", "dgc(ratio=0.001)", "wangni(ratio=0.9)", "threshold(1.5)"),
    *("qsgd(bits=2, norm=l2)", "qsgd(bits=8)", "qsgd(bits=5, block=100)", "qsgd(bits=7, block=128, norm=l2)"),
    *("qsgd(bits=4, block=20000)", "qsgd(bits=6, block=3, feedback=ef)", "qsgd(feedback=ef, bits=3, block=64)"),
    *("low_precision(bits=12)", "low_precision(bits=10, feedback=ef)", "terngrad(clip=0)", "int8(block=10)"),
    *("int8(feedback=ef)", "bf16(feedback=ef)", "fp16(feedback=ef)", "onebit(feedback=ef21)", "randomk(scaled=True)"),
    *("sketched_sgd(p1=2, ratio=0.05)", "sketched_sgd(heavymix=True, ratio=0.05, columns=60)"),
    *("sketched_sgd(p1=0, ratio=0.05, rows=7, columns=60)", "fetchsgd(rows=3, columns=100, k=20)"),
]
SPECS = [text.replace("threshold(1.5)", "threshold(threshold=1.5)") for text in SPECS]


@pytest.fixture
def small_samples(monkeypatch):
    """Narrow down by a sample what the interpreter can search, as on a GPU the vectors of millions of coordinates."""
    monkeypatch.setattr(selection, "SAMPLE", 4096)
    monkeypatch.setattr(selection, "LARGE", 9000)


def vectors(layout: Layout, *seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(layout.size).astype(np.float32)


def on_gpu(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.copy()).to(DEVICE)


def same(ours: torch.Tensor, expected: np.ndarray) -> bool:
    """Whether two arrays have the same bytes; NaN and zeros of either sign are equal."""
    ours = ours.cpu().numpy()
    return ours.dtype == expected.dtype and np.array_equal(ours, expected, equal_nan=ours.dtype.kind == "f")


def run(text: str, layout: Layout, ops, steps: int = 2, workers: int = 2):
    """Give what each step's workers hand over, and the mean."""
    simulation = Simulation(parse(text), layout, workers, ops=ops)
    for step in range(steps):
        results = simulation.reduce([ops.from_numpy(vectors(layout, step, rank)) for rank in range(workers)])
        sent = [list(p) if isinstance(p, list | tuple) else [p] for p in simulation.payloads]
        yield [ops.to_numpy(payload) for each in sent for payload in each], ops.to_numpy(results[0].mean)


@pytest.mark.parametrize("text", SPECS)
@pytest.mark.parametrize(
    "layout",
    [LAYOUT, pytest.param(LARGE, marks=[] if CUDA else pytest.mark.slow)],
    ids=lambda layout: str(layout.size),
)
def test_every_method_sends_the_bytes_of_the_cpu(text, layout):
    for (ours, our_mean), (expected, mean) in zip(run(text, layout, GPU), run(text, layout, NUMPY), strict=True):
        assert len(ours) == len(expected)
        if parse(text).bare.name in ROUNDED:
            assert np.allclose(our_mean, mean, rtol=1e-4, atol=1e-4)
            continue
        for a, b in zip(ours, expected, strict=True):
            assert a.dtype == b.dtype
            assert np.array_equal(a, b)
        assert np.array_equal(our_mean, mean)


@pytest.mark.parametrize("name", DEFAULTS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_reaches_every_worker(name, bad):
    simulation = Simulation(parse(name), LAYOUT, 2, ops=GPU)
    poisoned = vectors(LAYOUT, 0)
    poisoned[-3] = bad
    results = simulation.reduce([GPU.from_numpy(poisoned), GPU.from_numpy(vectors(LAYOUT, 1))])
    assert not any(bool(result.mean.isfinite().all()) for result in results)


@few
@given(st.integers(0, 2**31), st.integers(1, 9000), st.integers(0, 30))
def test_packing(seed, count, bits):
    numbers = np.random.default_rng(seed).integers(0, 1 << bits, count).astype(np.int64)
    packed = GPU.pack(on_gpu(numbers), bits)
    assert same(packed, NUMPY.pack(numbers, bits))
    assert same(GPU.unpack(packed, bits, count), numbers.astype(np.int32))
    if bits:
        with pytest.raises(ValueError, match="bytes"):
            GPU.unpack(packed, bits, count + 8)


ODD = [0.0, -0.0, 1.0, -1.0, 1e-40, -1e38, np.nan, np.inf, 2.0**-126]
floats = st.one_of(st.sampled_from(ODD), st.floats(-3, 3, width=32))


@few
@given(st.lists(floats, min_size=1, max_size=60), st.integers(1, 200), st.data())
def test_selection(values, copies, data):
    vector = np.tile(np.array(values, np.float32), copies)
    count = data.draw(st.integers(1, vector.size))
    assert same(GPU.top_k(on_gpu(vector), count), NUMPY.top_k(vector, count))
    threshold = data.draw(st.floats(0, 2))
    assert same(GPU.above(on_gpu(vector), threshold), NUMPY.above(vector, threshold))
    marked = vector > 0
    assert same(GPU.bitmap(on_gpu(np.flatnonzero(marked)), vector.size), np.packbits(marked, bitorder="little"))


@few
@given(st.lists(st.tuples(st.lists(floats, min_size=1, max_size=30), st.integers(1, 300)), min_size=1), st.data())
def test_selection_of_each_of_several_tensors(parts, data):
    """All are searched together, large ones after a sample."""
    tensors = [np.tile(np.array(values, np.float32), copies) for values, copies in parts]
    ends = np.cumsum([tensor.size for tensor in tensors]).tolist()
    places = [slice(end - tensor.size, end) for end, tensor in zip(ends, tensors, strict=True)]
    counts = [data.draw(st.integers(1, tensor.size)) for tensor in tensors]
    vector = np.concatenate(tensors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "LARGE", 5000)
        patch.setattr(selection, "SAMPLE", 1024)
        assert same(GPU.top_k_each(on_gpu(vector), places, counts), NUMPY.top_k_each(vector, places, counts))


numbers = floats.filter(lambda value: not math.isnan(value))


@few
@given(
    st.lists(
        st.tuples(st.lists(numbers, min_size=1, max_size=30) | st.just([math.nan]), st.integers(1, 300)), min_size=1
    ),
    st.data(),
)
def test_selection_of_about_so_many(parts, data):
    """By a sample's threshold, or where that lets through too few or too many, exactly: all tensors at once."""
    tensors = [np.tile(np.array(values, np.float32), copies) for values, copies in parts]
    ends = np.cumsum([tensor.size for tensor in tensors]).tolist()
    places = [slice(end - tensor.size, end) for end, tensor in zip(ends, tensors, strict=True)]
    counts = [data.draw(st.integers(1, tensor.size)) for tensor in tensors]
    sampled = [data.draw(st.integers(1, -(-tensor.size // 7))) for tensor in tensors]
    bounds = [(count * data.draw(st.sampled_from([0, 0.8, 2])), 1.3 * count) for count in counts]
    vector = np.concatenate(tensors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "LARGE", 5000)
        patch.setattr(selection, "SAMPLE", 1024)
        found = about_largest(GPU, on_gpu(vector), places, counts, 7, sampled, bounds)
        assert same(found, about_largest(NUMPY, vector, places, counts, 7, sampled, bounds))


@pytest.mark.parametrize("kind", ["normal", "zeros", "one value", "sorted", "few values", "nan"])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.999])
def test_selection_from_a_large_vector(kind, share, request):
    """Which a sample narrows down; where it is wrong, or all are equal, the same comes out."""
    if not CUDA:
        request.getfixturevalue("small_samples")
    size = 4_200_000 if CUDA else 40_000
    vector = vectors(Layout.flat(size), 5)
    vector = {
        "normal": vector,
        "zeros": np.where(vector > 3, vector, 0),
        "one value": np.full_like(vector, -2.5),
        "sorted": np.sort(vector),
        "few values": np.round(vector),
        "nan": np.where(vector > 2, np.nan, vector),
    }[kind].astype(np.float32)
    assert same(GPU.top_k(on_gpu(vector), int(share * size)), NUMPY.top_k(vector, int(share * size)))


@few
@given(st.integers(0, 2**31), st.integers(1, 20_000), st.floats(0, 1))
def test_indices(seed, size, share):
    indices = np.sort(np.random.default_rng(seed).permutation(size)[: int(share * size)]).astype(np.int64)
    payload = encode_indices(GPU, on_gpu(indices), size)
    assert same(payload, encode_indices(NUMPY, indices, size))
    assert same(decode_indices(GPU, payload, size, indices.size), indices)


@few
@given(st.integers(1, 600), st.integers(1, 40), st.data())
def test_indices_that_are_not_an_encoder_s(size, count, data):
    count = min(size, count)
    length, outcomes = index_bytes(size, count), []
    content = data.draw(st.binary(min_size=length, max_size=length))
    for ops in (NUMPY, GPU):
        payload = ops.from_numpy(np.frombuffer(content, np.uint8).copy())
        try:
            outcomes.append(ops.to_numpy(decode_indices(ops, payload, size, count)).tolist())
        except ValueError:
            outcomes.append("refused")
    assert outcomes[0] == outcomes[1]
    with pytest.raises(ValueError, match="not those of an encoder"):
        decode_indices(GPU, GPU.from_numpy(np.zeros(length + 1, np.uint8)), size, count)


@pytest.mark.parametrize("groups", [1, 7, 1000, 9000, [5], [9000, 0, 3, 20_000, 1]])
@pytest.mark.parametrize("plus", [False, True])
def test_groups(groups, plus):
    size = sum(groups) if isinstance(groups, list) else 29_004
    vector, added = vectors(Layout.flat(size), 1), vectors(Layout.flat(size), 2)
    whole = vector + added if plus else vector
    ends = np.cumsum(groups)[:-1] if isinstance(groups, list) else np.arange(groups, size, groups)
    parts = [part.astype(np.float64) for part in np.split(whole, ends)]
    given_ = (on_gpu(vector), groups, on_gpu(added) if plus else None)
    largest, squares = GPU.kernels.group_max_square(*given_)
    assert same(largest, np.array([np.abs(part).max(initial=0) for part in parts], np.float32))
    assert same(GPU.kernels.group_max_abs(*given_), largest.cpu().numpy())
    assert np.allclose(squares.cpu(), [(part**2).sum() for part in parts], rtol=1e-12)
    sides = GPU.kernels.group_sides(*given_).cpu().numpy().reshape(-1, 3)
    wanted = [(part[part >= 0].sum(), part[part < 0].sum(), (part >= 0).sum()) for part in parts]
    assert np.allclose(sides, wanted, rtol=1e-12)
    vector[-1] = np.nan  # of the last group alone
    largest, squares = GPU.kernels.group_max_square(on_gpu(vector), groups, None)
    sides = GPU.kernels.group_sides(on_gpu(vector), groups, None).reshape(-1, 3)
    for found in (largest, squares, sides[:, 1]):
        assert found.isnan().tolist() == [False] * (len(parts) - 1) + [True]


@few
@given(st.integers(0, 2**31), st.integers(1, 5000), st.data())
def test_random_numbers(step, size, data):
    stream = Stream(0x123456789ABCDEF0, step)
    assert same(GPU.uniform(size, stream), NUMPY.uniform(size, stream))
    count = data.draw(st.integers(0, size))
    assert same(GPU.distinct(count, size, stream), distinct(count, size, stream))


@pytest.mark.parametrize("rows", [1, 3, 5, 7, 15])
def test_count_sketches(rows):
    size = 3000
    vector, chosen = vectors(Layout.flat(size)), np.array([0, 5, 17, 2999], np.int64)
    ours, theirs = (CountSketch(size, rows, 700, seed=3, ops=ops) for ops in (GPU, NUMPY))
    for start, end in ((0, 1000), (1000, 1003), (1003, size)):
        ours.sketch(on_gpu(vector[start:end]), start)
        theirs.sketch(vector[start:end], start)
    ours.add_sparse(on_gpu(chosen), on_gpu(vector[chosen]))
    theirs.add_sparse(chosen, vector[chosen])
    assert same(ours.table, theirs.table)
    assert same(ours.estimate(), theirs.estimate())
    assert same(ours.estimate(on_gpu(chosen)), theirs.estimate(chosen))
    assert same(ours.heavy_hitters(100), theirs.heavy_hitters(100))


@pytest.mark.parametrize("count", [0, 300, 700, 1500])
def test_invertible_sketches(count):
    """Of a table that is too full as much is read, and as much is left."""
    size, workers = 20_000, 3
    found = []
    for ops in (GPU, NUMPY):
        sketch = InvertibleSketch(size, 3, 333, seed=1, ops=ops)
        for worker in range(workers):
            sketch.add(ops.from_numpy(distinct(count // 2, size, Stream(1, worker % 2))))
        indices, left = sketch.recover(workers)
        found.append((ops.to_numpy(indices).tolist(), left))
    assert found[0] == found[1]


@few
@given(st.lists(floats, min_size=1, max_size=300), st.floats(0.001, 1))
def test_wangni_s_lambda(values, ratio):
    vector = np.array(values, np.float32)
    vector = vector[np.isfinite(vector) & (np.abs(vector) < 10)]
    expected = inclusion_scale(NUMPY, vector, ratio * vector.size, 4)
    assert float(inclusion_scale(GPU, on_gpu(vector), ratio * vector.size, 4)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("text", SPECS)
def test_the_host_waits_at_most_once_before_the_first_collective(text):
    """And only where the length of what is sent depends on the values."""
    compressor, state = parse(text), State(LAYOUT)
    for step in range(3):
        vector = GPU.from_numpy(vectors(LAYOUT, step))
        with counted() as work:
            vector, _ = GPU.poison(vector, True)
            under_way = Step(compressor, GPU, vector, state)
        assert len(work.waits) <= compressor.varying, work.waits
        while under_way.pending is not None:
            under_way.feed(echo(under_way.pending))
        state.commit()


FOR_EACH_TENSOR = ("powersgd",)  # starts kernels for each matrix


@pytest.mark.parametrize("text", [text for text in DEFAULTS if parse(text).bare.name not in FOR_EACH_TENSOR])
def test_kernels_are_started_for_all_tensors_at_once(text, small_samples):
    """Else the host needs longer to start them than the GPU to run them."""
    found = []
    for sizes in ((9000, 600), (9000, *[20] * 30)):
        compressor, layout = parse(text), Layout.of([(str(i), (size,)) for i, size in enumerate(sizes)])
        vector = GPU.from_numpy(vectors(layout))
        with counted() as work:
            Step(compressor, GPU, vector, State(layout))
        found.append((work.kernels, work.operations))
    assert found[0] == found[1]


@pytest.mark.skipif(CUDA, reason="they ran")
def test_all_kernels_compile_ahead_of_time_for_gpus(small_samples):
    with recorded() as found:
        for text in SPECS:
            for _ in run(text, LAYOUT, GPU, workers=1):
                pass
        for _ in run("topk", Layout.flat(10_000), GPU, steps=1, workers=1):  # of a sample
            pass
    assert {kernel["module"].rsplit(".", 1)[-1] for kernel in found} >= {"codes", "selection", "sparse", "sketching"}
    assert not compiled(found)


def test_what_does_not_compile_is_told():
    types = dict.fromkeys(("x_ptr", "y_ptr", "out_ptr"), "*fp32") | {"a": "fp32", "b": "fp32", "size": "i32"}
    broken = {"module": "hvd_compress.native.gpu.elementwise", "name": "_affine", "types": types}
    broken |= {"ones": [], "options": {}, "constants": {"TILE": 1000}}  # which is no power of two
    assert "_affine for sm_80" in compiled([broken])


def test_every_quantizer_has_a_kernel():
    quantizers = [name for name, method in methods().items() if issubclass(method, quantize.Quantizer)]
    assert len(quantizers) > 8
    assert all(make(name).bare.has_kernel(GPU) for name in quantizers)
