"""The document's sections: each shows the results of one experiment."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

from benchmarks.common.markdown import table
from benchmarks.common.pictures import logarithmic, picture
from benchmarks.common.results import Results, over_seeds
from benchmarks.sketched_sgd import text
from benchmarks.sketched_sgd.experiments import MASKED, PUBLISHED, RATIOS, WORKERS, selected
from benchmarks.sketched_sgd.means import error_bars, mean_of, means_of
from benchmarks.sketched_sgd.run import Run


def show_split(found: Results[Run], folder: Path) -> str:
    """Return the section about the division of the bytes."""
    means = means_of(found, lambda run: run.compression)
    rows = []
    for spec, mean in means.items():
        if not spec.endswith("momentum=0.9)"):
            other = means.get(f"{spec[:-1]}, momentum=0.9)")
            rows.append([f"`{spec}`", f"{mean.fewer_sent:.1f}", mean.text, other.text if other else ""])
    return text.SPLIT.format(table=table("compression | times fewer | error feedback | momentum correction", rows))


def show_cifar10_split(found: Results[Run], folder: Path) -> str:
    """Return the section about the division of the bytes for another network."""
    means = means_of(found, lambda run: run.compression)
    rows = [[f"`{spec}`", f"{mean.fewer_sent:.1f}", mean.text] for spec, mean in means.items()]
    return text.CIFAR10_SPLIT.format(table=table("compression | times fewer | accuracy", rows))


def show_cifar10(found: Results[Run], folder: Path) -> str:
    """Return the section about how few bytes the sketch needs, and draw it."""
    by_epochs = means_of(found, lambda run: (run.epochs, run.compression))
    rows = []
    for (epochs, spec), mean in by_epochs.items():
        none = by_epochs[epochs, "none"]
        behind = f"{mean.accuracy - none.accuracy:+.1f}" if spec != "none" else ""
        rows.append([f"`{spec}`", str(epochs), f"{mean.fewer_sent:.1f}", f"{mean.fewer:.1f}", mean.text, behind])
    means = {spec: mean for (epochs, spec), mean in by_epochs.items() if epochs == 12}
    with picture(folder / "sketched-sgd-cifar10.png", 1) as (axes,):
        named = [mean for spec, mean in means.items() if spec.startswith("sketched") and spec != PUBLISHED]
        error_bars(axes, [(mean.fewer, mean) for mean in named], "sketched_sgd")
        for spec in (PUBLISHED, selected(40)):
            error_bars(axes, [(means[spec].fewer, means[spec])], spec)
        none = means["none"]
        axes.axhspan(none.accuracy - none.deviation, none.accuracy + none.deviation, alpha=0.2, color="gray")
        axes.axhline(none.accuracy, color="gray", label="uncompressed")
        logarithmic(axes, "times fewer bytes sent and received than uncompressed")
        axes.set_title("CIFAR-10, ResNet-9 of 103,944 parameters, 4 workers, 12 epochs", fontsize=10)
    return text.CIFAR10.format(
        table=table("compression | epochs | times fewer sent | times fewer in all | accuracy | against none", rows)
    )


def show_stability(found: Results[Run], folder: Path) -> str:
    """Return the section about what keeps training stable."""
    rows = []
    for run, own in over_seeds(found).items():
        mean, residual = mean_of(own), statistics.mean(result["norms"][-1]["residual"] for result in own)
        clipped = f"to {run.clip_residual:g} norms of the gradient" if run.clip_residual else ""
        rows.append([f"`{run.compression}`", clipped, f"{mean.fewer_sent:.0f}", mean.text, f"{residual:.3g}"])
    head = "compression | residual clipped | times fewer | accuracy | norm of a worker's residual at the end"
    return text.STABILITY.format(table=table(head, rows))


def show_workers(found: Results[Run], folder: Path) -> str:
    """Return the section about the number of workers, and draw it."""
    specs = list(dict.fromkeys(run.compression for run in found))
    means = means_of(found, lambda run: (run.compression, run.workers))
    amount = {
        (run.compression, run.workers): [
            result[f"bytes_{way}"] / result["steps"] / 1000 for way in ("sent", "received")
        ]
        for run, result in found.items()
    }
    rows = []
    for w in WORKERS:
        cells = [means[spec, w].text if (spec, w) in means else "" for spec in specs]
        cells += ["{:.1f} / {:.1f}".format(*amount[spec, w]) if (spec, w) in amount else "" for spec in specs]
        rows.append([str(w), *cells])
    with picture(folder / "sketched-sgd-workers.png", 2) as (left, right):
        for spec in specs:
            there = [w for w in WORKERS if (spec, w) in means]
            error_bars(left, [(w, means[spec, w]) for w in there], spec)
            right.plot(there, [sum(amount[spec, w]) for w in there], marker="o", label=spec)
        right.set(yscale="log", ylabel="kB that a worker sends and receives in a step")
        for axes in (left, right):
            logarithmic(axes, "workers, 512 examples a step together", WORKERS)
    names = " | ".join(f"`{spec}`" for spec in specs)
    kilobytes = " | ".join(f"`{spec}`, kB sent / received a step" for spec in specs)
    return text.WORKERS.format(table=table(f"workers | {names} | {kilobytes}", rows))


def show_masking(found: Results[Run], folder: Path) -> str:
    """Return the section about masking, and draw it."""
    means = means_of(found, lambda run: run.compression)
    kept = {
        run.compression: statistics.mean(result["norms"][-1].get("masked", 1.0) for result in own)
        for run, own in over_seeds(found).items()
    }
    rows = []
    for kind, spec in MASKED.items():
        for ratio in RATIOS:
            on, off = (spec.format(ratio, masking) for masking in (True, False))
            left_over = f"{kept[on]:.2f}" if math.isfinite(kept[on]) else ""
            rows.append([kind, f"{100 * ratio:g} %", means[on].text, means[off].text, left_over])
    with picture(folder / "sketched-sgd-masking.png", 2) as (left, right):
        percent = [100 * ratio for ratio in RATIOS]
        for kind, spec in MASKED.items():
            for masking in (True, False):
                points = [means[spec.format(ratio, masking)] for ratio in RATIOS]
                error_bars(left, zip(percent, points, strict=True), f"{kind}, {'masked' if masking else 'not masked'}")
            right.plot(percent, [kept[spec.format(ratio, True)] for ratio in RATIOS], marker="o", label=kind)
        right.set(ylim=(0, 1), ylabel="norm of the momentum after masking / before")
        left.set_ylim(92, 98.5)
        for axes in (left, right):
            logarithmic(axes, "coordinates sent (k), % of all", percent)
    return text.MASKING.format(
        none=means["none"].text, table=table("selection | k | masked | not masked | momentum left by masking", rows)
    )


def show_translation(found: Results[Run], folder: Path) -> str:
    """Return the section about translation, and draw it."""
    names = {"adam": "Adam", "sgd": "SGD, momentum 0.9"}
    rows = []
    with picture(folder / "sketched-sgd-translation.png", 1) as (axes,):
        for run, result in found.items():
            two_phases = "feedback=adam" in run.compression
            optimizer = "Adam in two phases" if two_phases else names[run.optimizer]
            fewer = 2 * result["dense_bytes"] / (result["bytes_sent"] + result["bytes_received"])
            scores = [f"{result['perplexity']:.2f}", f"{result['bleu']:.1f}"]
            rows.append([optimizer, f"`{run.compression}`", f"{run.lr:g}", f"{fewer:.1f}", *scores])
            epochs = range(1, len(result["curve"]) + 1)
            axes.plot(epochs, result["curve"], marker="o", label=f"{optimizer} ({run.lr:g}): {run.compression}")
        axes.set(yscale="log", xlabel="epoch", ylabel="perplexity of a piece of the validation set")
        axes.set_title("Multi30k, English to German, Transformer, 4 workers", fontsize=10)
    head = "optimizer | compression | learning rate | times fewer in all | perplexity | BLEU"
    return text.TRANSLATION.format(table=table(head, rows))
