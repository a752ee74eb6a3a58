"""Double quantization on parameter servers: bits and time to a target, more workers, and a network that is not convex.

Every job leaves a file; what has one is not repeated. So the command can be stopped with Ctrl-C and started again. As
root, each host is a network namespace behind a link of its own; else all ranks share this machine, without links.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from hosts import PREFIX, hosts
from report import logarithmic, picture, table
from runs import add_arguments, file_name, results, settings_of, train_missing

ASYLPG = Path(__file__).parents[1] / "mpi" / "asylpg.py"
TIMEOUT = 900  # seconds until a job is given up
EPOCH, OBJECTIVE, GAP, ACCURACY, UP, DOWN, SECONDS = range(7)  # columns of a curve


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes:
        data: file or folder in the data's folder.
        task, variant, bits, workers, servers, epochs, seed, l2, batch, model, model_bits, budget, step, epoch_steps,
            hidden, target: as mpi/asylpg.py takes them; None for its default.
        mbits: speed of a host's link in Mbit/s; 0 for all ranks on this machine, without links.
        together: whether a server and a worker share a host; else each rank has its own.
    """

    data: str
    task: str
    variant: str
    bits: int
    workers: int
    epochs: int
    seed: int = 0
    servers: int = 1
    l2: float = 0.0
    batch: int = 64
    model: str = "difference"
    model_bits: int | None = None
    budget: float | None = None
    step: float | None = None
    epoch_steps: int | None = None
    hidden: int | None = None
    target: float | None = None
    mbits: int = 100
    together: bool = False

    def path(self, folder: Path) -> Path:
        """Return where the result is kept."""
        words = f"{self.data}-{self.task}-{self.variant}-b{self.bits}-w{self.workers}-s{self.seed}"
        return folder / file_name(words, settings_of(self))

    def arguments(self, data: str) -> list[str]:
        """Return the command line of mpi/asylpg.py."""
        given = {"data": Path(data) / self.data, "max-epochs": self.epochs}
        names = ("task", "variant", "bits", "seed", "servers", "l2", "batch", "model")
        names += ("model_bits", "budget", "step", "epoch_steps", "hidden", "target")
        given |= {name.replace("_", "-"): getattr(self, name) for name in names}
        return [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]


Results = dict[Job, dict[str, Any]]


class Use(NamedTuple):
    """What was used until now: seconds of all cores, those of them that were busy, and bytes of each link's ways."""

    cores: float
    busy: float
    links: list[int]

    @staticmethod
    def now() -> Use:
        """Read the system's counters."""
        ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        ways = sorted(Path("/sys/class/net").glob(f"{PREFIX}p*/statistics/[rt]x_bytes"))
        return Use(sum(ticks), sum(ticks) - ticks[3] - ticks[4], [int(way.read_text()) for way in ways])


