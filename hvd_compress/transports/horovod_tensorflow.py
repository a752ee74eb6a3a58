"""Horovod's collectives as TensorFlow operations: nodes of a graph, which nobody waits for."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from hvd_compress.transports import LENGTH_BYTES, Traffic, split_varying

Tensor = Any


class Round(NamedTuple):
    """A collective as the graph has to know it beforehand: "sum", "mean", "max" or "gather", and the dtype's name."""

    op: str
    dtype: str


def check_op(op: int) -> None:
    """Raise ValueError unless gradients are to be averaged or summed."""
    if op not in (hvd.Average, hvd.Sum):
        raise ValueError(
            f"op must be hvd.Average ({hvd.Average}) or hvd.Sum ({hvd.Sum}), got {op}: compressed gradients can be "
            "averaged and summed"
        )


class HorovodTransport:
    """Collectives over a Horovod process set; a process that is not in the set is alone.

    Exchanges hand over their arrays to a `Carrier` each, and a graph carries them on: see `carry`.

    Raises:
        ValueError: if Horovod has not been initialized.

    Attributes:
        waiting_seconds: the time in which collectives were under way and no call of Python: TensorFlow may have
            computed gradients meanwhile.
    """

    def __init__(self, process_set: Any = hvd.global_process_set) -> None:
        self.process_set = process_set
        included = process_set.included()
        if included is None:
            raise ValueError("Horovod has not been initialized; use hvd.init().")
        self.rank = int(process_set.rank()) if included else 0
        self.workers = int(process_set.size()) if included else 1
        self.traffic = Traffic()
        self.waiting_seconds = 0.0
        self._under_way, self._left = 0, 0.0

    def enters(self, brings: int) -> None:
        """Note that a call of Python begins, and how many collectives' results it brings."""
        if self._under_way:
            self.waiting_seconds += time.perf_counter() - self._left
        self._under_way -= brings

    def leaves(self, takes: int) -> None:
        """Note that a call of Python ends, and how many collectives it has asked for."""
        self._under_way += takes
        self._left = time.perf_counter()

    def carry(self, array: Tensor, collective: Round, name: str) -> Tensor:
        """Return the combined tensor, or all workers' tensors one behind the other."""
        rest = {"name": name, "ignore_name_scope": True, "process_set": self.process_set}
        if collective.op == "gather":
            return hvd.allgather(array, **rest)
        if collective.op == "mean":
            return hvd.allreduce(array, op=hvd.Sum, postscale_factor=1 / self.workers, **rest)
        return hvd.allreduce(array, op=hvd.Max if collective.op == "max" else hvd.Sum, **rest)

    def gather_object(self, item: Any, name: str) -> list[Any]:
        """Return every worker's object (as JSON has it), in the order of ranks; counted as an agreement.

        It waits for all workers, also while a graph is being traced.
        """
        data = json.dumps(item).encode()
        payload = np.frombuffer(len(data).to_bytes(LENGTH_BYTES, "little") + data, np.uint8)
        gathered = _at_once(lambda: self.carry(tf.constant(payload), Round("gather", "uint8"), name))
        self.traffic.count("agreement", payload.nbytes, gathered.nbytes)
        return [json.loads(part.tobytes()) for part in split_varying(gathered, self.workers)]


def _at_once(collective: Callable[[], Tensor]) -> Any:
    """Do a collective now and return what it brings: in a graph of its own, for only there it has its name."""
    with tf.init_scope():
        return np.asarray(tf.compat.v1.wrap_function(collective, [])())
