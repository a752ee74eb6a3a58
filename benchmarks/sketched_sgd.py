"""Sketched-SGD on simulated workers: how to divide its bytes, how far it goes, with how many workers, masking or not.

Every training leaves a file; what has one is not repeated. So the command can be stopped with Ctrl-C and started again.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from report import Results, error_bars, logarithmic, mean_of, means_of, picture, seeds_of, table
from runs import Run, add_arguments, results, train_missing
from simulated import train

COORDINATES = 268_800  # of the perceptron's three matrices
BUDGET = 1 / 40


def mnist(compression: str, seed: int = 0, **more: Any) -> Run:
    """Return a training of the perceptron on MNIST."""
    settings = {"workers": 4, "batch": 128, "epochs": 2, "lr": 0.05, "warmup": 0.1} | more
    return Run("mnist", "mlp", compression, seed=seed, **settings)


def divided(sums: float, rows: int, p1: float, p2: float) -> str:
    """Return the spec of a count sketch with so many sums for each of k coordinates, all within the budget."""
    numbers = BUDGET * COORDINATES
    k = int(numbers / (sums + p2))
    columns = int((numbers - p2 * k) / rows)
    return f"sketched_sgd(k={k}, rows={rows}, columns={columns}, p1={p1:g}, p2={p2:g})"


def split_runs() -> list[Run]:
    """Return the trainings that the rule for the budget comes from."""
    splits = [(sums, rows, 2, 4) for sums in (4, 8, 16, 32, 64) for rows in (1, 3, 5)]
    splits += [(16, rows, p1, 4) for p1 in (0, 1, 4, 8) for rows in (1, 3)]
    splits += [(16, rows, 2, p2) for p2 in (0, 1, 2, 8) for rows in (1, 3)]
    splits += [(sums, 5, 0.5, 1) for sums in (1, 2, 4)] + [(2, rows, 0.5, 1) for rows in (1, 3)]
    splits += [(2, 5, p1, 1) for p1 in (0, 0.25, 1)] + [(4, 5, 1, p2) for p2 in (1, 2)]
    splits += [(2, 5, p1, 1) for p1 in (0.03125, 0.0625, 0.125)] + [(sums, 5, 0.0625, 1) for sums in (1, 4)]
    splits += [(2, 3, 0.0625, 1), (2, 5, 0.0625, 2)]
    named = [f"sketched_sgd(budget={BUDGET:g}{more})" for more in ("", ", rows=5", ", p2=2")]
    sketches = [*(divided(*split) for split in splits), *named]
    specs = ["none", f"topk(ratio={BUDGET / 2:g}, scope=model, feedback=momentum)"]
    specs += [spec[:-1] + more for more in (", momentum=0.9)", ")") for spec in sketches]
    return [mnist(spec, seed) for seed in range(2) for spec in specs]


def cifar10(compression: str, seed: int = 0, **more: Any) -> Run:
    """Return a training of the narrowed ResNet-9 on CIFAR-10."""
    settings = {"workers": 4, "batch": 128, "epochs": 12, "lr": 0.2, "all_compressed": True} | more
    fixed = {"augment": True, "width": 8, "warmup": 0.2, "decay": 5e-4}
    return Run("cifar10", "resnet9", compression, seed=seed, **settings, **fixed)


def cifar10_split_runs() -> list[Run]:
    """Return the trainings that tell a division of the bytes that is good for a perceptron from one that always is."""
    splits = [(428, 3, 571, 1, 2), (514, 5, 411, 1, 1), (857, 3, 571, 1, 1), (857, 5, 342, 0.5, 1)]
    splits += [(857, 5, 342, 0.25, 1), (857, 5, 342, 0.06, 1), (1285, 1, 1285, 1, 1)]
    splits += [(1285, 5, 257, 0.5, 1), (1928, 3, 214, 0.5, 1)]
    specs = [f"sketched_sgd(k={k}, rows={r}, columns={c}, p1={p1:g}, p2={p2})" for k, r, c, p1, p2 in splits]
    specs += ["none", "topk(ratio=0.0125, scope=model)", "topk(ratio=0.005, scope=model)"]
    specs += ["sketched_sgd(k=857, rows=5, columns=342, p1=0.5, p2=1, momentum=0.9)", sketched(40)]
    return [cifar10(spec, epochs=8, lr=0.1, all_compressed=False) for spec in specs]


def sketched(factor: float) -> str:
    """Return the spec of the sketch that sends so many times fewer bytes."""
    return f"sketched_sgd(budget={1 / factor:g})"


def selected(factor: float) -> str:
    """Return the spec of the top-k that sends about so many times fewer bytes."""
    return f"topk(ratio={0.5 / factor:g}, scope=model)"


FORTY = "sketched_sgd(budget=0.0115)"  # and small parameters as they are
PUBLISHED = "sketched_sgd(budget=0.0115, p1=2, p2=4, momentum=0.9)"


def cifar10_runs() -> list[Run]:
    """Return the trainings that show how far the sketch goes, and two that are twice as long."""
    small = [FORTY, sketched(10), PUBLISHED]
    specs = ["none", sketched(100), sketched(400), selected(40)]
    runs = [cifar10(spec, seed, all_compressed=spec in specs) for seed in range(3) for spec in (*small, *specs)]
    return [*runs, cifar10("none", epochs=24), cifar10(FORTY, epochs=24, all_compressed=False)]


def stability_runs() -> list[Run]:
    """Return trainings with splits that are not stable, with what may help them, and the same with those that are."""
    warmed = "exponential(0.25, 0.01, steps=234)"
    found: list[tuple[str, float]] = []
    for p1 in (", p1=0", ", p1=0.5", ", p1=0.0625", ""):
        for momentum in (", momentum=0.9", ", momentum=0.9, masking=False", ""):
            spec = f"sketched_sgd(budget=0.01{p1}{momentum})"
            found += [(spec, 0.0), (spec.replace("0.01", warmed), 0.0), (spec, 10.0)]
        found.append((f"sketched_sgd(budget=0.01{p1}, feedback=momentum(clip=1.0))", 0.0))
    return [mnist(spec, seed, clip_residual=clip) for seed in range(2) for spec, clip in found]


WORKERS = (2, 4, 16, 64, 256)


def workers_runs() -> list[Run]:
    """Return trainings in which the same batches are divided among more and more workers.

    Every simulated worker decodes every payload of a top-k; those of 256 would take hours.
    """
    settings = {"batch": 512, "epochs": 3, "lr": 0.1}
    of = {"none": WORKERS, sketched(40): WORKERS, selected(40): WORKERS[:-1]}
    return [mnist(spec, workers=w, **settings) for spec, numbers in of.items() for w in numbers]


RATIOS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
MASKED = {  # what selects
    "top-k": "topk(ratio={:g}, scope=model, feedback=momentum(masking={}))",
    "sketch": "sketched_sgd(ratio={:g}, momentum=0.9, masking={})",
}


def masking_runs() -> list[Run]:
    """Return trainings with exact selections of more and more coordinates, and with sketches that find them."""
    specs = [text.format(r, masking) for text in MASKED.values() for r in RATIOS for masking in (True, False)]
    return [mnist(spec, seed) for seed in range(2) for spec in ["none", *specs]]


def translation_runs() -> list[Run]:
    """Return trainings of the Transformer: by Adam, by sketched Adam in both ways, and by SGD."""

    def multi30k(compression: str, optimizer: str, lr: float) -> Run:
        settings = {"workers": 4, "batch": 128, "epochs": 6, "lr": lr, "warmup": 0.1, "width": 128}
        return Run("multi30k", "transformer", compression, optimizer=optimizer, all_compressed=True, **settings)

    return [
        multi30k("none", "adam", 2e-3),
        multi30k("sketched_sgd", "adam", 2e-3),
        multi30k("sketched_sgd", "adam", 6e-3),
        multi30k("sketched_sgd(feedback=adam(start=203))", "adam", 2e-3),
        multi30k("none", "sgd", 0.3),
    ]


def show_split(found: Results, folder: Path) -> str:
    """Return the section about the division of the bytes."""
    means = means_of(found, lambda run: run.compression)
    rows = []
    for spec, mean in means.items():
        if not spec.endswith("momentum=0.9)"):
            other = means.get(f"{spec[:-1]}, momentum=0.9)")
            rows.append([f"`{spec}`", f"{mean.fewer_sent:.1f}", mean.text, other.text if other else ""])
    return SPLIT.format(table=table("compression | times fewer | error feedback | momentum correction", rows))


def show_cifar10_split(found: Results, folder: Path) -> str:
    """Return the section about the division of the bytes for another network."""
    means = means_of(found, lambda run: run.compression)
    rows = [[f"`{spec}`", f"{mean.fewer_sent:.1f}", mean.text] for spec, mean in means.items()]
    return CIFAR10_SPLIT.format(table=table("compression | times fewer | accuracy", rows))


def show_cifar10(found: Results, folder: Path) -> str:
    """Return the section about how far the sketch goes, and draw it."""
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
    return CIFAR10.format(
        table=table("compression | epochs | times fewer sent | times fewer in all | accuracy | against none", rows)
    )


def show_stability(found: Results, folder: Path) -> str:
    """Return the section about what keeps training stable."""
    rows = []
    for run, own in seeds_of(found).items():
        mean, residual = mean_of(own), statistics.mean(result["norms"][-1]["residual"] for result in own)
        clipped = f"to {run.clip_residual:g} norms of the gradient" if run.clip_residual else ""
        rows.append([f"`{run.compression}`", clipped, f"{mean.fewer_sent:.0f}", mean.text, f"{residual:.3g}"])
    head = "compression | residual clipped | times fewer | accuracy | norm of a worker's residual at the end"
    return STABILITY.format(table=table(head, rows))


def show_workers(found: Results, folder: Path) -> str:
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
    return WORKERS_TEXT.format(table=table(f"workers | {names} | {kilobytes}", rows))


def show_masking(found: Results, folder: Path) -> str:
    """Return the section about masking, and draw it."""
    means = means_of(found, lambda run: run.compression)
    kept = {
        run.compression: statistics.mean(result["norms"][-1].get("masked", 1.0) for result in own)
        for run, own in seeds_of(found).items()
    }
    rows = []
    for kind, text in MASKED.items():
        for ratio in RATIOS:
            on, off = (text.format(ratio, masking) for masking in (True, False))
            left_over = f"{kept[on]:.2f}" if math.isfinite(kept[on]) else ""
            rows.append([kind, f"{100 * ratio:g} %", means[on].text, means[off].text, left_over])
    with picture(folder / "sketched-sgd-masking.png", 2) as (left, right):
        percent = [100 * ratio for ratio in RATIOS]
        for kind, text in MASKED.items():
            for masking in (True, False):
                points = [means[text.format(ratio, masking)] for ratio in RATIOS]
                error_bars(left, zip(percent, points, strict=True), f"{kind}, {'masked' if masking else 'not masked'}")
            right.plot(percent, [kept[text.format(ratio, True)] for ratio in RATIOS], marker="o", label=kind)
        right.set(ylim=(0, 1), ylabel="norm of the momentum after masking / before")
        left.set_ylim(92, 98.5)
        for axes in (left, right):
            logarithmic(axes, "coordinates sent (k), % of all", percent)
    return MASKING.format(
        none=means["none"].text, table=table("selection | k | masked | not masked | momentum left by masking", rows)
    )


def show_translation(found: Results, folder: Path) -> str:
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
    return TRANSLATION.format(table=table(head, rows))


SPLIT = """## How to divide the bytes

