"""Accuracy against steps, which does not depend on the link: each training once, with simulated workers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.results import Results
from benchmarks.common.specs import spec_in_full
from benchmarks.lab.methods import COMPARED, LONGER, METHODS, MOMENTUM, SCALED, WITHOUT_MOMENTUM, Method
from benchmarks.lab.tasks import TASKS, Recipe
from benchmarks.simulated.training import train_steps, warmed_then_linear
from benchmarks.simulated.translation import Translation
from benchmarks.simulated.workers import Workers
from hvd_compress import parse

WORKERS, SEEDS = 4, 3
OTHER_WORKERS = (2, 8)
FACTORS = (0.5, 1.0, 2.0)  # of the recipe's learning rate: as many are tried for each method as for the baseline
TUNING_SEED = 100
WARMUP = 0.1
SCORES = 16  # a training


@dataclass(frozen=True)
class Training:
    """One training.

    Attributes:
        task: of `TASKS`.
        method: of `METHODS`.
        factor: of the recipe's learning rate.
        workers: their number; the batch is divided among them.
        seed: of weights, data and compressor.
        longer: factor of the recipe's epochs.
        part: what it is scored with: "valid" to choose the factor, otherwise "test".
        compressor: the spec with all settings: a result is of the defaults that a compressor had at the time.
        recipe: the task's, in a line, for the same reason.
    """

    task: str
    method: str
    factor: float
    workers: int = WORKERS
    seed: int = 0
    longer: int = 1
    part: str = "test"
    compressor: str = field(init=False)
    recipe: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "compressor", spec_in_full(parse(self.spec)))
        object.__setattr__(self, "recipe", TASKS[self.task].text)

    @property
    def spec(self) -> str:
        """The compressor's spec."""
        return METHODS[self.method].spec(TASKS[self.task].optimizer)


def tuning() -> list[Training]:
    """Return the trainings that choose each method's learning rate, scored with examples of the training set."""
    return [
        Training(task, method, factor, seed=TUNING_SEED, part="valid")
        for task in TASKS
        for method in [*COMPARED, *([WITHOUT_MOMENTUM] if TASKS[task].optimizer == "sgd" else [])]
        for factor in FACTORS
    ]


def final(found: Results[Training]) -> list[Training]:
    """Return the trainings that are reported, of what has been tuned.

    Those of one seed come before those of the next, so that a part of them is a whole comparison with fewer seeds.
    """
    best = tuned(found)
    one = [(task, method, WORKERS, 1) for task, method in best]
    one += [(task, method, WORKERS, 2) for task, method in best if method in LONGER]
    one += [(task, method, workers, 1) for workers in OTHER_WORKERS for task, method in best if method in SCALED]
    return [
        Training(task, method, best[task, method], workers, seed, longer)
        for seed in range(SEEDS)
        for task, method, workers, longer in one
    ]


def tuned(found: Results[Training]) -> dict[tuple[str, str], float]:
    """Return the best factor of each task and method of which all have been tried."""
    scores: dict[tuple[str, str], dict[float, float]] = {}
    for training in tuning():
        if training in found:
            scores.setdefault((training.task, training.method), {})[training.factor] = merit(training, found[training])
    return {key: max(tried, key=tried.__getitem__) for key, tried in scores.items() if len(tried) == len(FACTORS)}


def merit(training: Training, result: dict[str, Any]) -> float:
    """Return the score at the end, the larger the better; a training that diverged has the worst."""
    score = result["curve"][-1][1]
    if result["diverged"]:
        return float("-inf")
    return float(score) if TASKS[training.task].larger_is_better else -float(score)


def train(training: Training, folder: str) -> dict[str, Any]:
    """Train; return the curve, pairs of steps done and the score, and the bytes of all steps."""
    torch.set_num_threads(1)
    torch.manual_seed(training.seed)
    recipe, method = TASKS[training.task], METHODS[training.method]
    task = recipe.load(folder, training.part)
    parameters = dict(task.model.named_parameters())
    workers = Workers(parameters, parse(training.spec), training.workers, seed=training.seed)
    epochs = recipe.epochs * training.longer
    examples = len(task.order(recipe.batch, torch.Generator().manual_seed(training.seed)))
    steps = examples // recipe.batch * epochs
    curve: list[tuple[int, float]] = []
    finite = True
    began = time.perf_counter()
    for done in train_steps(
        task,
        workers,
        optimizer_of(recipe, method, list(parameters.values())),
        warmed_then_linear(largest_rate(recipe, method, training.factor), WARMUP),
        batch=recipe.batch,
        epochs=epochs,
        seed=training.seed,
        pause=-(-steps // (SCORES * training.longer)),
    ):
        curve.append((done, round(task.score(), 5)))
        finite = all(bool(p.isfinite().all()) for p in parameters.values())
        if not finite:
            break
    final = task.translations() if isinstance(task, Translation) and training.part == "test" else {}
    return {
        "curve": curve,
        **{name: value for name, value in final.items() if name == "bleu"},
        "diverged": not finite,
        "steps": steps,
        "parameters": sum(p.numel() for p in parameters.values()),
        "bytes_sent": workers.bytes("sent"),
        "bytes_received": workers.bytes("received"),
        "seconds": round(time.perf_counter() - began, 1),
    }


def largest_rate(recipe: Recipe, method: Method, factor: float) -> float:
    """Return the learning rate that a training warms up to."""
    return recipe.lr * factor * (method.rate if recipe.optimizer == "sgd" else 1.0)


def optimizer_of(recipe: Recipe, method: Method, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    """Return the optimizer; SGD has the momentum unless the compressor keeps it."""
    if recipe.optimizer == "adam":
        return torch.optim.AdamW(parameters, recipe.lr, weight_decay=recipe.decay)
    momentum = 0.0 if parse(method.sgd).has_momentum else method.momentum
    scaled = recipe.decay * (1 - momentum) / (1 - MOMENTUM)  # as the momentum would
    return torch.optim.SGD(parameters, recipe.lr, momentum, weight_decay=scaled)
