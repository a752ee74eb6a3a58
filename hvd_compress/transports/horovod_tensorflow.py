"""Horovod's collectives as TensorFlow operations: nodes of a graph, which nobody waits for."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from hvd_compress.transports import Peers, Traffic, packed_object, unpacked_objects
from hvd_compress.transports.horovod import MISFIT, exchanges
from hvd_compress.transports.initialized import initialized

Tensor = Any


class Round(NamedTuple):
    """A collective as the graph has to know it beforehand: "sum", "mean", "max" or "gather", and the dtype's name."""

    op: str
    dtype: str


class GraphTransport(Peers, Protocol):
    """Carries collectives as operations of a TensorFlow graph.

    Attributes:
        alone: whether this worker has no others, and will have none.
    """

    alone: bool

    def carry(self, array: Tensor, collective: Round, name: str) -> Tensor:
        """Return the combined tensor, or all workers' tensors one behind the other."""


class HorovodTransport:
    """Collectives over a Horovod process set; a process that is not in the set is alone.

    Raises:
        ValueError: if Horovod has not been initialized.
    """

    tells = True

    def __init__(self, process_set: Any = hvd.global_process_set) -> None:
        self.process_set = process_set
        if process_set.included() is None:
            raise ValueError("Horovod has not been initialized; use hvd.init().")
        self._read()
        self.alone = not exchanges(process_set)
        self.traffic = Traffic()
        self._at_once: dict[Any, Any] = {}

    def _read(self) -> None:
        self._initialized = initialized()
        included = self.process_set.included()
        self.rank = int(self.process_set.rank()) if included else 0
        self.workers = int(self.process_set.size()) if included else 1
        self.world_rank = int(hvd.rank())

    def renew(self) -> bool:
        if self._initialized == initialized():
            return False
        self._read()
        return True

    def carry(self, array: Tensor, collective: Round, name: str) -> Tensor:
        rest = {"name": name, "ignore_name_scope": True, "process_set": self.process_set}
        if collective.op == "gather":
            return hvd.allgather(array, **rest)
        if collective.op == "mean":
            return hvd.allreduce(array, op=hvd.Sum, postscale_factor=1 / self.workers, **rest)
        return hvd.allreduce(array, op=hvd.Max if collective.op == "max" else hvd.Sum, **rest)

    def all_have_left(self, first: Sequence[tuple[str, str]]) -> bool:
        done: queue.SimpleQueue[bool] = queue.SimpleQueue()
        for name, kind in first:
            # In threads that nobody joins: a worker that follows the plan does not submit the others after an error.
            misfit = Round("gather" if kind == "allgather" else "sum", "int32")
            threading.Thread(target=self._submit_misfit, args=(misfit, name, done), daemon=True).start()
        return all(done.get() for _ in first)

    def _submit_misfit(self, collective: Round, name: str, done: queue.SimpleQueue[bool]) -> None:
        """Carry what no compressor sends, and tell whether that went well."""
        try:
            result = self._carried_at_once(MISFIT, collective, name)
        except tf.errors.OpError:
            done.put(False)
            return
        self.traffic.count("agreement", MISFIT.nbytes, result.nbytes)
        done.put(True)

    def gather_object(self, item: Any, name: str, check: Callable[[], None] = lambda: None) -> list[Any]:
        """As of any transport; also while a graph is being traced, and in a call from one that runs."""
        payload = packed_object(item)
        gathered = self._carried_at_once(payload, Round("gather", "uint8"), name)
        self.traffic.count("agreement", payload.nbytes, gathered.nbytes)
        return unpacked_objects(gathered, self.workers)

    def _carried_at_once(self, array: Any, collective: Round, name: str) -> Any:
        """Return what a collective brings, now: in a graph of its own, for only there it has its name.

        It runs in this thread: TensorFlow's own may all be in calls of Python that wait, as this one does.
        """
        key = name, collective, array.ndim
        if key not in self._at_once:
            with tf.Graph().as_default() as graph:
                given = tf.compat.v1.placeholder(array.dtype, [None] * array.ndim)
                carried = tf.identity(self.carry(given, collective, name))
            config = tf.compat.v1.ConfigProto(device_count={"GPU": 0})
            self._at_once[key] = tf.compat.v1.Session(graph=graph, config=config), carried, given
        session, carried, given = self._at_once[key]
        in_this_thread = tf.compat.v1.RunOptions(inter_op_thread_pool=-1)
        return np.asarray(session.run(carried, {given: array}, options=in_this_thread))
