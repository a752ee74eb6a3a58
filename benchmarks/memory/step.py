"""Print the peak memory of three steps with one compressor beyond what they return and keep.

    python -m benchmarks.memory.step SIZE SPEC

prints three numbers of bytes: the peak of the resident set beyond gradient, state and mean; the payload (0 where nobody
knows it beforehand); and the gradient.
"""

from __future__ import annotations

import math
import sys

from hvd_compress import Layout, State, parse
from hvd_compress.compressors import Compressor
from hvd_compress.ops.torch import TorchOps
from hvd_compress.reduction.step import Step, echo

STANDARD_DEVIATION = 4e-4  # of the gradient's normal numbers


def resident(kind: str) -> int:
    """Return what Linux says of this process's resident set, in bytes: "VmRSS" is its size, "VmHWM" its peak."""
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith(kind))


def steps(compressor: Compressor, layout: Layout) -> int:
    """Do three steps alone; return the bytes of gradient, state and mean."""
    ops, state, mean = TorchOps(), State(layout), None
    vector = ops.zeros(layout.size).normal_().mul_(STANDARD_DEVIATION)
    for _ in range(3):
        mean = None  # an optimizer has made use of it
        before = state.local.kept
        step = Step(compressor, ops, vector, state)
        while step.pending is not None:
            step.feed(echo(step.pending))
        mean = step.result.mean
        del step
        state.commit()
        vector = state.local.vacated(vector, before, lambda array: array.data_ptr())
        vector = ops.zeros(layout.size) if vector is None else vector
        vector.normal_().mul_(STANDARD_DEVIATION)
        del before
    kept = {**state.local.kept, **state.shared.kept}
    return sum(array.nbytes for array in kept.values()) + vector.nbytes + mean.nbytes


def main() -> None:
    """Measure, and print."""
    size, compressor = int(sys.argv[1]), parse(sys.argv[2])
    side = math.isqrt(size)
    layout = Layout.of([("matrix", (side, side))])
    steps(compressor, Layout.of([("matrix", (300, 300))]))  # a warm-up: allocates what is allocated once
    base = resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")  # resets the peak
    needed = steps(compressor, layout)
    payload = compressor.payload_bits(layout, 0 if compressor.varying else None) // 8
    print(resident("VmHWM") - base - needed, payload, 4 * layout.size)


if __name__ == "__main__":
    main()
