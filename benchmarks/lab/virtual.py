"""Steps on a virtual clock: for as many hosts as this machine cannot carry, and to see how good predictions are.

What a method's encoding and decoding take is measured in one process; `hvd_compress.advice.model` does the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from benchmarks.common.results import Results
from benchmarks.common.specs import spec_in_full
from benchmarks.lab.accuracy import optimizer_of
from benchmarks.lab.methods import COMPARED, METHODS
from benchmarks.lab.steps import ALONE, COLLECTIVES, HOSTS, Cell
from benchmarks.lab.tasks import TIMED
from benchmarks.lab.time import curve_of
from hvd_compress import parse
from hvd_compress.advice.advise import slower
from hvd_compress.advice.computing import computing_of, gradients_of
from hvd_compress.advice.costs import bucket_costs
from hvd_compress.advice.model import BucketCosts, Computing, Network, Ring, Round, predict
from hvd_compress.advice.network import Measured
from hvd_compress.ops.torch import TorchOps
from hvd_compress.reduction.buckets import make_plan
from hvd_compress.reduction.settings import BUCKET_BYTES, DENSE_BELOW

MANY_HOSTS = (4, 8, 16, 32)
VIRTUAL_LINKS = (100, 1000, 10_000)
LATENCY = 50e-6  # seconds of a message between neighbours


@dataclass(frozen=True)
class Cost:
    """What a method costs on one worker of a model.

    Attributes:
        model: of `TIMED`.
        method: of `METHODS`.
        workers: whose payloads are decoded, and by whom the batch is divided.
        compressor: the spec with all settings.
    """

    model: str
    method: str
    workers: int
    compressor: str = field(init=False)

    def __post_init__(self) -> None:
        spec = METHODS[self.method].spec(TIMED[self.model].optimizer)
        object.__setattr__(self, "compressor", spec_in_full(parse(spec)))


def costs() -> list[Cost]:
    """Return all that are measured."""
    numbers = sorted({*HOSTS, *MANY_HOSTS})
    return [Cost(model, method, workers) for model in TIMED for method in COMPARED for workers in numbers]


def measure(cost: Cost, data: str) -> dict[str, Any]:
    """Return what the step computes, and what the buckets cost, in seconds, on one thread."""
    torch.set_num_threads(1)
    ops = TorchOps()
    if ops.kernels:
        ops.kernels.set_threads(1)
    torch.manual_seed(0)
    recipe = TIMED[cost.model]
    task = recipe.load(data, "test")
    random = torch.Generator().manual_seed(0)
    chosen = task.order(recipe.batch, random)[: recipe.batch // cost.workers]
    spec = METHODS[cost.method].spec(recipe.optimizer)
    optimizer = optimizer_of(recipe, METHODS[cost.method], list(task.model.parameters()))
    computing = computing_of(task.model, lambda: task.loss(chosen, random), optimizer)
    plan = make_plan(gradients_of(task.model), parse(spec), bucket_bytes=BUCKET_BYTES, dense_below=DENSE_BELOW)
    buckets = bucket_costs(plan, ops, cost.workers)
    return {"computing": asdict(computing), "buckets": [asdict(each) for each in buckets]}


def read(result: Mapping[str, Any]) -> tuple[Computing, list[BucketCosts]]:
    """Return what `measure` has written."""
    buckets = [
        BucketCosts(each["coordinates"], each["encode"], tuple(Round(**one) for one in each["rounds"]))
        for each in result["buckets"]
    ]
    return Computing(**result["computing"]), buckets


def predicted(
    found: Results[Cost], model: str, method: str, network: Network, workers: int, sharing: float, alone: float | None
) -> float | None:
    """Return the seconds of a step, or None if its costs are not measured.

    Args:
        found: the measured costs.
        model: as of a `Cost`.
        method: likewise.
        workers: likewise.
        network: carries the collectives.
        sharing: workers that share a core.
        alone: seconds that a step computes, if that was measured with the cores shared.
    """
    result = found.get(Cost(model, method, workers))
    if result is None:
        return None
    computing, buckets = read(result)
    longer = sharing if alone is None else alone / computing.seconds
    parts = (computing.forward, computing.backward, computing.optimizer)
    return predict(
        Computing(*(longer * part for part in parts)), [slower(each, sharing) for each in buckets], network
    ).seconds


def predictions(found: Results[Cost], cells: Results[Cell]) -> dict[Cell, tuple[float, float]]:
    """Return for each measured cell the seconds of a step, predicted and measured."""
    pairs: dict[Cell, tuple[float, float]] = {}
    for cell, result in cells.items():
        method = curve_of(cell.scheme)
        if method not in METHODS or cell.scheme == "DDP, PowerSGD hook":
            continue
        same = {"hosts": cell.hosts, "mbits": cell.mbits, "stack": cell.stack, "round": cell.round}
        points, alone = (
            cells.get(Cell(model=m, scheme=s, **same)) for m, s in (("", COLLECTIVES), (cell.model, ALONE))
        )
        if points is None or alone is None:
            continue
        network = Measured(cell.hosts, points["points"])
        sharing = max(1.0, cell.hosts / result["cores"])
        seconds = predicted(found, cell.model, method, network, cell.hosts, sharing, alone["seconds"])
        if seconds is not None:
            pairs[cell] = (seconds, result["seconds"])
    return pairs


def many_hosts(found: Results[Cost], model: str, mbits: int, methods: Sequence[str]) -> dict[tuple[str, int], float]:
    """Return the seconds of a step by method and number of hosts, each with a core of its own, on the virtual clock."""
    times = {}
    for method in methods:
        for hosts in MANY_HOSTS:
            ring = Ring(hosts, mbits * 1e6 / 8, LATENCY)
            seconds = predicted(found, model, method, ring, hosts, 1.0, None)
            if seconds is not None:
                times[method, hosts] = seconds
    return times
