"""Train many times in one start: each argument is a command line of a framework's example.

PYTHONPATH=examples/torch mpirun -np 2 python examples/train_many.py "--compression topk" "--epochs 5"

PYTHONPATH tells whose example: its `train` is what is imported, once, which takes longer than a training of the digits.
Rank 0 prints one JSON object a training, as examples/FRAMEWORK/train.py does.
"""

from __future__ import annotations

import json
import shlex
import sys

import train


def main() -> int:
    """Run the trainings in their order; 2 stands for bad input."""
    trainings = [train.arguments(__doc__, list(train.MODELS), line=shlex.split(line)) for line in sys.argv[1:]]
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
