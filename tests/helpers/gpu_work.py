"""What a GPU is given to do: the kernels and operations that are started, the bytes that they move, and the waits.

    PYTHONPATH=.:tests/helpers TRITON_INTERPRET=1 python tests/helpers/gpu_work.py [SPEC ...]

counts it without a GPU, for the methods at the benchmark's settings, and prints a table.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.cuda.is_available()
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique", "unique", "bincount", "equal", "is_nonzero")


@dataclass
class Work:
    """What was found.

    Attributes:
        kernels: names of the Triton kernels that were started.
        operations: names of PyTorch's operations that start kernels of theirs; on a GPU some start several.
        waits: what the host waited for.
        moved: bytes that were read and written, each address once in an instruction; 0 on a GPU, where nobody counts.
    """

    kernels: list[str] = field(default_factory=list)
    operations: list[str] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    moved: int = 0

    @property
    def launches(self) -> int:
        """Kernels and operations."""
        return len(self.kernels) + len(self.operations)


class _Operations(TorchDispatchMode):
    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work, self.inside = work, False

    def __torch_dispatch__(self, func: Any, types: Any, arguments: Any = (), given: Any = None) -> Any:
        result = func(*arguments, **given or {})
        name = func.overloadpacket.__name__
        if self.inside or func.is_view or name.startswith(("empty", "new_empty", "detach", "is_pinned")):
            return result
        masked = name == "index" and any(a is not None and a.dtype == torch.bool for a in arguments[1])
        if masked or name.startswith(WAITS):
            self.work.waits.append(name)
        elif arrays := {id(a): a for a in tree_leaves((arguments, given, result)) if torch.is_tensor(a) and a.numel()}:
            self.work.operations.append(name)
            chosen = [arguments[0]] if name.startswith("index") else []  # of these, only what is at the indices
            self.work.moved += sum(a.nbytes for a in arrays.values() if all(a is not c for c in chosen))
        return result


@contextlib.contextmanager
def counted(moved: bool = False) -> Iterator[Work]:
    """Give what a GPU is given to do meanwhile; with `moved`, slowly, the bytes as well."""
    import pytest

    from hvd_compress.native.gpu import elementwise

    kind = type(elementwise._affine)  # an interpreted function, or one for a GPU
    work = Work()
    mode, original = _Operations(work), kind.run

    def run(self: Any, *arguments: Any, **given: Any) -> Any:
        work.kernels.append(self.fn.__name__.lstrip("_"))
        mode.inside = True
        try:
            return original(self, *arguments, **given)
        finally:
            mode.inside = False

    with pytest.MonkeyPatch.context() as patch, mode, _told_by_pytorch(work) if CUDA else contextlib.nullcontext():
        patch.setattr(kind, "run", run)
        if not CUDA:
            patch.setattr(torch.Tensor, "tolist", lambda array: work.waits.append("tolist") or array.numpy().tolist())
        if moved and not CUDA:
            _count_bytes(work, patch)
        yield work


@contextlib.contextmanager
def _told_by_pytorch(work: Work) -> Iterator[None]:
    """Add what the host waits for, of which PyTorch itself tells."""
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    torch.cuda.set_sync_debug_mode("default")
    work.waits[:] = [str(w.message) for w in caught if "synchronizing" in str(w.message)]


def _count_bytes(work: Work, patch: Any) -> None:
    from triton.runtime.interpreter import InterpreterBuilder

    def counting(name: str, place: int) -> None:
        original = getattr(InterpreterBuilder, name)

        def access(self: Any, *arguments: Any) -> Any:
            pointers = next(a for a in arguments if hasattr(a, "get_element_ty") and a.dtype.is_ptr())
            mask = arguments[place].data
            bytes_each = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
            work.moved += np.unique(pointers.data[np.broadcast_to(mask, pointers.data.shape)]).size * bytes_each
            return original(self, *arguments)

        patch.setattr(InterpreterBuilder, name, access)

    counting("create_masked_load", 1)
    counting("create_masked_store", 2)
    counting("create_atomic_rmw", 3)


def main(specs: list[str]) -> None:
    """Print the table."""
    import pytest

    from hvd_compress.cli.compressor_bench import default_specs
    from hvd_compress.compressors import Compressor, parse
    from hvd_compress.compressors.state import State
    from hvd_compress.native.gpu import kernels, selection
    from hvd_compress.ops.layout import Layout
    from hvd_compress.ops.torch import TorchOps
    from hvd_compress.reduction.step import Step, echo

    sizes = [(40_000,), (33_000, 10, 400, 300, 2_000, 4_000, 200, 90)]
    layouts = [Layout.of([(str(i), (size,)) for i, size in enumerate(each)]) for each in sizes]
    device = torch.device("cuda" if CUDA else "cpu")
    ops = TorchOps(device, kernels=kernels.GpuKernels(device))

    def step(compressor: Compressor, layout: Layout) -> tuple[Work, Work]:
        state = State(layout, workers=2)
        for seed in range(2):  # tables are made in the first
            vector = ops.from_numpy(np.random.default_rng(seed).standard_normal(layout.size, np.float32) * 4e-4)
            with counted(moved=True) as encode:
                under_way = Step(compressor, ops, vector, state)
            with counted(moved=True) as decode:
                while under_way.pending is not None:
                    under_way.feed(echo(under_way.pending, 2))
            state.commit()
        return encode, decode

    print("launches: Triton's + PyTorch's (waits); bytes a coordinate; of 1 tensor | of 8 tensors")
    with pytest.MonkeyPatch.context() as patch:
        if not CUDA:
            patch.setattr(selection, "SAMPLE", 4096)
            patch.setattr(selection, "LARGE", 30_000)
        for text in specs or default_specs(layouts[0].size):
            compressor = parse(text)
            for name, each in ((text, compressor), (f"  without {compressor.name}", compressor.bare)):
                if name != text and each is compressor:
                    continue
                cells = []
                for layout in layouts:
                    for work in step(each, layout):
                        waits = f" ({len(work.waits)})" if work.waits else ""
                        moved = f"{work.moved / layout.size:.1f}"
                        cells.append(f"{len(work.kernels)}+{len(work.operations)}{waits} {moved:>5}")
                        if specs:
                            print("  ", *work.kernels, "|", *work.operations, "|", *work.waits)
                print(f"{name:63} encode {cells[0]:>13} | {cells[2]:>13}  decode {cells[1]:>13} | {cells[3]:>13}")


if __name__ == "__main__":
    main(sys.argv[1:])
