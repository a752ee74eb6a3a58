"""Gives command lines to the programs that they start, as far as these read them; prints what each says as JSON.

Standard input: a JSON list of lists, a program (a file, "-m" and a module, or "hvd-compress") with its arguments.
"""

import argparse
import contextlib
import io
import json
import runpy
import sys
from pathlib import Path

with contextlib.suppress(ImportError):
    import triton  # noqa: F401  # TensorFlow's LLVM ends a process that loads Triton's later

from hvd_compress import cli
from hvd_compress.compressors.named import as_compressor
from hvd_compress.reduction.settings import as_rules

ROOT = Path(__file__).parents[2]
sys.path[0] = str(ROOT)  # as "-m" has it
_parse_args = argparse.ArgumentParser.parse_args


class ReadError(Exception):
    """Holds what a program has read; raised before it does anything else."""


def parse_args(self, args=None, namespace=None):
    read = _parse_args(self, args, namespace)
    raise ReadError(read)


def said(line):
    """Return what a program says of its arguments: nothing if they are fine."""
    first, *rest = line
    modules, path = set(sys.modules), list(sys.path)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(errors):
            if first == "hvd-compress":
                sys.argv = line
                cli.main()
            elif first == "-m":
                sys.argv = rest
                runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
            else:
                sys.argv = [str(ROOT / first), *rest]
                sys.path.insert(0, str((ROOT / first).parent))
                runpy.run_path(str(ROOT / first), run_name="__main__")
    except ReadError as done:
        return checked(first, done.args[0])
    except SystemExit as ended:
        return f"{errors.getvalue()}{ended}" if ended.code else ""  # none after --help
    finally:  # each folder of examples has modules of the same names
        sys.path[:] = path
        for name in ("models", "data", "training", "common", "train"):
            if name in set(sys.modules) - modules:
                del sys.modules[name]
    return "it reads no command line"


def checked(program, read):
    """Return what is wrong with the compressors and rules in a command line."""
    compression = getattr(read, "compression", None) or []
    try:
        for spec in [compression] if isinstance(compression, str) else compression:
            as_compressor(spec)
        if rules := [tuple(rule.split("=", 1)) for rule in getattr(read, "rule", None) or []]:
            import datasets
            from models import build

            shapes = {"digits": (1, 8, 8)}
            assert read.task in shapes, f"rules are checked for {', '.join(shapes)} alone"
            data = datasets.load(read.task, None)
            as_rules(rules, [name for name, _ in build(read.model or "mlp", data).named_parameters()])
    except (TypeError, ValueError) as error:
        return f"{program}: {error}"
    return ""


argparse.ArgumentParser.parse_args = parse_args
print("\n" + json.dumps([said(line) for line in json.load(sys.stdin)]))
