"""Horovod's collectives as TensorFlow operations: nodes of a graph, which nobody waits for."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Sequence
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

    def all_have_left(self, first: Sequence[tuple[str, Round]]) -> bool:
        """Tell whether all workers call this, with the first collectives of a step that none of them takes any more.

        It waits for all of them. One that starts these collectives all the same fails there: what is submitted here,
        int32 of five axes, no compressor sends, and Horovod refuses what differs. Counted as an agreement.
        """
        done: queue.SimpleQueue[bool] = queue.SimpleQueue()
        for name, collective in first:
            kind = "gather" if collective.op == "gather" else "sum"
            # Nobody waits for one that others, after their first error, do not submit.
            args = (Round(kind, "int32"), name, done)
            threading.Thread(target=self._submit_odd, args=args, daemon=True).start()
        return all(done.get() for _ in first)

    def _submit_odd(self, collective: Round, name: str, done: queue.SimpleQueue[bool]) -> None:
        """Carry what no compressor sends, and tell whether that went well."""
        array = np.zeros((1, 1, 1, 1, 1), np.int32)
        try:
            result = self._carried_at_once(array, collective, name)
        except tf.errors.OpError:
            done.put(False)
            return
        self.traffic.count("agreement", array.nbytes, result.nbytes)
        done.put(True)

    def gather_object(self, item: Any, name: str) -> list[Any]:
        """Return every worker's object (as JSON has it), in the order of ranks; counted as an agreement.

        It waits for all workers, also while a graph is being traced.
        """
        data = json.dumps(item).encode()
        payload = np.frombuffer(len(data).to_bytes(LENGTH_BYTES, "little") + data, np.uint8)
        gathered = self._carried_at_once(payload, Round("gather", "uint8"), name)
        self.traffic.count("agreement", payload.nbytes, gathered.nbytes)
        return [json.loads(part.tobytes()) for part in split_varying(gathered, self.workers)]

    def _carried_at_once(self, array: Any, collective: Round, name: str) -> Any:
        """Return what a collective brings, now: in a graph of its own, for only there it has its name.

        What a graph returns directly TensorFlow gives another name, and what is made of constants it may do twice.
        """

        def carried(tensor: Tensor) -> Tensor:
            return tf.identity(self.carry(tensor, collective, name))

        with tf.init_scope():
            graph = tf.compat.v1.wrap_function(carried, [tf.TensorSpec(array.shape, array.dtype)])
            return np.asarray(graph(tf.constant(array)))
