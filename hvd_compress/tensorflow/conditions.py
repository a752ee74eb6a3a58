"""Where a graph's conditions would leave a rank alone with an exchange."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def refuse_conditions(optimizer: Any) -> None:
    """Raise ValueError if an optimizer's step is one branch of a condition, as in a `LossScaleOptimizer`."""
    if type(tf.compat.v1.get_default_graph()).__name__ == "CondBranchFuncGraph":
        raise ValueError(
            "each rank would decide for itself whether to exchange its gradients, and the others might wait for ever: "
            "a LossScaleOptimizer must be inside, DistributedOptimizer(LossScaleOptimizer(optimizer)), not around this "
            f"{type(optimizer).__name__}. With the policy mixed_float16, compile() puts one around any other optimizer."
        )
