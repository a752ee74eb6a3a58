"""The command `hvd-compress`: one module for each of its commands."""

from __future__ import annotations

import argparse

from hvd_compress.cli import advise, bench, list, size, watch
from hvd_compress.version import __version__


def main() -> None:
    """Run the command line; bad input ends it with 2 and a message."""
    parser = argparse.ArgumentParser(prog="hvd-compress", description="Compressed gradients for Horovod and mpi4py.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (list, bench, size, advise, watch):
        command.register(commands)
    args = parser.parse_args()
    try:
        args.run(args)
    except ModuleNotFoundError as error:
        parser.error(f"{error}; install it with: pip install 'hvd-compress[bench,mpi]' torch")
    except (OSError, TypeError, ValueError) as error:
        parser.error(str(error))