def run(job: Job, data: str) -> dict[str, Any]:
    """Do a job.

    Returns:
        How it ended ("target", "epochs" or "failed"), its steps and largest delay, which parts of the cores' and of
        the busiest link's time were used from the first epoch's beginning on, and the curve.

    Raises:
        Unavailable: if there cannot be hosts, though this is root.
        RuntimeError: if the job refuses its arguments or data.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left behind
    try:
        return _run(job, data)
    except KeyboardInterrupt:
        os._exit(130)  # else the pool's process begins the next job


def _run(job: Job, data: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, _mpirun(job) as (mpirun, limited):
        log, out, err = (Path(folder) / name for name in ("log.json", "out", "err"))
        command = [*mpirun, sys.executable, str(ASYLPG), "--quiet", "--log", str(log), *job.arguments(data)]
        with out.open("w") as to, err.open("w") as errors:
            process = subprocess.Popen(command, stdout=to, stderr=errors, start_new_session=True, env=_environment())
            try:
                used = _watch(process, log)
            finally:
                _end(process)
        if process.returncode == 2:
            raise RuntimeError(err.read_text())
        found = [json.loads(line) for line in out.read_text().splitlines() if line.startswith("{")]
        rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    ended = "failed"
    if found:
        value = found[-1]["objective" if found[-1]["suboptimality"] is None else "suboptimality"]
        ended = "target" if job.target is not None and value <= job.target else "epochs"
    result = {"ended": ended, "limited": limited} | used
    result |= {name: found[-1][name] if found else None for name in ("steps", "max_delay")}
    return result | {"curve": [_point(row) for row in rows] or [None]}


@contextmanager
def _mpirun(job: Job) -> Iterator[tuple[list[str], bool]]:
    """Give the start of a command, and whether links are limited."""
    if job.mbits and os.geteuid() == 0:
        count = job.workers if job.together else job.workers + job.servers
        with hosts(count, job.mbits, ulfm=True, ranks_each=2 if job.together else 1) as command:
            yield command, True
    else:
        ranks = str(job.workers + job.servers)
        yield ["mpirun", "--bind-to", "none", "--map-by", ":oversubscribe", "--with-ft", "ulfm", "-np", ranks], False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _watch(process: subprocess.Popen[bytes], log: Path) -> dict[str, Any]:
    """Wait for a job; tell what it used between the first and the last line of its log."""
    marks: list[tuple[float, Use]] = []
    size, until = 0, time.monotonic() + TIMEOUT
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
        grown = log.stat().st_size if log.exists() else 0
        if grown > size:
            size = grown
            marks = [*marks[:1], (time.monotonic(), Use.now())]
    if len(marks) < 2:
        return {"cores": None, "link": None}
    (began, first), (ended, last) = marks
    mbits = [8e-6 * (b - a) / (ended - began) for a, b in zip(first.links, last.links, strict=True)]
    cores = (last.busy - first.busy) / (last.cores - first.cores)
    return {"cores": round(cores, 3), "link": round(max(mbits), 1) if mbits else None}


def _point(row: dict[str, Any]) -> list[Any]:
    """Return a line of a curve."""
    point = [row["epoch"], row["objective"], row["suboptimality"], row["accuracy"]]
    point += [row["bits_up"] / 1e6, row["bits_down"] / 1e6, row["seconds"]]
    return [value if value is None or isinstance(value, int) else float(f"{value:.6g}") for value in point]


def seeds_of(found: Results) -> dict[Job, list[dict[str, Any]]]:
    """Return for each setting, as the job of seed 0, the results of all seeds."""
    groups: dict[Job, list[dict[str, Any]]] = {}
    for job, result in found.items():
        groups.setdefault(replace(job, seed=0), []).append(result)
    return groups


def seeded(jobs: Iterable[Job], seeds: int) -> list[Job]:
    """Return the jobs for so many seeds, seed by seed."""
    jobs = list(jobs)
    return [replace(job, seed=seed) for seed in range(seeds) for job in jobs]


def spread(values: Iterable[float], form: str, times: float = 1.0) -> str:
    """Return the mean ± standard deviation."""
    values = [times * value for value in values]
    return f"{statistics.mean(values):{form}}" + (f" ± {deviation(values):{form}}" if len(values) > 1 else "")


def deviation(values: list[float]) -> float:
    """Return the standard deviation, 0 of a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def at_end(own: list[dict[str, Any]], column: int) -> list[float]:
    """Return what the curves end with."""
    return [result["curve"][-1][column] for result in own]


def megabits(own: list[dict[str, Any]]) -> float:
    """Return the mean of the bits up and down, in millions."""
    return statistics.mean(at_end(own, UP)) + statistics.mean(at_end(own, DOWN))


def named(job: Job) -> str:
    """Return what a table calls a job."""
    return f"`{job.variant}`" + (", model on a grid" if job.model == "grid" else "")


def bits_of(job: Job) -> str:
    """Return the bits of a coordinate of the gradient, and of the model if it has others."""
    if job.variant == "full-precision":
        return ""
    return str(job.bits) if job.model_bits is None else f"{job.bits} / {job.model_bits}"


def rt_polarity(variant: str, bits: int = 8, **more: Any) -> Job:
    """Return a logistic regression on sentences."""
    return Job("rt-polarity", "logistic", variant, bits, 4, 100, l2=1e-5, target=1e-6, **more)


def mnist(task: str, variant: str, bits: int = 8, **more: Any) -> Job:
    """Return a job on MNIST."""
    settings = {"workers": 4} | more
    return Job("mnist", task, variant, bits, **settings)


BITS = (2, 3, 4, 8)
SEEDS = 5
DRAWN = [("full-precision", 8, None), ("gradient-only", 4, None), ("model-only", 4, None), ("sparse", 4, None)]
DRAWN += [("asylpg", bits, None) for bits in (2, 3, 4, 8)] + [("accelerated", 4, None), ("accelerated", 3, 2)]
FEATURES = 18_362
LARGER = 105.0  # a step of about 1 / L
QUANTIZED = ("asylpg", "accelerated", "model-only", "gradient-only")