MNIST, a perceptron of 269,322 parameters, four workers of 32 examples each, two epochs, learning rate 0.05, two
seeds: mean ± standard deviation of the accuracy. All sketches send a fortieth of the dense bytes of the three
matrices; biases travel dense. Error feedback leaves the momentum, 0.9, to the optimizer. Trainings that diverge end
at 9.8 %. Those with p1 have a count sketch, the last three an invertible one.

{table}

With a count sketch, the truncation p1 decides. If every worker sketches all of its vector (p1 = 0), the noise of the
many small coordinates hides the large ones; what is chosen is not what has gathered, the residual grows, and with
momentum training diverges. The fewer coordinates the workers sketch, the fewer share a column, until all that are
sketched are found: at p1 = 1/16 four workers sketch at most k / 4 coordinates together, in 2 k sums. The other
candidates are then those that happen to share columns with large ones, not the next largest. To ask for more
candidates than are applied (p2 = 2, 4 or 8) is of use where the selection is poor. Without a second round (p2 = 0) the
estimates are too noisy to apply. A single row is the worst use of the bytes, five rows are the best or near it.

So what a count sketch does well at these sizes is to tell a few coordinates of many workers, and it takes eight sums
for each. An invertible sketch does that with 1.3, and nothing else: it is ahead of all divisions of a count sketch,
with error feedback and with momentum correction. Three rows are what the theory asks for; five rows, or twice the
candidates (p2 = 2), are no better. The rule for `budget` is: 1.3 sums in three rows, and one exact value, for each of k
coordinates, all of which are applied.

