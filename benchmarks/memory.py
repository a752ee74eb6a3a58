"""The memory that a step of each compressor takes beyond gradient, residual and mean, as a part of the gradient.

Linux only: it is the peak of the resident set over steps with feedback, each in a process of its own.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from hvd_compress.cli.compressor_bench import default_specs

STEP = """
import sys
import torch
from hvd_compress import Feedback, Layout, State, parse
from hvd_compress.ops.torch import TorchOps
from hvd_compress.reduction.step import Step, echo

def resident(kind):
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith(kind))

size, compressor, ops = int(sys.argv[1]), parse(sys.argv[2]), TorchOps()
side = int(size ** 0.5)

def run(layout):
    state, mean = State(layout), None
    vector = ops.zeros(layout.size).normal_().mul_(4e-4)
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
        vector.normal_().mul_(4e-4)
        del before
    kept = {**state.local.kept, **state.shared.kept}
    return sum(a.nbytes for a in kept.values()) + vector.nbytes + mean.nbytes

run(Layout.of([("m", (300, 300))]))  # what is allocated once
base = resident("VmRSS")
with open("/proc/self/clear_refs", "w") as refs:
    refs.write("5")  # the peak begins anew
needed = run(Layout.of([("m", (side, side))]))
payload = compressor.payload_bits(Layout.of([("m", (side, side))]), 0 if compressor.varying else None) // 8
print(resident("VmHWM") - base - needed, payload, 4 * side * side)
"""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--size", type=int, default=25_000_000, help="coordinates of the gradient")
    parser.add_argument("--only", nargs="+", metavar="SPEC", help="the compressors (if none: all)")
    args = parser.parse_args()
    specs = args.only or default_specs(args.size)
    table = Table(box=box.MARKDOWN, title=f"{args.size} coordinates: peak beyond gradient, state and mean")
    for column in ("compressor", "MB", "of it payload", "beyond the payload, of the gradient"):
        table.add_column(column, justify="left" if column == "compressor" else "right")
    for spec in track(specs, "compressors", console=Console(stderr=True), transient=True):
        command = [sys.executable, "-c", STEP, str(args.size), spec]
        root = Path(__file__).parents[1]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
        extra, payload, gradient = map(int, done.stdout.split())
        table.add_row(spec, f"{extra / 1e6:.1f}", f"{payload / 1e6:.1f}", f"{(extra - payload) / gradient:.1%}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
