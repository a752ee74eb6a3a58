"""Minimize by stochastic gradient descent with a parameter server, synchronously or not, gradients compressed.

mpirun --with-ft ulfm -np 5 python mpi/sgd.py --data DIR --task mlp --compression "topk(ratio=0.01)" --asynchronous

The last line of standard output is a JSON object with what came of it.
"""

from __future__ import annotations

import argparse
from functools import partial

import console

from hvd_compress import methods
from hvd_compress.parameter_server import DOWNLINKS, SGD


def main() -> None:
    """Run the job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=console.Formatter)
    parser.add_argument(
        "--compression", metavar="SPEC", default="none", help=f"a compressor: {', '.join(methods())}, with settings"
    )
    parser.add_argument(
        "--asynchronous",
        action="store_true",
        help="apply every answer as a step of its own; else a step takes one of every worker",
    )
    parser.add_argument(
        "--downlink", choices=DOWNLINKS, default="changes", help="send what has changed, or the quantized difference"
    )
    parser.add_argument("--model-bits", type=int, default=8, help="of a coordinate of the difference, 2 to 12")
    parser.add_argument("--lr", type=float, default=0.1, help="learning rate")
    parser.add_argument("--decay", action="store_true", help="decay the learning rate linearly to 0")
    parser.add_argument("--epoch-steps", type=int, help="steps of an epoch (if none: one pass over the rows)")
    parser.add_argument("--max-delay", type=int, help="most steps of delay (if none: 4 for each worker)")
    console.add_arguments(parser, batch=32, l2=0.0)
    args = console.parse_arguments(parser)
    make = partial(
        SGD,
        compression=args.compression,
        asynchronous=args.asynchronous,
        downlink=args.downlink,
        model_bits=args.model_bits,
        lr=args.lr,
        decay=args.decay,
        epochs=args.max_epochs,
        epoch_steps=args.epoch_steps,
        max_delay=args.max_delay,
        batch=args.batch,
        seed=args.seed,
    )
    console.job(parser, args, make, f"{'asynchronous ' if args.asynchronous else ''}sgd, {args.compression}")


if __name__ == "__main__":
    main()
