"""Feed the kernels random and mutated input for a number of seconds; `scripts/sanitize.sh` does so under sanitizers.

Each call must end in ValueError or in a result within bounds, and at all levels of SIMD in the same one.
"""

import sys
import time

import numpy as np

from hvd_compress.compressors.indices import index_bytes
from hvd_compress.native.cpu import _kernels
from hvd_compress.ops import packed_bytes

seed = time.time_ns() % 2**32
rng = np.random.default_rng(seed)


def number(most: int) -> int:
    """Return a number up to `most`, often a small one."""
    return int(rng.integers(0, 1 + min(most, 4 ** int(rng.integers(1, 13)))))


def random_bytes(length: int) -> np.ndarray:
    """Return bytes of one of several densities, at any alignment, with nothing behind them."""
    start = number(7)
    data = rng.integers(0, 256, start + length, np.uint8)
    for _ in range(number(4)):
        data &= rng.integers(0, 256, start + length, np.uint8)
    return data[start:]


def random_indices(size: int, count: int) -> np.ndarray:
    """Return `count` indices: ascending ones below `size`, or these with some put wrong, or any numbers."""
    indices = np.sort(rng.choice(size, min(count, size), replace=False)).astype(np.int64)
    wrong = [-1, size, -(2**63), 2**63 - 1, 0, size // 2]
    for _ in range(number(3) if rng.random() < 0.5 else 0):
        if len(indices):
            indices[number(len(indices) - 1)] = wrong[number(5)]
    return indices if rng.random() < 0.9 else rng.integers(-(2**63), 2**63 - 1, count)


def case() -> tuple:
    """Return a function's name and its arguments."""
    size = 1 + number(300_000)
    count = number(size)
    bits = number(30)
    stream = tuple(map(int, rng.integers(0, 2**32, 2)))

    def vector() -> np.ndarray:
        return random_bytes(4 * size).copy().view(np.float32)

    def payload(length: int) -> np.ndarray:
        return random_bytes(max(0, length + number(2) - 1) if rng.random() < 0.1 else length)

    def encoded() -> np.ndarray:
        return mutated(_kernels.encode_indices(np.sort(rng.choice(size, count, replace=False)), size))

    def indices() -> np.ndarray:
        return random_indices(size, count)

    def lengths() -> list[int]:
        if rng.random() < 0.5:
            return [size // 3, 0, size - size // 3]
        return (rng.integers(-1, 3, number(50)) * rng.choice([1, 4096, size // 10 + 1, 2**61])).tolist()

    def code() -> tuple:
        kind = str(rng.choice(["levels", "natural", "dynamic", "bfloat", "sign"]))
        width = {"natural": 9, "bfloat": 16, "dynamic": 8, "sign": 1}.get(kind, number(12))
        return (kind, width, 1.0, -number(3), number(40), int(rng.integers(0, 3)))

    def groups() -> int | list[int]:
        return number(100) if rng.random() < 0.5 else lengths()

    def table() -> tuple:
        rows, columns = 1 + 2 * number(8), 1 + number(size)
        blocks = -(-size // columns)
        shifts = rng.integers(0, columns + int(rng.random() < 0.1), rows * blocks)
        flips, signs = rng.integers(0, 2, rows * blocks, np.uint8), rng.integers(0, 2**32, -(-columns // 32), np.uint32)
        sums = random_bytes(4 * rows * columns).copy().view(np.float32)
        return (sums, size, rows, (shifts, flips, signs[int(rng.random() < 0.1) :]))

    def inverted() -> tuple:
        rows, columns = 1 + number(15), 1 + number(size)
        blocks = -(-size // columns)
        shifts = rng.integers(0, columns + int(rng.random() < 0.1), rows * blocks)
        multiples = rng.integers(-(2**31), 2**31, 1 + number(1000), np.int32)
        owners = rng.integers(0, blocks + int(rng.random() < 0.1), len(multiples) - int(rng.random() < 0.1))
        sums = rng.choice(multiples, rows * columns) * rng.integers(0, 2, rows * columns, np.int32)
        return (sums, size, rows, shifts, multiples, owners, number(9))

    def dequantize() -> tuple:
        how = (code(), groups())
        try:
            payload = mutated(_kernels.quantize(vector(), None, False, *how, "max", stream))
        except ValueError:
            payload = random_bytes(number(200))
        return ("dequantize", [payload], *how, size, 1.0, bool(count % 2), None)

    cases = [
        lambda: ("decode_indices", payload(index_bytes(size, count)), size, count),
        lambda: ("decode_indices", encoded(), size, count),
        lambda: ("unpack", payload(packed_bytes(count, bits)), bits, count),
        lambda: ("set_bits", payload(packed_bytes(size, 1)), size),
        lambda: ("bitmap", indices(), size),
        lambda: ("encode_indices", indices(), size),
        lambda: ("scatter_add", vector(), indices(), vector()[:count].copy()),
        lambda: ("scatter_zero", vector(), indices()),
        lambda: ("take_out", vector(), indices()),
        lambda: ("take", vector(), indices()),
        lambda: ("accumulate", vector(), 0.9, vector(), vector(), bool(count % 2)),
        lambda: ("pack", indices().astype(rng.choice(["uint8", "int32", "int64"])), bits),
        lambda: ("top_k", vector(), count),
        lambda: ("above", vector(), float(rng.standard_cauchy())),
        lambda: ("group_max_abs", vector(), groups(), None),
        dequantize,
        lambda: ("quantize", vector(), None, False, code(), groups(), rng.choice(["max", "l2"]), stream),
        lambda: ("scatter", size, [(indices(), vector()[:count].copy()), (indices(), vector()[:count].copy())], 0.5),
        lambda: ("times", vector(), [number(size), 0], (number(40), number(40)), vector()[:count].copy(), number(5)),
        lambda: ("draw", vector(), float(rng.standard_cauchy()), stream),
        lambda: ("sum_abs_below", vector(), float(rng.standard_cauchy())),
        lambda: ("group_sides", vector(), groups(), vector()),
        lambda: ("distinct", count, size, stream),
        lambda: ("uniform", count, stream),
        lambda: ("estimate", *table(), indices() if rng.random() < 0.5 else None),
        lambda: ("heavy", *table(), count),
        lambda: ("recover", *inverted()),
        lambda: ("sketch", *table(), vector(), number(3)),
        lambda: ("sketch_sparse", *table(), indices(), vector()[:count].copy()),
        lambda: ("all_finite", vector()),
    ]
    return cases[int(rng.integers(0, len(cases)))]()


def mutated(payload: np.ndarray) -> np.ndarray:
    """Change, exchange or cut off some bytes."""
    for _ in range(number(8)):
        if len(payload):
            i, j = number(len(payload) - 1), int(rng.integers(0, len(payload)))
            payload[i], payload[j] = payload[j], rng.choice([payload[i], 0, 255, rng.integers(0, 256)])
    return payload[: len(payload) - number(1) * int(rng.random() < 0.1)].copy()


def outcome(name: str, arguments: tuple) -> object:
    """Return what a call comes to, as something that can be compared."""
    changes = name in ("scatter_add", "scatter_zero", "take_out", "accumulate", "sketch", "sketch_sparse")
    arguments = tuple(a.copy() if changes and isinstance(a, np.ndarray) else a for a in arguments)
    try:
        result = getattr(_kernels, name)(*arguments)
    except ValueError as refused:
        return str(refused)
    if name == "recover":
        result = result[0]
    if name in ("recover", "decode_indices", "set_bits", "distinct", "top_k", "above", "heavy"):
        assert (np.diff(result) > 0).all(), name
        assert not len(result) or result[0] >= 0, name
    if name == "decode_indices":
        assert len(result) == arguments[2], name
        assert not len(result) or result[-1] < arguments[1], name
    if name == "quantize" and not np.isfinite(arguments[0]).all():
        return len(result)  # a norm of NaN may have any bits
    arrays = [item for item in (result, *(arguments if changes else ())) if isinstance(item, np.ndarray)]
    for array in arrays:
        if array.dtype.kind == "f":
            array[np.isnan(array)] = np.nan  # a sum of two NaN may be either
    return [array.tobytes() for array in arrays] or result


end = time.monotonic() + float(sys.argv[1])
calls = refusals = 0
while time.monotonic() < end:
    name, *arguments = case()
    _kernels.set_threads(1 + calls % 3)
    outcomes = []
    for level in _kernels.simd_levels():
        _kernels.set_simd(level)
        outcomes.append(outcome(name, tuple(arguments)))
    assert all(o == outcomes[0] for o in outcomes), (seed, calls, name)
    calls += 1
    refusals += isinstance(outcomes[0], str)
print(f"fuzzed {calls} calls at {len(outcomes)} levels of SIMD, of which {refusals} were refused (seed {seed})")
