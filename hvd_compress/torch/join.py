"""`hvd.join`, for workers with fewer batches than others: patched when this package is imported.

A worker that has joined sends zeros into the others' sums and takes no steps of its own. Afterwards the compressors'
states differ, so the workers compare them in their next step. Horovod's gathers do not work with a worker that has
joined: with most compressors `join` raises instead of leaving the others waiting.
"""

from __future__ import annotations

import functools
from typing import Any

import horovod.torch as hvd

from hvd_compress.compressors import methods, parse, spec
from hvd_compress.torch.reducer import TensorReducer, reducers


def _in_use() -> list[TensorReducer]:
    """Return the reducers that take steps by turns now: not those of earlier optimizers."""
    stepped = [reducer for reducer in reducers if reducer.steps]
    since = max(stepped, key=lambda reducer: reducer.progress.ended).progress.ended_before if stepped else 0.0
    return [reducer for reducer in stepped if reducer.progress.ended >= since]


def _gathers(reducer: TensorReducer) -> list[str]:
    """Return the specs of a reducer's compressors that gather."""
    return [spec(c) for c in reducer.settings.compressors if "allgather" in c.collectives]


def _joining(original: Any) -> Any:
    @functools.wraps(original)
    def join(*args: Any, **kwargs: Any) -> Any:
        for reducer in _in_use():
            if reducer.settings.undecided:
                raise RuntimeError(
                    'hvd.join() does not work while compression="auto" measures the first steps, which all workers '
                    "take alike: take some more steps before, or choose a method"
                )
            if gathers := _gathers(reducer):
                fine = [name for name in methods() if "allgather" not in parse(name).collectives]
                raise RuntimeError(
                    f"hvd.join() does not work with {gathers[0]}, which gathers: Horovod cannot gather from a worker "
                    f"that has joined. Take as many steps on all workers, or use one of {', '.join(fine)}"
                )
        last = original(*args, **kwargs)
        for reducer in list(reducers):
            reducer.compare_again()
        return last

    return join


hvd.join = _joining(hvd.join)
