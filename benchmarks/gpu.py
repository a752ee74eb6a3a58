"""What compressors cost on a GPU, in multiples of a device-to-device copy, beside PyTorch's own operations.

    python -m benchmarks.gpu --write

writes docs/results/gpu.md and gpu.json.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hvd_compress.cli.compressor_bench import CompressorBench, default_specs

RESULTS = Path(__file__).parent.parent / "docs" / "results"
SIZES = (25_000_000, 250_000_000)
SKETCH = "sketched_sgd(ratio=0.01, rows=5, columns={columns}, p1=0, p2=1)"
# What encode and decode together are meant to take at most, in copies of 250 million coordinates.
GOALS = {
    2.0: ("fp16", "bf16", "signsgd", "ef_signsgd", "onebit"),
    3.0: ("int8", "qsgd(bits=2)", "qsgd(bits=4)", "qsgd(bits=8)", "terngrad", "natural", "low_precision"),
    4.0: ("topk",),
    6.0: ("sketched_sgd", SKETCH),
}


def goal(spec: str, size: int) -> float | None:
    """Return the goal for a spec."""
    for most, specs in GOALS.items():
        if spec in [each.format(columns=max(1, size // 50)) for each in specs]:
            return most
    return None


def timed(run: Callable[[], Any], repetitions: int) -> float:
    """Return the median seconds of a call on the device."""
    seconds = []
    for _ in range(repetitions + 1):
        torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def peers(size: int, repetitions: int) -> dict[str, float]:
    """Return the seconds of PyTorch's operations on a vector: its selection, and its PowerSGD hook of rank 4."""
    return {
        "torch.topk of 1 %": _topk_seconds(size, repetitions),
        "powerSGD_hook(rank=4), beside DDP's own all-reduce": _hook_seconds(math.isqrt(size), repetitions),
    }


def _topk_seconds(size: int, repetitions: int) -> float:
    vector = torch.randn(size, device="cuda")
    return timed(lambda: torch.topk(vector.abs(), size // 100, sorted=False), repetitions)


def _hook_seconds(side: int, repetitions: int) -> float:
    """Return what a backward pass through one matrix takes longer with PyTorch's PowerSGD hook than without."""
    import torch.distributed as dist
    from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
    from torch.nn.parallel import DistributedDataParallel

    torch.cuda.set_device(0)
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    seconds = []
    for hooked in (False, True):
        model = DistributedDataParallel(torch.nn.Linear(side, side, bias=False, device="cuda"))
        if hooked:
            state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=4, start_powerSGD_iter=2)
            model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        x = torch.randn(1, side, device="cuda")

        def step(model: Any = model, x: torch.Tensor = x) -> None:
            model(x).sum().backward()

        for _ in range(4):
            step()
        seconds.append(timed(step, repetitions))
        del model, step
        torch.cuda.empty_cache()
    dist.destroy_process_group()
    return seconds[1] - seconds[0]


def measured(size: int, specs: list[str], repetitions: int) -> dict[str, Any]:
    """Return the report on vectors of one size."""
    bench = CompressorBench("torch", size, None, repetitions, "cuda")
    results = []
    for spec in specs or default_specs(size):
        result = bench.run(spec)
        results.append({**result, "goal": goal(spec, size)})
        both = (result["encode_s"] + result["decode_s"]) / bench.memcpy
        print(f"{size:>11} {spec:<70} {both:.2f}", flush=True)
    report = {"size": size, "device": torch.cuda.get_device_name(), "memcpy_s": bench.memcpy, "check_s": bench.check}
    report["results"] = results
    del bench
    torch.cuda.empty_cache()
    report["peers"] = peers(size, repetitions)
    return report


def page(reports: list[dict[str, Any]]) -> str:
    """Return the results as a page."""
    device = reports[0]["device"]
    lines = [
        "# On a GPU",
        "",
        f"Measured by `scripts/gpu_check.sh` (`python -m benchmarks.gpu --write`) on one **{device}**, PyTorch "
        f"{torch.__version__}. Multiples of one device-to-device copy of the vector, the least of the repetitions "
        "(the median). *Both* is encode and decode of one worker's payload; a goal is for both, at 250 million.",
    ]
    for report in reports:
        copy = report["memcpy_s"]
        lines += [
            "",
            f"## {report['size'] // 1_000_000} million coordinates: a copy takes {1e3 * copy:.3f} ms",
            "",
            "| compressor | encode | decode | both | decode and sum 4 | feedback adds | times fewer bytes | goal |",
            "|---|---:|---:|---:|---:|---:|---:|---|",
        ]
        for r in report["results"]:
            both = (r["encode_s"] + r["decode_s"]) / copy

            def cell(name: str, r: dict[str, Any] = r, copy: float = copy) -> str:
                value = r[f"{name}_s"]
                return "-" if value is None else f"{value / copy:.2f} ({r[f'{name}_median_s'] / copy:.2f})"

            fewer = f"{4 * report['size'] / r['payload_bytes']:.1f}" if r["payload_bytes"] else "-"
            most = r["goal"]
            verdict = "" if most is None else f"{most:g}: {'met' if both <= most else 'missed'}"
            cells = [cell("encode"), cell("decode"), f"{both:.2f}", cell("decode4"), cell("feedback"), fewer, verdict]
            lines.append(f"| `{r['spec']}` | " + " | ".join(cells) + " |")
        lines += ["", f"The check for values that are not finite takes {report['check_s'] / copy:.2f} more."]
        lines += [f"PyTorch's {name}: {seconds / copy:.2f}." for name, seconds in report["peers"].items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", action="extend", help=f"coordinates (default: {SIZES})")
    parser.add_argument(
        "--only", nargs="+", action="extend", default=[], metavar="SPEC", help="the compressors (default: all)"
    )
    parser.add_argument("--repetitions", type=int, default=9, help="of each operation (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="write docs/results/gpu.md and gpu.json")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(3, "there is no GPU that PyTorch can use\n")
    reports = [measured(size, args.only, args.repetitions) for size in args.sizes or SIZES]
    text = page(reports)
    print(text)
    if args.write:
        (RESULTS / "gpu.md").write_text(text)
        (RESULTS / "gpu.json").write_text(json.dumps(reports, indent=1) + "\n")


if __name__ == "__main__":
    main()
