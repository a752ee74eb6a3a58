"""What the commands' arguments have in common."""

from __future__ import annotations

import argparse
from typing import Any


def add_command(commands: Any, name: str, help: str) -> argparse.ArgumentParser:
    """Add a command to `commands`, the result of `add_subparsers`; its help shows the defaults."""
    return commands.add_parser(name, help=help, formatter_class=argparse.ArgumentDefaultsHelpFormatter)


def check_positive(args: argparse.Namespace, *names: str) -> None:
    """Raise ValueError if one of these arguments was given and is below 1."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1; got {value}")
