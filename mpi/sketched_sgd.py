"""Minimize by Sketched-SGD with a parameter server: sketches up, indices down, values up, what has changed down.

mpirun --with-ft ulfm -np 5 python mpi/sketched_sgd.py --data DIR --task mlp --compression "sketched_sgd(budget=0.02)"

The last line of standard output is a JSON object with what came of it.
"""

from __future__ import annotations

import argparse
from functools import partial

import console

from hvd_compress.parameter_server import SketchedSGDServer


def main() -> None:
    """Run the job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=console.Formatter)
    parser.add_argument(
        "--compression", metavar="SPEC", default="sketched_sgd", help="sketched_sgd, with settings and feedback"
    )
    parser.add_argument("--lr", type=float, default=0.1, help="learning rate")
    parser.add_argument("--decay", action="store_true", help="decay the learning rate linearly to 0")
    parser.add_argument("--epoch-steps", type=int, help="steps of an epoch (if none: one pass over the rows)")
    console.add_arguments(parser, batch=32, l2=0.0)
    args = console.parse_arguments(parser)
    make = partial(
        SketchedSGDServer,
        compression=args.compression,
        lr=args.lr,
        decay=args.decay,
        epochs=args.max_epochs,
        epoch_steps=args.epoch_steps,
        batch=args.batch,
        seed=args.seed,
    )
    console.job(parser, args, make, args.compression)


if __name__ == "__main__":
    main()
