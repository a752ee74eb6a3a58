"""The compressors' state in PyTorch's checkpoints: a dictionary of tensors, numbers and names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hvd_compress.reduction.checkpoint import Saved, SavedExchange
from hvd_compress.reduction.rows import Rows
from hvd_compress.reduction.settings import Settings
from hvd_compress.torch.sparse import as_rows, as_tensor

ADVICE = "; to begin with an empty state, delete its entry 'compression'"


def written(saved: Saved, shapes: Mapping[str, tuple[int, ...]], sparse_dims: Mapping[str, int]) -> dict[str, Any]:
    """Return a state as checkpoints hold it.

    Args:
        saved: the state.
        shapes: of the parameters.
        sparse_dims: number of sparse axes of those that have sparse gradients.
    """

    def tensor(name: str, part: Tensor | Rows) -> Tensor:
        if isinstance(part, Rows):
            return as_tensor(part.indices, part.values, shapes[name], sparse_dims[name])
        return part.view(shapes[name])

    return {
        "compression": saved.compression,
        "rules": saved.rules,
        "rank": saved.rank,
        "steps": saved.steps,
        "carried": {name: tensor(name, part) for name, part in saved.carried.items()},
        "buckets": [{"parameters": e.parameters, "state": e.state} for e in saved.exchanges if not e.rows],
        "sparse": {
            e.parameters[0]: {"axes": sparse_dims[e.parameters[0]], "state": e.state} for e in saved.exchanges if e.rows
        },
    }


def read(state: Mapping[str, Any] | None, settings: Settings, rank: int) -> tuple[Saved, dict[str, int]]:
    """Return what `written` was given (None: an empty state), and the sparse axes.

    Raises:
        ValueError: if the state belongs to another compression, unless that is automatic, or other rules, or lacks an
            entry.
    """
    if state is None:
        return Saved.empty(settings, rank), {}
    if missing := [key for key in ("compression", "rules", "buckets") if key not in state]:
        raise ValueError(f"the compressors' state has no entry {missing[0]!r}")
    state = {"rank": rank, "steps": 0, "carried": {}, "sparse": {}, **state}  # older ones lack some
    carried: dict[str, Any] = {}
    sparse_dims = {name: entry["axes"] for name, entry in state["sparse"].items()}
    for name, tensor in state["carried"].items():
        if tensor.is_sparse:
            sparse_dims[name] = tensor.sparse_dim()
            carried[name] = as_rows(tensor, tensor, tensor.sparse_dim())
        else:
            carried[name] = tensor.reshape(-1)
    saved = Saved(
        compression=state["compression"],
        rules=state["rules"],
        rank=state["rank"],
        steps=state["steps"],
        exchanges=[
            *(SavedExchange(entry["parameters"], entry["state"]) for entry in state["buckets"]),
            *(SavedExchange([name], entry["state"], rows=True) for name, entry in state["sparse"].items()),
        ],
        carried=carried,
    )
    saved.check_settings(settings.of_saved(saved.compression), ADVICE)
    return saved, sparse_dims