def target_jobs() -> list[Job]:
    """Return the jobs to a target, each variant with its default step; then some with a larger one."""
    jobs = [rt_polarity("full-precision"), *(rt_polarity(name, bits) for name in QUANTIZED for bits in BITS)]
    jobs += [rt_polarity("sparse", bits, budget=0.02) for bits in BITS]
    jobs += [rt_polarity("asylpg", bits, model="grid") for bits in (4, 8)]
    jobs += [rt_polarity("asylpg", 4, model_bits=2), rt_polarity("accelerated", 3, model_bits=2)]
    jobs += [rt_polarity("full-precision", step=LARGER), rt_polarity("asylpg", 3, step=LARGER)]
    jobs.append(rt_polarity("accelerated", 3, model_bits=2, step=LARGER, epoch_steps=167))
    return several_seeds(jobs, {"gradient-only"})


def several_seeds(jobs: list[Job], slow: set[str]) -> list[Job]:
    """Return the jobs for all seeds; slow variants at other bits than 4, which tell little more, for one."""
    return list(dict.fromkeys([*jobs, *seeded((j for j in jobs if j.variant not in slow or j.bits == 4), SEEDS)]))


def complete(found: Results) -> dict[Job, list[dict[str, Any]]]:
    """Return the settings of which all seeds came to their end: the target, or the epochs where there is none."""

    def ended(job: Job) -> str:
        return "epochs" if job.target is None else "target"

    return {job: own for job, own in seeds_of(found).items() if all(one["ended"] == ended(job) for one in own)}


def remarks(found: Results) -> str:
    """Return paragraphs about links without limits and about other settings, if there are some."""
    texts = []
    for job, own in seeds_of(found).items():
        if job in complete(found):
            continue
        column = OBJECTIVE if job.task == "mlp" else GAP
        ends = ", ".join("failed" if one["ended"] == "failed" else f"{one['curve'][-1][column]:.3g}" for one in own)
        texts.append(f"{named(job)} with {job.bits} bits and {job.workers} workers ({ends})")
    text = "" if all(result["limited"] for result in found.values()) else f"\n\n{UNLIMITED}"
    return text + (
        f"\n\nNot all seeds came to the end; in brackets where they ended: {'; '.join(texts)}." if texts else ""
    )


UNLIMITED = "Here all ranks shared one machine, without links: times say nothing of a network."


def table_of(found: Results) -> str:
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


def draw_curves(found: Results, column: int, title: str, path: Path) -> None:
    """Draw a column of the curves of seed 0 over bits and over seconds."""
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


def drawn(found: Results) -> Results:
    """Return what a picture shows of many variants."""
    return {
        job: result
        for job, result in found.items()
        if job.model == "difference" and (job.variant, job.bits, job.model_bits) in DRAWN
    }


