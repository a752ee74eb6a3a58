"""What compressors keep, in TensorFlow's checkpoints."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hvd_compress.compressors import Compressor, spec
from hvd_compress.reduction.buckets import Rule
from hvd_compress.tensorflow.exchange import GraphExchange
from hvd_compress.transports.horovod_tensorflow import HorovodTransport

STORES = ("shared", "local")  # of a compressor's state


class SavedState(tf.train.experimental.PythonState):
    """Something that has exchanges, whose states are part of a ``tf.train.Checkpoint`` that it is in.

    Attributes:
        exchanges: those whose states are saved, once they are `planned`.
        steps: the number of steps so far.
    """

    compressor: Compressor
    rules: Sequence[Rule]
    transport: HorovodTransport

    def __init__(self) -> None:
        super().__init__()
        self.exchanges: list[GraphExchange] = []
        self.planned = False
        self.steps = 0
        self._waiting: tuple[dict[str, Any], dict[str, Any]] | None = None  # a state that was loaded before the plan

    def load_what_waits(self) -> None:
        """Load what was restored before the exchanges were planned."""
        if self._waiting is not None:
            self._load(*self._waiting)
            self._waiting = None

    def serialize(self) -> bytes:
        """Return the compressors' state, as NumPy's file of arrays."""
        about, arrays = self._waiting or self._state()
        file = io.BytesIO()
        np.savez(file, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)
        return file.getvalue()

    def deserialize(self, string_value: bytes) -> None:
        """Take over what `serialize` returned; another worker's residuals are left out, with a warning.

        Raises:
            ValueError: if it belongs to another compression or model.
        """
        with np.load(io.BytesIO(string_value), allow_pickle=False) as file:
            arrays = dict(file)
        about = json.loads(arrays.pop("about").tobytes())
        mine = self._about()
        for key in ("compression", "rules"):
            if about[key] != mine[key]:
                raise ValueError(f"the state was saved with {key} {about[key]}, and here it is {mine[key]}")
        if self.planned:
            self._load(about, arrays)
        else:
            self._waiting = (about, arrays)
        self.steps = about["steps"]

    def _about(self) -> dict[str, Any]:
        return {
            "compression": spec(self.compressor),
            "rules": [str(rule) for rule in self.rules],
            "rank": self.transport.rank,
            "steps": self.steps,
            "buckets": [
                {"parameters": [p.name for p in e.layout.parameters], "step": e.state.step} for e in self.exchanges
            ],
        }

    def _state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        arrays = {}
        for number, exchange in enumerate(self.exchanges):
            stores = {kind: getattr(exchange.state, kind).kept for kind in STORES} | {"carried": exchange.carried}
            for kind, kept in stores.items():
                for name, array in kept.items():
                    arrays[f"{number}/{kind}/{name}"] = exchange.ops.to_numpy(array)
        return self._about(), arrays

    def _load(self, about: dict[str, Any], arrays: dict[str, Any]) -> None:
        found, here = ([b["parameters"] for b in which["buckets"]] for which in (about, self._about()))
        if found != here and found:
            raise ValueError(
                f"the state was saved for the buckets {found}, and here they are {here}: the model, bucket_bytes and "
                "dense_below must be those of the run that saved it"
            )
        own, mine = True, about["rank"] == self.transport.rank
        for number, (exchange, bucket) in enumerate(zip(self.exchanges, about["buckets"], strict=False)):
            saved = {"step": bucket["step"], "rank": about["rank"], "shared": {}, "local": {}, "carried": {}}
            for place, array in arrays.items():
                at, kind, name = place.split("/", 2)
                if int(at) == number:
                    saved[kind][name] = exchange.ops.from_numpy(array)
            exchange.abandon()
            own &= exchange.state.load_state_dict(saved) and (mine or not saved["carried"])
            exchange.carried = saved["carried"] if mine else {}
        if not own:
            warnings.warn(
                "the state was saved by another rank: this rank's residual begins at zero. For an exact resumption "
                "every rank saves and loads its own state.",
                stacklevel=2,
            )
