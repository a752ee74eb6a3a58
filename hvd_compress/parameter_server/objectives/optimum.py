"""The optimum of a convex objective, found by a long run in float64."""

from __future__ import annotations

import math

import numpy as np

from hvd_compress.parameter_server.objectives.base import Objective, Vector

SHRINK = 0.95  # least factor by which the estimated curvature falls in an iteration
ROUNDING = 1e-14  # relative rounding error of a mean of losses


def minimum(objective: Objective, tolerance: float = 1e-10, iterations: int = 10_000) -> tuple[float, Vector]:
    """Minimise a convex objective in float64; return P* and x*.

    Accelerated proximal gradient steps (Beck and Teboulle 2009) that begin anew when the momentum points uphill
    (O'Donoghue and Candes 2015). The step t is 1 / L, where L is the curvature of f seen between the last two
    gradients; it falls by at most 5 % an iteration.

    For l2 > 0 they end when P(x) - P* is at most the tolerance for sure: with G = (y - x) / t, and f(x) below the
    parabola of curvature L at y, it is at most (1/(2 l2) + t/2) ||G||^2. Otherwise all iterations are done.

    Args:
        objective: a convex one.
        tolerance: of P.
        iterations: at most so many, each about the cost of one gradient of all rows.

    Raises:
        ValueError: if the objective has no bound on its smoothness: it is not convex.
    """
    rows, regularizer = objective.rows, objective.regularizer
    bound = objective.smoothness(rows)
    if bound is None:
        raise ValueError("objective must be convex, with a bound on its smoothness; this one has none")
    curvature = bound or 1.0  # 0 if all features are zero
    x = objective.initial(0).astype(np.float64)
    y, weight = x, 1.0
    last: tuple[Vector, Vector] | None = None
    for _ in range(iterations):
        loss, gradient = objective.gradient(y)
        gradient /= rows
        if last is not None:
            moved, change = y - last[0], gradient - last[1]
            product = float(moved @ change)
            if product > 0:
                curvature = max(SHRINK * curvature, float(change @ change) / product)
        last = y, gradient
        following = y - gradient / curvature
        regularizer.prox(following, 1 / curvature)
        moved = following - y
        square = float(moved @ moved)
        if regularizer.l2 and (curvature / regularizer.l2 + 1) * curvature / 2 * square <= tolerance:
            parabola = loss / rows + float(gradient @ moved) + curvature / 2 * square
            if objective.value(following) / rows <= parabola + tolerance / 100 + ROUNDING * abs(parabola):
                x = following
                break
            curvature *= 2
            continue
        if moved @ (following - x) < 0:
            weight = 1.0
        grown = (1 + math.sqrt(1 + 4 * weight**2)) / 2
        y = following + (weight - 1) / grown * (following - x)
        x, weight = following, grown
    return objective.value(x) / rows + regularizer.value(x), x
