"""The document's sections: each shows the results of one experiment."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.common.markdown import table
from benchmarks.common.pictures import logarithmic, picture
from benchmarks.common.results import Results, over_seeds
from benchmarks.double_quantization import text
from benchmarks.double_quantization.experiments import WORKERS
from benchmarks.double_quantization.job import Job

EPOCH, OBJECTIVE, GAP, ACCURACY, UP, DOWN, SECONDS = range(7)  # columns of a curve
FEATURES = 18_362  # of rt-polarity
# What a picture of many variants shows: variant, bits of the gradient, and of the model if they differ.
DRAWN = [("full-precision", 8, None), ("gradient-only", 4, None), ("model-only", 4, None), ("sparse", 4, None)]
DRAWN += [("asylpg", bits, None) for bits in (2, 3, 4, 8)] + [("accelerated", 4, None), ("accelerated", 3, 2)]


def spread(values: Iterable[float], form: str, times: float = 1.0) -> str:
    """Return the mean ± standard deviation."""
    values = [times * value for value in values]
    return f"{statistics.mean(values):{form}}" + (f" ± {deviation(values):{form}}" if len(values) > 1 else "")


def deviation(values: list[float]) -> float:
    """Return the standard deviation, 0 of a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def at_end(own: list[dict[str, Any]], column: int) -> list[float]:
    """Return the last value of a column of each curve."""
    return [result["curve"][-1][column] for result in own]


def megabits(own: list[dict[str, Any]]) -> float:
    """Return the mean of all bits sent, up and down, in millions."""
    return statistics.mean(at_end(own, UP)) + statistics.mean(at_end(own, DOWN))


def named(job: Job) -> str:
    """Return a job's label in tables."""
    return f"`{job.variant}`" + (", model on a grid" if job.model == "grid" else "")


def bits_of(job: Job) -> str:
    """Return the bits per coordinate of the gradient, and of the model if they differ."""
    if job.variant == "full-precision":
        return ""
    return str(job.bits) if job.model_bits is None else f"{job.bits} / {job.model_bits}"


def complete(found: Results[Job]) -> dict[Job, list[dict[str, Any]]]:
    """Return the settings of which all seeds reached the target, or where there is none, did all epochs."""

    def ended(job: Job) -> str:
        return "epochs" if job.target is None else "target"

    return {job: own for job, own in over_seeds(found).items() if all(one["ended"] == ended(job) for one in own)}


def remarks(found: Results[Job]) -> str:
    """Return paragraphs about links without limits and about seeds that did not reach the end, if there are any."""
    incomplete = []
    for job, own in over_seeds(found).items():
        if job in complete(found):
            continue
        column = OBJECTIVE if job.task == "mlp" else GAP
        ends = ", ".join("failed" if one["ended"] == "failed" else f"{one['curve'][-1][column]:.3g}" for one in own)
        incomplete.append(f"{named(job)} with {job.bits} bits and {job.workers} workers ({ends})")
    paragraphs = []
    if not all(result["limited"] for result in found.values()):
        paragraphs.append(text.UNLIMITED)
    if incomplete:
        paragraphs.append(text.INCOMPLETE.format("; ".join(incomplete)))
    return "".join(f"\n\n{paragraph}" for paragraph in paragraphs)


def table_of(found: Results[Job]) -> str:
    """Return the bits and times of jobs that have a target."""
    factors = fewer_bits(found)
    rows = []
    for job, own in complete(found).items():
        cells = [named(job), bits_of(job), spread(at_end(own, EPOCH), ".1f"), *ways(own), f"{factors[job]:.1f}"]
        rows.append([*cells, spread(at_end(own, SECONDS), ".1f"), *limits(job, own)[:2]])
    head = "variant | bits | epochs | Mbit up | Mbit down | times fewer bits | seconds | cores | link"
    return table(head, rows) + remarks(found)


