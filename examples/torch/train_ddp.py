"""Train a network with PyTorch's DistributedDataParallel, its gradients compressed.

torchrun --nproc-per-node 2 examples/torch/train_ddp.py --compression "topk(ratio=0.01)"
torchrun --nproc-per-node 2 examples/torch/train_ddp.py --task text --compression powersgd --optimizer adam

The last line of rank 0's standard output is a JSON object with what came of it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import say_loading

if __name__ == "__main__":
    say_loading("PyTorch")

import datasets
import torch
from common import rules
from models import build
from torch.nn.parallel import DistributedDataParallel
from training import Processes, inner_optimizer, run_under_torchrun, train

from hvd_compress import parse
from hvd_compress.torch import ddp


def prepared(args: argparse.Namespace) -> tuple[Any, ...]:
    """Return what `train` takes."""
    parse(args.compression)
    data = datasets.load(args.task, args.data)
    torch.manual_seed(args.seed)
    model = DistributedDataParallel(build(args.model, data))
    compression = ddp.register(model, args.compression, seed=args.seed, rules=rules(args))
    return args, data, model, inner_optimizer(args, model), compression.compression_stats, Processes, Processes.sum


if __name__ == "__main__":
    sys.exit(run_under_torchrun(__doc__.splitlines()[0], prepared, train))