Momentum correction is nowhere better than error feedback by more than noise, and it is what diverges where the
selection is poor: a coordinate that waits gathers momentum meanwhile.
"""

CIFAR10_SPLIT = """## The same for a convolutional network

CIFAR-10 (its first 20,000 training images), ResNet-9 with 8 channels in its first layer instead of 64, 103,944
parameters, four workers of 32 images each, eight epochs, learning rate 0.1, one seed. All sketches send a fortieth
of the bytes of the matrices; batch norm, the first and the last layer travel dense, which in this small network
makes 26 times fewer bytes of 40.

{table}

With a count sketch it matters how many coordinates are applied: with one in 240 of them (k = 428), of which twice as
many are asked for, training is slower than with one in 120 or 80, whose selection is poorer. The invertible sketch
(the last row) applies one in ninety, all of them large for some worker.
"""

CIFAR10 = """## How far it goes

CIFAR-10 (its first 20,000 training images), ResNet-9 with 8 channels in its first layer instead of 64, 103,944
parameters, four workers of 32 images each, learning rate 0.2, flips and shifts, three seeds (one of the longer
trainings). Bytes are of all that a worker sends, and of all that it sends and receives. Where the budget is 0.1 and
0.0115, small parameters and those of one axis travel dense, as they do unless told otherwise, and are counted;
elsewhere all parameters are compressed.