def ways(own: list[dict[str, Any]]) -> list[str]:
    """Return the megabits up and down."""
    return [f"{statistics.mean(at_end(own, column)):,.0f}" for column in (UP, DOWN)]


def draw_curves(found: Results[Job], column: int, title: str, path: Path) -> None:
    """Draw a column of the curves of seed 0, over bits and over seconds."""
    labels = {GAP: "P(x) - P*", ACCURACY: "accuracy on the test set, %"}
    with picture(path, 2) as both:
        for job, result in found.items():
            if job.seed:
                continue
            curve = [point for point in result["curve"] if point and point[EPOCH]]
            values = [100 * point[column] if column == ACCURACY else point[column] for point in curve]
            label = named(job).replace("`", "") + (f", {bits_of(job)} bits" if bits_of(job) else "")
            for axes, at in zip(both, ([p[UP] + p[DOWN] for p in curve], [p[SECONDS] for p in curve]), strict=True):
                axes.plot(at, values, marker=".", label=label)
        for axes, label in zip(both, ("Mbit up and down", "seconds"), strict=True):
            logarithmic(axes, label)
            axes.set(ylabel=labels[column], yscale="log" if column == GAP else "linear")
            axes.set_title(title, fontsize=10)


def drawn(found: Results[Job]) -> Results[Job]:
    """Return those of many variants that a picture shows."""
    return {
        job: result
        for job, result in found.items()
        if job.model == "difference" and (job.variant, job.bits, job.model_bits) in DRAWN
    }


def show_target(found: Results[Job], folder: Path) -> str:
    """Return the section about a target, and draw it."""
    own = {job: result for job, result in found.items() if job.step is None}
    larger = {job: result for job, result in found.items() if job.step is not None}
    title = "rt-polarity, logistic regression, 4 workers"
    draw_curves(drawn(own), GAP, title, folder / "double-quantization-target.png")
    full = [result for job, result in own.items() if job.variant == "full-precision"]
    steps, down = statistics.mean(result["steps"] for result in full), statistics.mean(at_end(full, DOWN))
    dense = 32e-6 * FEATURES * steps
    factors = fewer_bits(own)

    def tuned(variant: str) -> str:
        fewest = [
            min(megabits(seeds) for job, seeds in complete(found).items() if job.variant == name)
            for name in ("full-precision", variant)
        ]
        return f"{fewest[0] / fewest[1]:.1f}"

    return text.TARGET.format(
        table=table_of(own),
        larger=table_of(larger),
        sparse=f"{statistics.mean(at_end(full, UP)):,.0f}",
        dense=f"{dense:,.0f}",
        more=f"{(dense + down) / megabits(full):.1f}",
        asylpg=best_of(factors, "asylpg"),
        accelerated=best_of(factors, "accelerated"),
        accelerated_tuned=tuned("accelerated"),
        asylpg_tuned=tuned("asylpg"),
    )


def fewer_bits(found: Results[Job]) -> dict[Job, float]:
    """Return for each setting by what factor it sends fewer bits than full precision."""
    groups = complete(found)
    full = next(own for job, own in groups.items() if job.variant == "full-precision")
    return {job: megabits(full) / megabits(own) for job, own in groups.items()}


def best_of(factors: dict[Job, float], variant: str) -> str:
    """Return the largest of a variant's factors, and with which bits it is reached."""
    job = max((job for job in factors if job.variant == variant), key=lambda job: factors[job])
    return f"{factors[job]:.1f} times fewer bits (with {bits_of(job)})"


def show_softmax(found: Results[Job], folder: Path) -> str:
    """Return the section about MNIST, and draw it."""
    draw_curves(drawn(found), GAP, "MNIST, softmax, 4 workers", folder / "double-quantization-softmax.png")
    factors = fewer_bits(found)
    accuracies = [accuracy for own in complete(found).values() for accuracy in at_end(own, ACCURACY)]
    return text.SOFTMAX.format(
        accuracy=f"{100 * min(accuracies):.2f} to {100 * max(accuracies):.2f} %",
        table=table_of(found),
        asylpg=best_of(factors, "asylpg"),
        accelerated=best_of(factors, "accelerated"),
    )


