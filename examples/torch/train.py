"""Train a network with PyTorch and Horovod, its gradients compressed.

horovodrun -np 2 python examples/torch/train.py --compression "topk(ratio=0.01)"
mpirun -np 2 python examples/torch/train.py --task mnist --data DIR --model cnn --compression powersgd
mpirun -np 2 python examples/torch/train.py --task text --compression "topk(ratio=0.01)" --optimizer adam

The last line of rank 0's standard output is a JSON object with what came of it.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import say_loading

if __name__ == "__main__":
    say_loading("PyTorch and Horovod")

import datasets
import horovod.torch as hvd
import torch
from common import arguments, rules, run_job
from models import MODELS, build
from training import inner_optimizer, share_machine, train

import hvd_compress.torch as hvdc
from hvd_compress import parse


def prepared(args: argparse.Namespace) -> tuple[Any, ...]:
    """Return what `train` takes."""
    parse(args.compression)
    data = datasets.load(args.task, args.data)
    torch.manual_seed(args.seed)
    model = build(args.model, data)
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    optimizer = hvdc.DistributedOptimizer(
        inner_optimizer(args, model),
        named_parameters=model.named_parameters(),
        compression=args.compression,
        seed=args.seed,
        rules=rules(args),
    )
    return args, data, model, optimizer, optimizer.compression_stats, hvd, partial(hvd.allreduce, op=hvd.Sum)


def use_own_part_of_the_machine() -> None:
    """Take this worker's share of the cores."""
    share_machine(hvd.local_size())


def main() -> int:
    """Run the job; 2 stands for bad input, 130 for Ctrl-C."""
    args = arguments(__doc__.splitlines()[0], list(MODELS), datasets.TASKS)
    hvd.init()
    use_own_part_of_the_machine()
    return run_job(hvd, lambda: prepared(args), train)


if __name__ == "__main__":
    sys.exit(main())