{table}

![Accuracy against bytes](sketched-sgd-cifar10.png)

At forty times fewer bytes the published division of them (a count sketch, momentum correction) is seven points
behind; names that are read exactly are less than three, and at a hundred times fewer are still ahead of it. Forty
times without a loss, as the paper has it for a network of 6.6 million parameters in 24 epochs, we do not reach with
this narrow one in twelve, whose two thousand steps apply one coordinate in ninety at a time; in 24 epochs half of the
loss is left. top-k is as good with 64 times fewer bytes sent, or 25 times fewer sent and received: to name the
coordinates costs it a few bits each, while the sketch spends 1.3 numbers on each. The sketch's bytes do not grow with
the workers (below), and top-k's do. The width that two cores can train leaves open what the published width would
show.
"""

STABILITY = """## What keeps it stable

As in the first table, at a hundredth of the bytes. The warm-up of the budget is exponential, from a quarter in the
first of the two epochs. A clipped residual is scaled to at most ten times the norm of the worker's gradient, by the
benchmark itself: it is not part of the method.

{table}

What is selected does most. With names that are read exactly, the last ten rows, nothing diverges, masked or not, and
the residual stays small. With a count sketch of all coordinates (p1 = 0), error feedback needs a warm-up of the budget
or a clipped residual, and momentum correction a clipped residual, or DGC's clipping of the gradient; masking does not
help. With p1 = 1/16 error feedback is stable by itself, and momentum correction if the momentum is masked. Clipping,
of either kind, saves what would diverge and costs accuracy where nothing would: so there is no setting for the
residual's. The warm-up helps wherever training does not diverge, for the bytes that it costs: most of what so short a
training sends.
"""

WORKERS_TEXT = """## From 2 to 256 workers

