"""Train a network with PyTorch's DistributedDataParallel, its gradients compressed.

torchrun --nproc-per-node 2 examples/torch/train_ddp.py --compression "topk(ratio=0.01)"
torchrun --nproc-per-node 2 examples/torch/train_ddp.py --task text --compression powersgd --optimizer adam

The last line of rank 0's standard output is a JSON object with what came of it.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from hvd_compress import parse
from hvd_compress.torch import ddp

sys.path.insert(0, str(Path(__file__).parents[1]))
import datasets
from common import arguments, rules, run_job
from models import MODELS, build
from training import Processes, inner_optimizer, share_machine, train


def prepared(args: argparse.Namespace) -> tuple[Any, ...]:
    """Return what `train` takes."""
    parse(args.compression)
    data = datasets.load(args.task, args.data)
    torch.manual_seed(args.seed)
    model = DistributedDataParallel(build(args.model, data))
    compression = ddp.register(model, args.compression, seed=args.seed, rules=rules(args))
    return args, data, model, inner_optimizer(args, model), compression.compression_stats, Processes, Processes.sum


def main() -> int:
    """Run the job; 2 stands for bad input, 130 for Ctrl-C."""
    args = arguments(__doc__.splitlines()[0], list(MODELS), datasets.TASKS)
    if "RANK" not in os.environ:
        sys.exit("train_ddp.py: start it with torchrun: torchrun --nproc-per-node 2 examples/torch/train_ddp.py")
    dist.init_process_group("gloo")
    share_machine(int(os.environ["LOCAL_WORLD_SIZE"]))
    try:
        return run_job(Processes, lambda: prepared(args), train)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
