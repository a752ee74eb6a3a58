"""Train many times in one start: each argument is a command line of a framework's example.

mpirun -np 2 python benchmarks/train_many.py torch "--compression topk --seed 1" "--compression qsgd --epochs 5"

The first argument is the framework. Rank 0 prints one JSON object a training, as examples/FRAMEWORK/train.py does.
Importing takes longer than a training of the digits.
"""

from __future__ import annotations

import importlib
import json
import shlex
import sys
from pathlib import Path


def main() -> int:
    """Run the trainings in their order; 2 stands for bad input."""
    framework, *lines = sys.argv[1:]
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / framework))
    train = importlib.import_module("train")
    trainings = [train.arguments(__doc__, list(train.MODELS), shlex.split(line)) for line in lines]
    train.hvd.init()
    train.use_own_part_of_the_machine()
    for args in trainings:
        try:
            prepared = train.prepared(args)
        except (OSError, TypeError, ValueError) as error:
            if train.hvd.rank() == 0:
                print(f"train_many.py: {args.compression}: {error}", file=sys.stderr)
            return 2
        result = train.train(*prepared)
        if train.hvd.rank() == 0:
            print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