def show_scaling(found: Results[Job], folder: Path) -> str:
    """Return the section about the number of workers, and draw it."""
    groups = complete(found)
    tables = []
    with picture(folder / "double-quantization-scaling.png", 2) as both:
        for axes, together in zip(both, (False, True), strict=True):
            rows = []
            for variant in ("full-precision", "asylpg"):
                own = {
                    job: seeds for job, seeds in groups.items() if (job.variant, job.together) == (variant, together)
                }
                times = {job.workers: statistics.median(at_end(seeds, SECONDS)) for job, seeds in own.items()}
                gains = {w: f"{100 * (times[w // 2] / times[w] - 1):+.0f} %" for w in times if w // 2 in times}
                for job, seeds in own.items():
                    cells = [named(job), str(job.workers), f"{statistics.mean(at_end(seeds, EPOCH)):.1f}"]
                    cells += [spread(at_end(seeds, SECONDS), ".1f"), f"{times[job.workers]:.1f}"]
                    cells += [gains.get(job.workers, ""), f"{statistics.mean(at_end(seeds, OBJECTIVE)):.2f}"]
                    rows.append([*cells, *limits(job, seeds)])
                deviations = [deviation(at_end(seeds, SECONDS)) for seeds in own.values()]
                axes.errorbar(list(times), list(times.values()), yerr=deviations, marker="o", capsize=3, label=variant)
            logarithmic(axes, "workers", WORKERS)
            axes.set(ylim=(0, None), ylabel="seconds to the target, median")
            axes.set_title("as many servers, 25 Mbit/s" if together else "one server, 100 Mbit/s", fontsize=10)
            tables.append(table(SCALING_HEAD, rows))
    return text.SCALING.format(one=tables[0], many=tables[1] + remarks(found))


SCALING_HEAD = "variant | workers | epochs | seconds | median | gain | objective | cores | link | limit"


def limits(job: Job, own: list[dict[str, Any]]) -> list[str]:
    """Return the shares of the cores' and of the busiest link's time that were used, and which is the limit."""
    cores = statistics.median(result["cores"] for result in own)
    used = [result["link"] for result in own if result["link"] is not None]
    link = statistics.median(used) / job.mbits if used else 0.0
    limit = "link" if link > 0.8 else "cores" if cores > 0.9 else "waiting"
    return [f"{100 * cores:.0f} %", f"{100 * link:.0f} %", limit]


def show_network(found: Results[Job], folder: Path) -> str:
    """Return the section about a network, and draw it."""
    path = folder / "double-quantization-network.png"
    draw_curves(found, ACCURACY, "MNIST, 100 hidden units, 4 workers", path)
    factors = fewer_bits(found)
    rows = []
    groups = complete(found)
    for job, own in groups.items():
        cells = [named(job), bits_of(job), spread(at_end(own, ACCURACY), ".1f", 100) + " %"]
        cells += [spread(at_end(own, OBJECTIVE), ".3f"), *ways(own)]
        rows.append([*cells, f"{factors[job]:.1f}", spread(at_end(own, SECONDS), ".1f")])
    head = "variant | bits | accuracy | objective | Mbit up | Mbit down | times fewer bits | seconds"
    full, three = (
        next(own for job, own in groups.items() if (job.variant, job.bits) == setting)
        for setting in (("full-precision", 8), ("asylpg", 3))
    )
    accuracy, seconds = (
        [statistics.mean(at_end(own, column)) for own in (full, three)] for column in (ACCURACY, SECONDS)
    )
    return text.NETWORK.format(
        table=table(head, rows) + remarks(found),
        fewer=f"{megabits(full) / megabits(three):.1f}",
        faster=f"{seconds[0] / seconds[1]:.0f}",
        loss=f"{100 * (accuracy[0] - accuracy[1]):.1f}",
    )
