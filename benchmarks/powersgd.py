"""PowerSGD of this package compared with PyTorch's `powerSGD_hook`, on the matrices of two networks, in one process.

python -m benchmarks.powersgd
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from hvd_compress import Layout, State, parse
from hvd_compress.ops.torch import TorchOps
from hvd_compress.reduction.step import Step, echo


def resnet50() -> list[tuple[int, ...]]:
    """Return the shapes of ResNet-50's convolutions and classifier."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7)]
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += [(width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            if block == 0:
                shapes.append((4 * width, inputs, 1, 1))
            inputs = 4 * width
    return [*shapes, (1000, 2048)]


def gpt2() -> list[tuple[int, ...]]:
    """Return the shapes of GPT-2-small's matrices."""
    layer: list[tuple[int, ...]] = [(768, 2304), (768, 768), (768, 3072), (3072, 768)]
    return [(50257, 768), (1024, 768), *layer * 12]


NETWORKS = {"ResNet-50": resnet50, "GPT-2-small": gpt2}


class Matrices(nn.Module):
    """A model whose only parameters are matrices, and whose gradients are those that `forward` is given."""

    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        super().__init__()
        self.matrices = nn.ParameterList([nn.Parameter(torch.zeros(shape)) for shape in shapes])

    def forward(self, gradients: list[torch.Tensor]) -> torch.Tensor:
        """Return the sum of the products of parameters and gradients."""
        return sum((p * g).sum() for p, g in zip(self.matrices, gradients, strict=True))


def theirs(shapes: list[tuple[int, ...]], rank: int, steps: int) -> list[float]:
    """Return the seconds of PyTorch's hook in each step."""
    state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=rank, start_powerSGD_iter=2)
    seconds: list[float] = []

    def timed(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        began = time.perf_counter()
        future = powerSGD_hook.powerSGD_hook(state, bucket)
        future.wait()
        seconds[-1] += time.perf_counter() - began
        return future

    model = DistributedDataParallel(Matrices(shapes), bucket_cap_mb=1 << 20, gradient_as_bucket_view=True)
    model.register_comm_hook(state, timed)
    gradients = [torch.randn(shape) for shape in shapes]
    for _ in range(steps + 4):  # the first are uncompressed, and rebuild the buckets
        seconds.append(0.0)
        model(gradients).backward()
    return seconds[4:]


def ours(shapes: list[tuple[int, ...]], rank: int, steps: int) -> list[float]:
    """Return the seconds of each step of this package's compressor with error feedback."""
    ops, compressor = TorchOps(), parse(f"powersgd(rank={rank})")
    layout = Layout.of([(str(i), shape) for i, shape in enumerate(shapes)])
    state = State(layout)
    gradient = ops.copy(torch.randn(layout.size))
    vector, seconds = ops.copy(gradient), []
    for _ in range(steps + 2):
        vector.copy_(gradient)
        before = state.local.get("residual")
        began = time.perf_counter()
        step = Step(compressor, ops, vector, state)
        while step.pending is not None:
            step.feed(echo(step.pending))
        seconds.append(time.perf_counter() - began)
        state.commit()
        vector = ops.copy(gradient) if before is None else before  # the residual has taken the vector's memory
    return seconds[2:]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.powersgd",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--rank", type=int, default=4, help="columns of the factors")
    parser.add_argument("--steps", type=int, default=10, help="timed steps")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of PyTorch")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the times to this file, in seconds")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dist.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
    table = Table(
        box=box.MARKDOWN, title=f"milliseconds a step, rank {args.rank}, {args.threads} threads: least (median)"
    )
    for column in ("network", "coordinates", "memcpy", "PyTorch's hook", "hvd_compress", "ratio"):
        table.add_column(column, justify="left" if column == "network" else "right")
    results = []
    for network, make in NETWORKS.items():
        shapes = make()
        size = Layout.of([(str(i), shape) for i, shape in enumerate(shapes)]).size
        source, target = torch.ones(size), torch.ones(size)
        copies = []
        for _ in range(args.steps):
            began = time.perf_counter()
            target.copy_(source)
            copies.append(time.perf_counter() - began)
        del source, target
        times = {
            "network": network,
            "size": size,
            "memcpy_s": copies,
            "hook_s": theirs(shapes, args.rank, args.steps),
            "hvd_compress_s": ours(shapes, args.rank, args.steps),
        }
        results.append(times)
        cells = [
            f"{1e3 * min(times[key]):.1f} ({1e3 * statistics.median(times[key]):.1f})"
            for key in ("memcpy_s", "hook_s", "hvd_compress_s")
        ]
        ratio = min(times["hook_s"]) / min(times["hvd_compress_s"])
        table.add_row(network, str(size), *cells, f"{ratio:.2f}")
    dist.destroy_process_group()
    Console(width=160).print(table)
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
