"""Run random training scripts on real ranks: all end with the same weights, or with an error on all.

A failure is told with the seed, the number of the sequence and its actions, and with the command that runs it again.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import logging
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

from tqdm import tqdm

MEANT = (
    "torch is this package's optimizers for PyTorch, groups the same over torch.distributed, ddp its hook for DDP, "
    "bound a compressor under Horovod's own optimizer, tape this package's tape, keras its optimizers for Keras"
)
SECONDS = 60  # after which a sequence is taken to hang
HELPERS = Path(__file__).resolve().parent.parent / "tests" / "helpers"
sys.path.insert(0, str(HELPERS))

from fuzz_scripts import KINDS, run  # noqa: E402


def on_a_rank(args: argparse.Namespace) -> None:
    """Run the sequences on this rank of a job; rank 0 tells of each action and each end on a line of its own."""
    warnings.simplefilter("ignore")
    logging.getLogger("hvd_compress").setLevel(logging.CRITICAL)  # errors are what is asked for here
    [ranks], [kind] = args.ranks, args.kinds
    script = importlib.import_module(KINDS[kind]).Script
    hvd = script.hvd
    smaller = {count: hvd.ProcessSet(list(range(count))) for count in range(1, ranks)}
    hvd.init(process_sets=list(smaller.values()))
    process_sets = {**smaller, ranks: hvd.global_process_set}

    def log(text: str) -> None:
        if hvd.rank() == 0:
            print(text, flush=True)

    numbers = range(args.sequences) if args.only is None else [args.only]
    for number in numbers:
        log(f"sequence {number}")
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        try:
            outcome = run(script, args.seed, number, process_sets, log)
        except AssertionError as error:
            hvd.allgather_object(None, name="failed")
            print(f"rank {hvd.rank()}: {error.__cause__ or error}", file=sys.stderr, flush=True)
            hvd.allgather_object(None, name="told")
            os._exit(1)
        log(f"done {len(outcome.actions)} {outcome.raised}")
    faulthandler.cancel_dump_traceback_later()
    hvd.shutdown()


def job(args: argparse.Namespace, kind: str, ranks: int, progress: tqdm) -> str:
    """Run the sequences of a kind on a number of ranks; return what came of them, or exit with 1 if one failed."""
    command = ["mpirun", "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none", "-np", str(ranks), sys.executable]
    again = ["--kinds", kind, "--ranks", str(ranks), "--seed", str(args.seed)]
    command += [__file__, *again, "--sequences", str(args.sequences)]
    command += ["--only", str(args.only)] if args.only is not None else []
    env = {
        "OMP_NUM_THREADS": "1",
        "TF_NUM_INTRAOP_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "HOROVOD_LOG_LEVEL": "fatal",
        "OMPI_MCA_mpi_yield_when_idle": "1",
        **os.environ,
    }
    began, lines = time.monotonic(), []
    done = actions = raised = 0
    # In a session of its own, so that Ctrl-C comes here alone.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, start_new_session=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith("sequence "):
                    lines = []
                lines.append(line.rstrip())
                if args.only is not None:
                    print(line.rstrip())
                if line.startswith("done "):
                    one, of_them = map(int, line.split()[1:])
                    done, actions, raised = done + 1, actions + one, raised + of_them
                    progress.update()
        except KeyboardInterrupt:
            progress.close()
            process.terminate()
            process.stdout.close()
            process.wait()
            sys.exit(f"interrupted after {done} sequences of {kind} on {ranks} ranks, in which nothing failed")
    if process.returncode:
        progress.close()
        print(*(lines if args.only is None else ()), sep="\n", file=sys.stderr)
        number = next((line.split()[1] for line in lines if line.startswith("sequence ")), "0")
        sys.exit(
            f"{kind} failed on {ranks} ranks (seed {args.seed}, sequence {number}); to run it again:\n"
            f"python scripts/fuzz_training.py {' '.join(again)} --only {number}"
        )
    seconds = time.monotonic() - began
    return (
        f"{kind}, {ranks} ranks: {done} sequences of seed {args.seed}, {actions} actions, of which {raised} raised on "
        f"all ranks; {seconds:.0f} s"
    )


def main() -> None:
    """Start the jobs, or be a rank of one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--sequences", type=int, default=2000, help="random scripts, all jobs together")
    parser.add_argument("--seed", type=int, default=1, help="of the random scripts")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="run this sequence alone, and tell its actions")
    parser.add_argument("--kinds", nargs="+", action="extend", choices=KINDS, help=f"{MEANT} (if none: all)")
    parser.add_argument(
        "--ranks", type=int, nargs="+", default=[2, 3], help="numbers of ranks, a job each for every kind"
    )
    args = parser.parse_args()
    if args.sequences < 1:
        parser.error(f"--sequences must be at least 1; got {args.sequences}")
    if min(args.ranks) < 2:
        parser.error(f"--ranks must be at least 2; got {min(args.ranks)}")
    if "OMPI_COMM_WORLD_RANK" in os.environ:
        on_a_rank(args)
        return
    jobs = [(kind, ranks) for kind in args.kinds or KINDS for ranks in args.ranks]
    each = args.sequences = 1 if args.only is not None else -(-args.sequences // len(jobs))
    with tqdm(total=each * len(jobs), unit="sequence", disable=args.only is not None) as progress:
        for kind, ranks in jobs:
            progress.set_description(f"{kind}, {ranks} ranks")
            progress.write(job(args, kind, ranks, progress))


if __name__ == "__main__":
    main()
