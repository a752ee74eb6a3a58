"""XLA cannot compile an exchange, which calls Horovod and Python: functions that have one go without."""

from __future__ import annotations

import warnings
from typing import Any

import tensorflow as tf
from tensorflow.python.eager.polymorphic_function.attributes import XLA_COMPILE
from tensorflow.python.eager.polymorphic_function.concrete_function import ConcreteFunction
from tensorflow.python.ops.control_flow_util import InXlaContext

_from_func_graph = ConcreteFunction.from_func_graph


def leave_xla() -> None:
    """Let what is being traced, a function with ``jit_compile=True`` or in one, not be compiled; warn of it once."""
    graphs = [tf.compat.v1.get_default_graph()]
    if hasattr(graphs[0], "hvd_compress_exchanges"):  # by another exchange in it
        return
    while (outer := getattr(graphs[-1], "outer_graph", None)) is not None:
        graphs.append(outer)
    while graphs and not InXlaContext(graphs[-1]):  # a graph is in its context while a function in it is traced
        graphs.pop()
    if not graphs:
        return
    for graph in graphs[:-1]:
        graph.hvd_compress_exchanges = True
    warnings.warn(
        "XLA cannot compile the exchange of gradients, which calls Horovod and Python: the function goes without "
        "jit_compile=True. Give it to a function that computes what comes before",
        stacklevel=2,
    )


def _from_traced(graph: Any, function_type: Any, attrs: Any, *args: Any, **settings: Any) -> Any:
    if hasattr(graph, "hvd_compress_exchanges"):
        attrs = {name: value for name, value in (attrs or {}).items() if name != XLA_COMPILE}
    return _from_func_graph(graph, function_type, attrs, *args, **settings)


ConcreteFunction.from_func_graph = _from_traced
