"""What a run's trace tells of its steps: the gradients' shapes, and what computing takes."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from hvd_compress.advice.model import Computing
from hvd_compress.reduction.buckets import Gradient
from hvd_compress.reduction.phases import COMPUTING, OPTIMIZER
from hvd_compress.reduction.trace import SHAPES

WARM_UP = 2  # steps: the first is planned, and does not overlap


def traced(path: Path) -> tuple[list[Gradient], Computing]:
    """Return the gradients of a traced run, and the medians of what its steps computed.

    Of several reducers in one run that with the most steps is meant.

    Raises:
        ValueError: if the file is no trace of this package, or has no more than `WARM_UP` steps.
        OSError: if it cannot be read.
    """
    events = _events(path)
    names = {event["tid"]: event["args"]["name"] for event in events if event.get("name") == "thread_name"}
    shapes = {event["args"]["line"]: event["args"]["shapes"] for event in events if event.get("name") == SHAPES}
    seconds: dict[str, dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(float)))
    for event in events:
        if event.get("ph") == "X" and (line := names.get(event["tid"], "")) in shapes:
            seconds[line][event["args"]["step"]][event["name"]] += event["dur"] / 1e6
    if not seconds:
        raise ValueError(f"{path} is no trace of this package: it does not tell the gradients' shapes")
    line, steps = max(seconds.items(), key=lambda item: len(item[1]))
    later = [phases for _, phases in sorted(steps.items())[WARM_UP:]]
    if not later:
        raise ValueError(f"{path} has {len(steps)} steps; more than {WARM_UP} are needed")
    computing, optimizer = (median(phases[name] for phases in later) for name in (COMPUTING, OPTIMIZER))
    gradients = [Gradient(name, tuple(shape), "float32") for name, shape in shapes[line].items()]
    return gradients, Computing.of(computing, optimizer)


def _events(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8").rstrip().rstrip(",")
    try:
        events = json.loads(text if text.endswith("]") else text + "]")  # a run that was killed leaves the bracket out
    except ValueError as error:
        raise ValueError(f"{path} is no trace: {error}") from None
    if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
        raise ValueError(f"{path} is no trace: it must be a list of events")
    return events
