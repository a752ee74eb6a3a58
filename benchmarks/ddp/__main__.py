"""Time a step under DistributedDataParallel, on hosts behind links of limited speed: plain, PyTorch's hooks, ours.

python -m benchmarks.ddp
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from benchmarks.common.markdown import paragraph, table
from benchmarks.ddp.rank import MODELS, schemes
from examples.hosts import NETWORK, Unavailable, hosts

DOCUMENT = Path(__file__).parents[2] / "docs" / "results" / "ddp.md"
Results = dict[tuple[str, str], list[dict[str, Any]]]


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--hosts", type=int, default=4, help="their number, each with one rank")
    parser.add_argument("--mbits", type=int, default=1000, help="rate of each host's link, in Mbit/s")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of a scheme in a round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, in each of which every scheme takes its turn")
    parser.add_argument("--models", nargs="+", action="extend", choices=MODELS, help="what is trained (if none: all)")
    parser.add_argument("--write", action="store_true", help=f"write {DOCUMENT.relative_to(DOCUMENT.parents[2])}")
    args = parser.parse_args()
    args.models = args.models or list(MODELS)
    for name in ("steps", "rounds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1; got {getattr(args, name)}")
    return args


def run(args: argparse.Namespace) -> Results:
    """Return the measurements by model and scheme."""
    settings = {"address": f"{NETWORK}.1", "steps": args.steps, "rounds": args.rounds, "models": args.models}
    found: Results = defaultdict(list)
    env = {**os.environ, "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
    with hosts(args.hosts, args.mbits) as mpirun:
        exported = [word for name in ("GLOO_SOCKET_IFNAME", "OMP_NUM_THREADS") for word in ("-x", name)]
        command = [*mpirun, *exported, sys.executable, "-m", "benchmarks.ddp.rank", json.dumps(settings)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as job:
            assert job.stdout is not None
            total = args.rounds * len(args.models) * len(schemes())
            for line in tqdm((line for line in job.stdout if line.startswith("{")), total=total, unit="run"):
                result = json.loads(line)
                found[result["model"], result["scheme"]].append(result)
    if job.returncode:
        raise RuntimeError(f"the job ended with {job.returncode}")
    return found


def rows(args: argparse.Namespace, found: Results) -> list[list[str]]:
    """Return a row for each scheme: milliseconds a step, and how they compare with plain DDP in the same round."""
    lines = []
    for scheme in schemes():
        line = [f"`{scheme}`" if not scheme.startswith("DDP") else scheme]
        for model in args.models:
            mine, plain = found[model, scheme], found[model, "DDP"]
            milliseconds = [1000 * result["seconds"] for result in mine]
            ratio = statistics.median(m["seconds"] / p["seconds"] for m, p in zip(mine, plain, strict=True))
            sent = mine[0]["bytes"] / 1e6
            line += [
                f"{statistics.median(milliseconds):.0f} ({min(milliseconds):.0f} to {max(milliseconds):.0f})",
                f"{ratio:.2f}",
                "" if sent != sent else f"{sent:.2f}",
            ]
        lines.append(line)
    return lines


def main() -> int:
    """Measure, print a table, write the document; 2 stands for a machine without hosts, 130 for Ctrl-C."""
    args = arguments()
    try:
        found = run(args)
    except Unavailable as error:
        print(f"benchmarks.ddp: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    lines = rows(args, found)
    titles = ["scheme"]
    for model in args.models:
        millions = found[model, "DDP"][0]["parameters"] / 1e6
        titles += [f"{model}, {millions:.1f} M: ms a step", "of DDP's", "MB handed over"]
    shown = Table(*titles)
    for line in lines:
        shown.add_row(*line)
    Console().print(shown)
    if args.write:
        head = paragraph(
            f"{args.hosts} hosts (network namespaces of one machine with {os.cpu_count()} cores, one rank each, gloo), "
            f"links of {args.mbits} Mbit/s; the median of {args.steps} steps, and of {args.rounds} rounds the median "
            "(least to most). The ranks share the cores, so that computing and compressing take longer than on hosts "
            "of their own. PyTorch's PowerSGD hook has one bucket: with several, its rounds are mixed up over gloo."
        )
        settings = " ".join(f"--{name} {getattr(args, name)}" for name in ("hosts", "mbits", "steps", "rounds"))
        command = f"python -m benchmarks.ddp {settings} --write"
        DOCUMENT.write_text(f"# A step under DDP\n\n`{command}`\n\n{head}\n\n{table(' | '.join(titles), lines)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
