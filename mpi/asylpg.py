"""Minimize with asynchronous parameter servers, quantized in both directions: AsyLPG and its variants.

mpirun --with-ft ulfm -np 5 python mpi/asylpg.py --data DIR --variant accelerated --bits 4 --target 1e-6

The last line of standard output is a JSON object with what came of it.
"""

from __future__ import annotations

import argparse
from functools import partial

import console

from hvd_compress.parameter_server import MODELS, VARIANTS, DoubleQuantization


def main() -> None:
    """Run the job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=console.Formatter)
    parser.add_argument(
        "--variant", choices=VARIANTS, default="asylpg", help="the algorithm, or asylpg with parts switched off"
    )
    parser.add_argument("--bits", type=int, default=8, help="of a coordinate of the gradient, 2 to 12")
    parser.add_argument(
        "--model-bits", type=int, help="of a coordinate of the model's difference, 2 to 12 (if none: as the gradient's)"
    )
    parser.add_argument(
        "--model", choices=MODELS, default="difference", help="send the model's difference from the snapshot, or itself"
    )
    parser.add_argument("--mu", type=float, default=0.1, help="of the precision condition of --model grid")
    parser.add_argument("--budget", type=float, default=0.05, help="share of the coordinates that sparse sends")
    parser.add_argument("--step", type=float, help="step size (if none: from the smoothness)")
    parser.add_argument("--theta", type=float, default=0.5, help="of accelerated; 0 for 2 / (s + 2) in epoch s")
    parser.add_argument("--epoch-steps", type=int, help="steps of an epoch (if none: two passes over the rows)")
    parser.add_argument("--max-delay", type=int, help="most steps of delay (if none: 4 for each worker)")
    console.add_arguments(parser, batch=64, l2=1e-4)
    args = console.parse_arguments(parser)
    make = partial(
        DoubleQuantization,
        variant=args.variant,
        bits=args.bits,
        model_bits=args.model_bits,
        model=args.model,
        mu=args.mu,
        budget=args.budget,
        step=args.step,
        theta=args.theta,
        epoch_steps=args.epoch_steps,
        max_delay=args.max_delay,
        batch=args.batch,
        seed=args.seed,
    )
    console.job(parser, args, make, f"{args.variant}, {args.bits} bits")


if __name__ == "__main__":
    main()
