"""The document: what the results come to. Each section is written from what is there, and left out where nothing is."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from benchmarks.common.markdown import paragraph, table
from benchmarks.common.pictures import picture
from benchmarks.common.results import Results
from benchmarks.lab import text
from benchmarks.lab.accuracy import OTHER_WORKERS, WORKERS, Training
from benchmarks.lab.methods import COMPARED, LONGER, PLAIN, SCALED, WITHOUT_MOMENTUM
from benchmarks.lab.steps import ALONE, BASELINES, HOSTS, LINKS, STACKS, Cell
from benchmarks.lab.tasks import TASKS, TIMED
from benchmarks.lab.time import Mean, Timed, Times, curve_of
from benchmarks.lab.virtual import MANY_HOSTS, VIRTUAL_LINKS, Cost, many_hosts, predictions
from benchmarks.lab.whole import Whole

PLAIN_SCHEMES = [scheme for stack in STACKS for scheme in BASELINES[stack]]
PHASES_OF = ("large-mlp", "computing", "gpt")  # the models whose phases are shown
SCHEMES = [*PLAIN_SCHEMES, *COMPARED]


def write(
    output: Path,
    trainings: Results[Training],
    cells: Results[Cell],
    wholes: Results[Whole],
    costs: Results[Cost],
) -> None:
    """Write the document and its pictures, which lie beside it."""
    times = Times(trainings, cells)
    sections: list[Callable[[], str]] = [
        lambda: show_time_to_accuracy(times, output.parent),
        lambda: show_winners(times),
        lambda: show_steps(times),
        lambda: show_phases(cells),
        lambda: show_accuracy(times),
        lambda: show_workers(times),
        lambda: show_momentum(times),
        lambda: show_longer(times),
        lambda: show_many_hosts(costs, output.parent),
        lambda: show_whole(times, wholes),
        lambda: show_predictions(times, costs, cells),
    ]
    parts = [text.HEAD, *(section() for section in sections)]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("\n".join(part for part in parts if part))


def link(mbits: int) -> str:
    """Return what a link is called."""
    return f"{mbits:,} Mbit/s" if mbits else "no limit"


def score_text(task: str, mean: Mean) -> str:
    """Return a score for a table: accuracy in percent, or perplexity."""
    return mean.text(1, 100.0) + " %" if TASKS[task].larger_is_better else mean.text(2)


def section(title: str, *parts: str) -> str:
    """Return a section."""
    return "\n\n".join([f"## {title}", *parts]) + "\n"


def show_time_to_accuracy(times: Times, folder: Path) -> str:
    """Return the section on time to accuracy behind each link, and draw the curves."""
    parts = []
    for mbits in LINKS:
        rows = []
        found = {task: {s: t for s in SCHEMES if (t := times.to_target(mbits, task, s))} for task in TASKS}
        best = {task: _shortest([t for s, t in of.items() if s in PLAIN_SCHEMES]) for task, of in found.items()}
        for scheme in SCHEMES:
            cells = [_time_cell(found[task].get(scheme), best[task]) for task in TASKS]
            if any(cells):
                rows.append([_name(scheme), *cells])
        if rows:
            head = " | ".join(["scheme", *(TASKS[task].title for task in TASKS)])
            parts += [f"### {WORKERS} hosts, {link(mbits)}", table(head, rows)]
    if not parts:
        return ""
    drawn = _draw_curves(times, folder)
    return section("Total training time", paragraph(text.TIME), *parts, *drawn)


def _shortest(timed: Sequence[Timed]) -> Timed | None:
    reached = [each for each in timed if each.seconds is not None]
    return min(reached, key=lambda each: each.seconds.value if each.seconds else 0.0) if reached else None


def _time_cell(timed: Timed | None, best: Timed | None) -> str:
    if timed is None:
        return ""
    if timed.seconds is None:
        return "not reached"
    shorter = ""
    if best is not None and best.seconds is not None:
        shorter = ", the baseline" if timed == best else f", {best.seconds.value / timed.seconds.value:.2f}"
    return f"{timed.seconds.text(1)} s{shorter}"


def _name(scheme: str) -> str:
    return scheme if scheme in PLAIN_SCHEMES else f"`{scheme}`"


def _draw_curves(times: Times, folder: Path) -> list[str]:
    """Draw the score over seconds at 100 Mbit/s, of the best baseline and of the methods that are the quickest."""
    mbits, drawn = 100, []
    for task, recipe in TASKS.items():
        timed = [t for scheme in SCHEMES if (t := times.to_target(mbits, task, scheme))]
        best = _shortest([t for t in timed if t.scheme in PLAIN_SCHEMES])
        reached = [t for t in timed if t.scheme not in PLAIN_SCHEMES and t.seconds is not None]
        ours = sorted(reached, key=lambda each: each.seconds.value if each.seconds else 0.0)[:4]
        if best is None or not ours:
            continue
        path = folder / f"training-time-{task}.png"
        with picture(path, 1) as (axes,):
            for each in (best, *ours):
                _draw_curve(axes, times, task, each)
            measure = "accuracy, %" if recipe.larger_is_better else "perplexity"
            axes.set(xlabel="seconds", ylabel=measure, xscale="log")
            if not recipe.larger_is_better:
                axes.set(yscale="log")
            axes.set_title(f"{recipe.title}, {WORKERS} hosts, {link(mbits)}", fontsize=10)
        drawn.append(f"![{recipe.title}: score over seconds]({path.name})")
    return drawn


def _draw_curve(axes: Axes, times: Times, task: str, timed: Timed) -> None:
    factor = 100 if TASKS[task].larger_is_better else 1
    curves = [result["curve"] for result in times.reported(task, curve_of(timed.scheme))]
    seconds = [timed.step * done for done, _ in curves[0]]
    scores = [[factor * curve[at][1] for curve in curves] for at in range(len(seconds))]
    axes.plot(seconds, [statistics.mean(each) for each in scores], label=timed.scheme)
    axes.fill_between(seconds, [min(each) for each in scores], [max(each) for each in scores], alpha=0.2)


def show_winners(times: Times) -> str:
    """Return the map of the methods whose steps are the shortest, by link and model."""
    parts = []
    for hosts in HOSTS:
        rows = []
        for mbits in LINKS:
            cells = []
            for model in TIMED:
                plain = times.fastest(hosts, mbits, model, PLAIN_SCHEMES)
                ours = times.fastest(hosts, mbits, model, COMPARED)
                cells.append("" if not plain or not ours else f"{_name(ours[0])}, {plain[1] / ours[1]:.2f}")
            if any(cells):
                rows.append([link(mbits), *cells])
        if rows:
            head = " | ".join([f"{hosts} hosts", *(TIMED[model].title for model in TIMED)])
            parts.append(table(head, rows))
    return section("Which method wins where", paragraph(text.WINNERS), *parts) if parts else ""


def show_steps(times: Times) -> str:
    """Return the section on the milliseconds of a step."""
    parts = []
    for hosts in HOSTS:
        for mbits in LINKS:
            rows = []
            for stack in STACKS:
                for scheme in (ALONE, *BASELINES[stack], *COMPARED):
                    found = [times.seconds.get((hosts, mbits, stack, model, scheme)) for model in TIMED]
                    if any(found):
                        cells = ["" if each is None else f"{1000 * each:,.0f}" for each in found]
                        rows.append(["DDP" if stack == "ddp" else "Horovod", _name(scheme), *cells])
            if rows:
                head = " | ".join(["over", "scheme", *(TIMED[model].title for model in TIMED)])
                parts += [f"### A step, {hosts} hosts, {link(mbits)}, ms", table(head, rows)]
    return section("Milliseconds a step", paragraph(text.STEPS), *parts) if parts else ""


PHASES = (
    "computing",
    "copy exposed",
    "encode exposed",
    "start exposed",
    "wire exposed",
    "decode exposed",
    "other exposed",
    "optimizer",
)


def show_phases(cells: Results[Cell]) -> str:
    """Return the section on where a step's time goes, and what it takes of the processor."""
    parts = []
    for stack in STACKS:
        rows = []
        for model in PHASES_OF:
            for scheme in (ALONE, *BASELINES[stack], *COMPARED):
                found = [
                    result
                    for cell, result in cells.items()
                    if (cell.hosts, cell.mbits) == (WORKERS, 1000)
                    and (cell.stack, cell.model, cell.scheme) == (stack, model, scheme)
                ]
                if found:
                    rows.append([TIMED[model].title, _name(scheme), *_phases(found)])
        if rows:
            titles = [*(name.removesuffix(" exposed") for name in PHASES), "wire, hidden"]
            head = " | ".join(["model", "scheme", "step", "processor", *titles])
            parts += [f"### Over {'DDP' if stack == 'ddp' else 'Horovod'}, ms", table(head, rows)]
    return section("Where a step's time goes", paragraph(text.PHASES), *parts) if parts else ""


