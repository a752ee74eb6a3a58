"""Triton kernels without a GPU: which ones ran under the interpreter, and whether these compile for GPUs.

Run as a program, it reads what `Recorded` wrote, and compiles it for the targets: TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

TARGETS = (80, 90)  # compute capabilities: A100, H100
TYPES = {
    "torch.float32": "*fp32",
    "torch.float64": "*fp64",
    "torch.float16": "*fp16",
    "torch.int32": "*i32",
    "torch.int64": "*i64",
    "torch.uint8": "*u8",
}


def type_of(value: Any) -> str:
    """Return what Triton calls the type of an argument."""
    if hasattr(value, "data_ptr"):
        return TYPES[str(value.dtype)]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(1 << 31) <= value < 1 << 31 else "i64"


@contextmanager
def recorded() -> Iterator[list[dict[str, Any]]]:
    """Give a list that is filled with the kernels that the interpreter runs meanwhile, each with its types."""
    from triton.runtime.interpreter import InterpretedFunction

    found: dict[str, dict[str, Any]] = {}
    filled: list[dict[str, Any]] = []
    original = InterpretedFunction.run

    def run(self: Any, *arguments: Any, **given: Any) -> Any:
        names = self.arg_names
        plain = dict(zip(names, arguments, strict=False))
        # Of a one Triton makes a constant.
        ones = [name for name, value in plain.items() if type(value) is int and value == 1]
        kernel = {
            "module": self.fn.__module__,
            "name": self.fn.__name__,
            "types": {name: type_of(value) for name, value in plain.items()},
            "ones": ones,
            "constants": {name: value for name, value in given.items() if name in names},
            "options": {name: given[name] for name in ("num_warps", "enable_fp_fusion") if name in given},
        }
        key = json.dumps(kernel, sort_keys=True)
        if key not in found:
            found[key] = kernel
            filled.append(kernel)
        return original(self, *arguments, **given)

    InterpretedFunction.run = run
    try:
        yield filled
    finally:
        InterpretedFunction.run = original


def compiled(kernels: list[dict[str, Any]]) -> str:
    """Compile kernels for the targets in another process, and return what it says of those that do not compile."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, __file__], input=json.dumps(kernels), env=environment, text=True, capture_output=True
    )
    return done.stdout + done.stderr if done.returncode else ""


def compile_one(kernel: dict[str, Any]) -> str:
    """Compile a kernel for all targets; return the error."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(importlib.import_module(kernel["module"]), kernel["name"])
    values = kernel["constants"] | dict.fromkeys(kernel["ones"], 1)
    values = {name: value for name, value in values.items() if name not in (function.do_not_specialize or ())}
    signature = {name: "constexpr" if name in values else kernel["types"][name] for name in function.arg_names}
    constants = {(function.arg_names.index(name),): value for name, value in values.items()}
    for capability in TARGETS:
        try:
            source = ASTSource(function, signature, constants)
            triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(kernel["options"]))
        except Exception as error:
            return f"{kernel['name']} for sm_{capability}, {kernel['types']}, {kernel['constants']}: {error}"
    return ""


if __name__ == "__main__":
    with ProcessPoolExecutor(2) as pool:
        errors = [error for error in pool.map(compile_one, json.load(sys.stdin)) if error]
    print("\n\n".join(errors))
    sys.exit(bool(errors))