MNIST, the perceptron of the first table, three epochs, learning rate 0.1, one seed. A step has 512 examples,
divided among the workers, so that uncompressed the trainings are the same but for rounding. top-k is not there with
256 workers: each of the simulated ones decodes what all of them send.

{table}

![Accuracy and bytes against workers](sketched-sgd-workers.png)

What a worker sends and receives of sketches does not change with their number; of top-k it receives as much as of
the uncompressed gradient when there are 64. The sketch's accuracy falls a little: the more workers there are, the
fewer coordinates each may name, and the fewer examples it has to know which. From 2 to 256 it loses less than a
point. top-k loses nothing, for it sends what each worker chooses; that is what its bytes grow by.
"""

MASKING = """## Masking of the momentum

As in the first table; the momentum, 0.9, is the momentum correction's. "Left by masking" is the norm of a worker's
momentum after masking as a part of that before, in the mean of the last epoch's steps. Uncompressed it is {none}.

{table}

![Accuracy and momentum against k](sketched-sgd-masking.png)

With masking, more k hurts, and the momentum says why: masking zeroes it wherever something is sent. At a k of 0.1 %
it leaves almost all of the momentum, at 30 % a third (of the sketch, which sends less of a worker's own, a half);
with every coordinate sent there would be none, and a momentum of 0.9 less is a learning rate ten times smaller.
Without masking, more k is better, up to the uncompressed accuracy. So masking is for small k, where a coordinate has
waited for long, and what has been sent would be pushed again by an old momentum.
"""

TRANSLATION = """## Translation, with Adam

Multi30k, English to German, 29,000 pairs of sentences, a Transformer of 1,175,040 parameters with two layers on either
side, four workers of 32 pairs each, six epochs, one seed; perplexity of a piece on the validation set, BLEU (SacreBLEU)
of greedy translations of the test set of 2016.

{table}

![Perplexity against epochs](sketched-sgd-translation.png)

Of a mean that is sparse, Adam sees each coordinate seldom and then all that has gathered; its step is as long as if
that were one gradient, and training is slow. Three times the learning rate makes up for most of it. In two phases,
with the variance frozen after 203 of 1,356 steps, the loss is about the same, but these first steps are sent whole,
and are most of what is sent. Either is where SGD with momentum is uncompressed, and behind Adam.
"""


class Experiment(NamedTuple):
    """Trainings, and what shows their results."""

    runs: Callable[[], list[Run]]
    show: Callable[[Results, Path], str]


EXPERIMENTS = {
    "split": Experiment(split_runs, show_split),
    "cifar10-split": Experiment(cifar10_split_runs, show_cifar10_split),
    "cifar10": Experiment(cifar10_runs, show_cifar10),
    "stability": Experiment(stability_runs, show_stability),
    "workers": Experiment(workers_runs, show_workers),
    "masking": Experiment(masking_runs, show_masking),
    "translation": Experiment(translation_runs, show_translation),
}


def main() -> int:
    """Train what is missing and show what is there; 130 stands for Ctrl-C."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add_arguments(parser, "docs/results/runs")
    parser.add_argument("--output", type=Path, default=Path("docs/results/sketched-sgd.md"), help="the document")
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS), help="the parts to train")
    args = parser.parse_args()
    try:
        if not args.draw:
            train_missing([run for name in args.only for run in EXPERIMENTS[name].runs()], train, args)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    args.output.parent.mkdir(parents=True, exist_ok=True)
    parts = [HEAD]
    for name, experiment in EXPERIMENTS.items():
        runs = experiment.runs()
        found = results(runs, args.results)
        if len(found) == len(runs):
            parts.append(experiment.show(found, args.output.parent))
        else:
            print(f"{name}: {len(found)} of {len(runs)} trainings are there; its section is left out", file=sys.stderr)
    args.output.write_text("\n".join(parts))
    print(f"written: {args.output}")
    return 0


HEAD = """# Sketched-SGD

    python benchmarks/sketched_sgd.py --data DIR

trains what this shows, and writes it.
"""


if __name__ == "__main__":
    sys.exit(main())