def _phases(found: Sequence[dict[str, Any]]) -> list[str]:
    """Return a scheme's milliseconds a step, medians over the rounds."""
    told = [result["phases"] for result in found if "phases" in result]
    numbers = [[1000 * result[name] for result in found] for name in ("seconds", "cpu")]
    numbers += [[phases[name] for phases in told] for name in (*PHASES, "wire hidden")]
    return [f"{statistics.median(each):.1f}" if each else "" for each in numbers]


def show_accuracy(times: Times) -> str:
    """Return the section on what the trainings end with, with error bars."""
    rows = _finals(times, [((f"`{method}`",), {"method": method}) for method in COMPARED])
    targets = [times.target(task) for task in TASKS]
    goals = ["" if t is None else score_text(task, Mean(t, 0, 1)) for task, t in zip(TASKS, targets, strict=True)]
    return _finals_section(
        "Accuracy after the same number of steps", text.ACCURACY, "method", rows and [*rows, ["the target", *goals]]
    )


def _finals(
    times: Times, settings: Iterable[tuple[Sequence[str], dict[str, Any]]], tasks: Iterable[str] = TASKS
) -> list[list[str]]:
    """Return rows of what trainings end with, by task.

    Args:
        times: the results.
        settings: of each row its first cells, and arguments of `_final`; rows without any result are left out.
        tasks: the columns.
    """
    found = [(first, [_final(times, task, **given) for task in tasks]) for first, given in settings]
    return [[*first, *cells] for first, cells in found if any(cells)]


