"""What compressors keep, in TensorFlow's checkpoints: NumPy's file of arrays."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from hvd_compress.ops.layout import Layout
from hvd_compress.reduction.carry import cut
from hvd_compress.reduction.checkpoint import Saved, SavedExchange
from hvd_compress.reduction.rows import Rows
from hvd_compress.reduction.settings import Settings

STORES = ("shared", "local")  # of a compressor's state


def written(saved: Saved) -> bytes:
    """Return a state, whose arrays are NumPy's, as a file.

    It has an array "about", JSON as bytes, and arrays named number/store/name for each exchange's number, and
    carried/parameter/residual (and carried/parameter/rows) for what is carried.
    """
    about = {
        "compression": saved.compression,
        "rules": saved.rules,
        "rank": next((entry.state["rank"] for entry in saved.exchanges), saved.rank),
        "workers": next((entry.state.get("workers") for entry in saved.exchanges), None),
        "steps": saved.steps,
        "buckets": [
            {
                "parameters": entry.parameters,
                "step": entry.state["step"],
                "rows": entry.rows,
                "generation": entry.generation,
            }
            for entry in saved.exchanges
        ],
    }
    arrays: dict[str, Any] = {}
    for number, entry in enumerate(saved.exchanges):
        for store in STORES:
            arrays |= {f"{number}/{store}/{name}": array for name, array in entry.state[store].items()}
    for parameter, part in saved.carried.items():
        if isinstance(part, Rows):
            arrays[f"carried/{parameter}/rows"] = part.indices
        arrays[f"carried/{parameter}/residual"] = (part.values if isinstance(part, Rows) else part).reshape(-1)
    file = io.BytesIO()
    np.savez(file, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)
    return file.getvalue()


def read(data: bytes, settings: Settings, shapes: Mapping[str, tuple[int, ...]]) -> Saved:
    """Return what `written` was given.

    Args:
        data: the file.
        settings: those that the state must have been saved with.
        shapes: of the parameters.

    Raises:
        ValueError: if the state belongs to another compression or other rules.
    """
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        arrays = dict(file)
    about = json.loads(arrays.pop("about").tobytes())
    states: list[dict[str, Any]] = [
        {"step": b["step"], "rank": about["rank"], "workers": about.get("workers"), "shared": {}, "local": {}}
        for b in about["buckets"]
    ]
    carried: dict[tuple[str, ...], dict[str, Any]] = {}
    for place, array in arrays.items():
        owner, store, *rest = place.split("/", 2)
        if owner == "carried":
            carried.setdefault((store,), {})[rest[0]] = array
        elif store == "carried":  # as older checkpoints have it: of all parameters of an exchange
            carried.setdefault(tuple(about["buckets"][int(owner)]["parameters"]), {})[rest[0]] = array
        else:
            states[int(owner)][store][rest[0]] = array
    saved = Saved(
        compression=about["compression"],
        rules=about["rules"],
        rank=about["rank"],
        steps=about["steps"],
        exchanges=[
            SavedExchange(bucket["parameters"], state, bucket.get("rows"), bucket.get("generation", 0))
            for bucket, state in zip(about["buckets"], states, strict=True)
        ],
        carried={},
    )
    saved.check_settings(settings)
    for names, kept in carried.items():
        saved.carried.update(cut(Layout.of((name, shapes[name]) for name in names), kept))
    return saved
