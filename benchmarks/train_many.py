"""Train many times in one start: each argument is a command line of examples/torch/train.py.

mpirun -np 2 python benchmarks/train_many.py "--compression topk --seed 1" "--compression qsgd --epochs 5"

Rank 0 prints one JSON object a training, as train.py does. Importing takes longer than a training of the digits.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path

import horovod.torch as hvd
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "torch"))
import train


def main() -> int:
    """Run the trainings in their order; 2 stands for bad input."""
    trainings = [train.arguments(__doc__, list(train.MODELS), shlex.split(line)) for line in sys.argv[1:]]
    hvd.init()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // hvd.local_size()))
    for args in trainings:
        try:
            data = train.datasets.load(args.task, args.data)
            model, optimizer = train.prepare(args, data)
        except (OSError, TypeError, ValueError) as error:
            if hvd.rank() == 0:
                print(f"train_many.py: {args.compression}: {error}", file=sys.stderr)
            return 2
        result = train.train(args, data, model, optimizer)
        if hvd.rank() == 0:
            print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