def _finals_section(
    title: str, words: str, first: str, rows: Sequence[Sequence[str]], tasks: Iterable[str] = TASKS
) -> str:
    """Return a section with a table of `_finals`, or nothing if it has no rows."""
    head = " | ".join([first, *(TASKS[task].title for task in tasks)])
    return section(title, paragraph(words), table(head, rows)) if rows else ""


def _final(times: Times, task: str, method: str, workers: int = WORKERS, longer: int = 1) -> str:
    results = times.reported(task, method, workers, longer)
    if not results:
        return ""
    diverged = sum(result["diverged"] for result in results)
    if diverged:
        return f"{diverged} of {len(results)} diverged"
    cell = score_text(task, Mean.of(result["curve"][-1][1] for result in results))
    if all("bleu" in result for result in results):
        cell += f"; BLEU {Mean.of(result['bleu'] for result in results).text(1)}"
    factor = times.factors[task, method]
    return f"{cell} ({factor:g})"


def show_workers(times: Times) -> str:
    """Return the section on other numbers of workers."""
    numbers = sorted((*OTHER_WORKERS, WORKERS))
    settings = [((f"`{m}`", str(w)), {"method": m, "workers": w}) for m in SCALED for w in numbers]
    rows = _finals(times, settings)
    return _finals_section("Scaling with the number of workers", text.WORKERS, "method | workers", rows)