def show_target(found: Results, folder: Path) -> str:
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

    return TARGET.format(
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


def fewer_bits(found: Results) -> dict[Job, float]:
    """Return for each setting how many times fewer bits it sends than full precision does."""
    groups = complete(found)
    full = next(own for job, own in groups.items() if job.variant == "full-precision")
    return {job: megabits(full) / megabits(own) for job, own in groups.items()}


def best_of(factors: dict[Job, float], variant: str) -> str:
    """Return the largest of a variant's factors, and at which bits."""
    job = max((job for job in factors if job.variant == variant), key=lambda job: factors[job])
    return f"{factors[job]:.1f} times fewer bits (with {bits_of(job)})"


def softmax_jobs() -> list[Job]:
    """Return the jobs on MNIST to a target."""
    settings = {"l2": 1e-3, "batch": 256, "target": 1e-5, "epochs": 40}
    jobs = [mnist("softmax", "full-precision", **settings)]
    jobs += [mnist("softmax", name, bits, **settings) for name in (*QUANTIZED, "sparse") for bits in BITS]
    jobs.append(mnist("softmax", "asylpg", 4, model="grid", **settings))
    return several_seeds(jobs, {"gradient-only", "model-only"})


def show_softmax(found: Results, folder: Path) -> str:
    """Return the section about MNIST, and draw it."""
    draw_curves(drawn(found), GAP, "MNIST, softmax, 4 workers", folder / "double-quantization-softmax.png")
    factors = fewer_bits(found)
    accuracies = [accuracy for own in complete(found).values() for accuracy in at_end(own, ACCURACY)]
    return SOFTMAX.format(
        accuracy=f"{100 * min(accuracies):.2f} to {100 * max(accuracies):.2f} %",
        table=table_of(found),
        asylpg=best_of(factors, "asylpg"),
        accelerated=best_of(factors, "accelerated"),
    )


WORKERS = (1, 2, 4, 8)


def scaling_jobs() -> list[Job]:
    """Return the jobs with more and more workers: with one server, then with as many."""
    settings = {"hidden": 200, "batch": 16, "step": 0.05, "epoch_steps": 400, "epochs": 3, "target": 1.2}
    one = [
        mnist("mlp", variant, workers=workers, **settings)
        for variant in ("full-precision", "asylpg")
        for workers in WORKERS
    ]
    many = [replace(job, servers=job.workers, together=True, mbits=25) for job in one]
    return [*seeded(one, 2), *seeded(many, SEEDS)]


def show_scaling(found: Results, folder: Path) -> str:
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
    return SCALING.format(one=tables[0], many=tables[1] + remarks(found))


SCALING_HEAD = "variant | workers | epochs | seconds | median | gain | objective | cores | link | limit"


def limits(job: Job, own: list[dict[str, Any]]) -> list[str]:
    """Return which parts of the cores' and the busiest link's time were used, and what is the limit."""
    cores = statistics.median(result["cores"] for result in own)
    used = [result["link"] for result in own if result["link"] is not None]
    link = statistics.median(used) / job.mbits if used else 0.0
    limit = "link" if link > 0.8 else "cores" if cores > 0.9 else "waiting"
    return [f"{100 * cores:.0f} %", f"{100 * link:.0f} %", limit]


def network_jobs() -> list[Job]:
    """Return the jobs that train a network for a few epochs."""
    settings = {"hidden": 100, "step": 0.05, "epoch_steps": 469, "epochs": 3}
    variants = [("full-precision", 8), ("asylpg", 8), ("asylpg", 4), ("asylpg", 3), ("sparse", 4)]
    variants += [("model-only", 8), ("gradient-only", 8)]
    return seeded((mnist("mlp", variant, bits, **settings) for variant, bits in variants), SEEDS)


def show_network(found: Results, folder: Path) -> str:
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
    return NETWORK.format(
        table=table(head, rows) + remarks(found),
        fewer=f"{megabits(full) / megabits(three):.1f}",
        faster=f"{seconds[0] / seconds[1]:.0f}",
        loss=f"{100 * (accuracy[0] - accuracy[1]):.1f}",
    )


TARGET = """## Bits and time to a target

Logistic regression on rt-polarity: 10,662 sentences, 18,362 features, l2 = 1e-5, to P(x) - P* of 1e-6. Four workers
with batches of 64, and one server, each on a host of its own behind a link of 100 Mbit/s each way.
Steps are 0.3 / L, of accelerated 0.5 / L, and epochs are two passes over the rows; sparse keeps 2 % of the coordinates.
Five seeds, mean ± standard deviation, or one where there is no deviation. "4 / 2" stands for 4 bits of a coordinate of
the gradient and 2 of the model. Of both cores' time the table has the part that was used, by whatever ran on the
machine, and of the busiest link's the part that it sent, or received, in. Ranks that wait look for messages again and
again, so that cores seem busier than they need to be; and beside some of the jobs, here and below, other work ran at
the lowest priority.

{table}

![Suboptimality over bits and seconds](double-quantization-target.png)

asylpg sends up to {asylpg} than full precision,
accelerated up to {accelerated}.
It is the model that costs: it is dense, and gradients of sparse rows are not. All variants, full precision among them,
send of these the nonzero coordinates alone: {sparse} Mbit, where 32 bits for each coordinate would be {dense} Mbit,
and {more} times as many bits in all. So to quantize the gradient alone gains next to nothing, and the model alone
most of it; sparse leaves out coordinates of what is sparse to begin with, and saves little. A grid of the model itself,
as in the paper, needs more bits the nearer x comes to the snapshot: it is no match for the difference. With few bits
the two cores, on which all five hosts run, limit the time as much as the links do.

### A larger step

The same with steps of 1 / L, and epochs of one pass for accelerated.

{larger}

Full precision gains three times by it. With the noise of the quantization, and answers that come late, the others do
not bear it: asylpg needs more epochs than with the small step, and the accelerated one does not always come to the
target. If every variant has the better step for it, accelerated sends {accelerated_tuned} times fewer bits than full
precision, asylpg {asylpg_tuned} times: more than half of the factors above is owed to a step that is small for full
precision.
"""

SOFTMAX = """## The same on MNIST

Softmax regression, 7,850 parameters, l2 = 1e-3, to P(x) - P* of 1e-5, batches of 256, sparse with 5 % of the
coordinates; else as above. Here gradients are as dense as the model.

{table}

![Suboptimality over bits and seconds](double-quantization-softmax.png)

asylpg sends up to {asylpg} than full precision,
accelerated up to {accelerated}.
Accuracy on the test set is the same for all, {accuracy}.
"""

SCALING = """## More workers

A perceptron of 159,010 parameters on MNIST (200 hidden units), batches of 16, steps of 0.05, epochs of 400 steps, until
P(x) is at most 1.2 at an epoch's end. Full precision, and asylpg with 8 bits. The gain is in speed over half as many
workers, by the medians. Of both cores' time the table has the part that was used, by whatever ran on the
machine, and of the busiest link's the part that it sent, or received, in; both from the end of the first full gradient
on.

With one server on a host of its own, all links of 100 Mbit/s, two seeds:

{one}

Two workers fill the server's link, and even one nearly does. It is the limit then, and more cannot help: they only
make answers later. So after the same number of steps the objective is worse, and full precision with eight workers
needs another epoch.

With as many servers as workers, one of each on every host, five seeds. Here links have 25 Mbit/s, which two cores
can keep busy for eight hosts:

{many}

![Seconds to the target](double-quantization-scaling.png)

With one worker nothing leaves the host. Then every host adds a link, and of a step's bits each of W links carries
(W - 1) / W² each way: from four to eight workers, 71 % more steps a second are what links allow. Both come near that.
With eight workers sixteen ranks keep the two cores busy as well, and the full gradient, which no more workers make
faster there, is a part of the time that does not shrink.
"""

NETWORK = """## A network

A perceptron of 79,510 parameters on MNIST (100 hidden units), four workers with batches of 64 and one server,
each on a host of its own behind a link of 100 Mbit/s each way.
Three epochs of 469 steps of 0.05, sparse with 5 % of the coordinates.

{table}

![Accuracy over bits and seconds](double-quantization-network.png)

asylpg with 3 bits is {loss} points behind full precision, with {fewer} times fewer bits and in a time that is
{faster} times shorter. To quantize the model alone, or the gradient alone, saves little of either: bits of the other
direction remain, and each direction of the server's link is a limit of its own.
"""


class Experiment(NamedTuple):
    """Jobs, and what shows their results."""

    jobs: Callable[[], list[Job]]
    show: Callable[[Results, Path], str]


EXPERIMENTS = {
    "target": Experiment(target_jobs, show_target),
    "scaling": Experiment(scaling_jobs, show_scaling),
    "network": Experiment(network_jobs, show_network),
    "softmax": Experiment(softmax_jobs, show_softmax),
}


def main() -> int:
    """Do the jobs that are missing and show what is there; 130 stands for Ctrl-C."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add_arguments(parser, "docs/results/runs-servers", "rt-polarity and mnist", parallel=False)
    parser.add_argument("--output", type=Path, default=Path("docs/results/double-quantization.md"), help="the document")
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS), help="the parts to run")
    args = parser.parse_args()
    try:
        if not args.draw:
            train_missing([job for name in args.only for job in EXPERIMENTS[name].jobs()], run, args)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    args.output.parent.mkdir(parents=True, exist_ok=True)
    parts = [HEAD]
    for name, experiment in EXPERIMENTS.items():
        jobs = experiment.jobs()
        found = results(jobs, args.results)
        if len(found) == len(jobs):
            parts.append(experiment.show(found, args.output.parent))
        else:
            print(f"{name}: {len(found)} of {len(jobs)} jobs are there; its section is left out", file=sys.stderr)
    args.output.write_text("\n".join(parts))
    print(f"written: {args.output}")
    return 0


HEAD = """# Double quantization

    python benchmarks/double_quantization.py --data DIR

runs what this shows, and writes it.
"""


if __name__ == "__main__":
    sys.exit(main())