def show_momentum(times: Times) -> str:
    """Return the section on the baseline's momentum."""
    tasks = [task for task, recipe in TASKS.items() if recipe.optimizer == "sgd"]
    settings = [(("momentum 0.9",), {"method": PLAIN}), (("none",), {"method": WITHOUT_MOMENTUM})]
    rows = _finals(times, settings, tasks)
    return _finals_section("Does the baseline have momentum", text.MOMENTUM, "momentum of the baseline", rows, tasks)


def show_longer(times: Times) -> str:
    """Return the section on trainings that are twice as long."""
    settings = [((f"`{m}`", str(n)), {"method": m, "longer": n}) for m in LONGER for n in (1, 2)]
    rows = _finals(times, settings)
    return _finals_section("Does longer training make up for it", text.LONGER, "method | times as long", rows)


def show_whole(times: Times, wholes: Results[Whole]) -> str:
    """Return the section on the whole trainings."""
    rows = []
    for whole, result in wholes.items():
        step = times.seconds.get((WORKERS, whole.mbits, whole.stack, whole.task, whole.scheme))
        if step is None:
            continue
        took = result["curve"][-1][1]
        product = step * result["steps"]
        names = [TASKS[whole.task].title, whole.stack, _name(whole.scheme), link(whole.mbits)]
        rows.append([*names, f"{product:.1f}", f"{took:.1f}", f"{100 * (took / product - 1):+.0f} %"])
    if not rows:
        return ""
    head = "task | over | scheme | link | steps times seconds a step | measured, s | difference"
    return section("Whole trainings", paragraph(text.WHOLE), table(head, rows))


def show_many_hosts(costs: Results[Cost], folder: Path) -> str:
    """Return the section on more hosts than there are, on the virtual clock, and draw it."""
    parts = []
    for mbits in VIRTUAL_LINKS:
        rows = []
        for model in TASKS:
            times = many_hosts(costs, model, mbits, [PLAIN, "fp16", *SCALED[1:]])
            for method in dict.fromkeys(method for method, _ in times):
                cells = [f"{1000 * times[method, n]:,.1f}" if (method, n) in times else "" for n in MANY_HOSTS]
                rows.append([TASKS[model].title, f"`{method}`", *cells])
        if rows:
            head = " | ".join(["model", "method", *(f"{hosts} hosts" for hosts in MANY_HOSTS)])
            parts += [f"### On the virtual clock, {link(mbits)}, ms a step", table(head, rows)]
    return section("More hosts, on a virtual clock", paragraph(text.MANY_HOSTS), *parts) if parts else ""


def show_predictions(times: Times, costs: Results[Cost], cells: Results[Cell]) -> str:
    """Return the section on how good predictions of a step are."""
    pairs = predictions(costs, cells)
    if not pairs:
        return ""
    rows = []
    for stack in STACKS:
        for mbits in LINKS:
            ratios = [p / m for cell, (p, m) in pairs.items() if (cell.stack, cell.mbits) == (stack, mbits)]
            if ratios:
                near = sum(1 / 1.15 <= ratio <= 1.15 for ratio in ratios) / len(ratios)
                rows.append(
                    [stack, link(mbits), str(len(ratios)), f"{statistics.median(ratios):.2f}", f"{100 * near:.0f} %"]
                )
    head = "over | link | cells | predicted / measured, median | within 15 %"
    return section("How good predictions are", paragraph(text.PREDICTIONS), table(head, rows), _recommended(pairs))


def _recommended(pairs: dict[Cell, tuple[float, float]]) -> str:
    """Say how often the method with the shortest predicted step is near the one with the shortest measured step."""
    groups: dict[Cell, list[tuple[float, float]]] = {}
    for cell, pair in pairs.items():
        groups.setdefault(replace(cell, scheme=""), []).append(pair)
    good = sum(min(group)[1] <= 1.1 * min(measured for _, measured in group) for group in groups.values())
    return paragraph(text.RECOMMENDED.format(good=good, groups=len(groups), share=f"{100 * good / len(groups):.0f} %"))
