"""The trainings of each experiment."""

from __future__ import annotations

from typing import Any

from benchmarks.sketched_sgd.run import Run

COORDINATES = 268_800  # of the perceptron's three matrices
BUDGET = 1 / 40


def mnist(compression: str, seed: int = 0, **more: Any) -> Run:
    """Return a training of the perceptron on MNIST."""
    settings = {"workers": 4, "batch": 128, "epochs": 2, "lr": 0.05, "warmup": 0.1} | more
    return Run("mnist", "mlp", compression, seed=seed, **settings)


def divided(sums: float, rows: int, p1: float, p2: float) -> str:
    """Return the spec of a count sketch that fits the budget with `sums` sums for each of its k coordinates."""
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
    """Return trainings that show whether a division that is good for a perceptron is good for a ResNet."""
    splits = [(428, 3, 571, 1, 2), (514, 5, 411, 1, 1), (857, 3, 571, 1, 1), (857, 5, 342, 0.5, 1)]
    splits += [(857, 5, 342, 0.25, 1), (857, 5, 342, 0.06, 1), (1285, 1, 1285, 1, 1)]
    splits += [(1285, 5, 257, 0.5, 1), (1928, 3, 214, 0.5, 1)]
    specs = [f"sketched_sgd(k={k}, rows={r}, columns={c}, p1={p1:g}, p2={p2})" for k, r, c, p1, p2 in splits]
    specs += ["none", "topk(ratio=0.0125, scope=model)", "topk(ratio=0.005, scope=model)"]
    specs += ["sketched_sgd(k=857, rows=5, columns=342, p1=0.5, p2=1, momentum=0.9)", sketched(40)]
    return [cifar10(spec, epochs=8, lr=0.1, all_compressed=False) for spec in specs]


def sketched(factor: float) -> str:
    """Return the spec of the sketch that sends `factor` times fewer bytes."""
    return f"sketched_sgd(budget={1 / factor:g})"


def selected(factor: float) -> str:
    """Return the spec of the top-k that sends about `factor` times fewer bytes."""
    return f"topk(ratio={0.5 / factor:g}, scope=model)"


FORTY = "sketched_sgd(budget=0.0115)"  # 40 times fewer bytes, with small parameters uncompressed
PUBLISHED = "sketched_sgd(budget=0.0115, p1=2, p2=4, momentum=0.9)"


def cifar10_runs() -> list[Run]:
    """Return the trainings that show how far the sketch goes, and two that are twice as long."""
    small = [FORTY, sketched(10), PUBLISHED]
    specs = ["none", sketched(100), sketched(400), selected(40)]
    runs = [cifar10(spec, seed, all_compressed=spec in specs) for seed in range(3) for spec in (*small, *specs)]
    return [*runs, cifar10("none", epochs=24), cifar10(FORTY, epochs=24, all_compressed=False)]


def stability_runs() -> list[Run]:
    """Return trainings with divisions that diverge and others that do not, each with remedies and without."""
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
    """Return trainings in which the same batches are divided among 2 to 256 workers.

    Every simulated worker decodes every payload of a top-k; those of 256 would take hours.
    """
    settings = {"batch": 512, "epochs": 3, "lr": 0.1}
    of = {"none": WORKERS, sketched(40): WORKERS, selected(40): WORKERS[:-1]}
    return [mnist(spec, workers=w, **settings) for spec, numbers in of.items() for w in numbers]


RATIOS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
MASKED = {  # specs by what selects the coordinates
    "top-k": "topk(ratio={:g}, scope=model, feedback=momentum(masking={}))",
    "sketch": "sketched_sgd(ratio={:g}, momentum=0.9, masking={})",
}


def masking_runs() -> list[Run]:
    """Return trainings with and without masking, by top-k and by sketches, for each of `RATIOS`."""
    specs = [text.format(r, masking) for text in MASKED.values() for r in RATIOS for masking in (True, False)]
    return [mnist(spec, seed) for seed in range(2) for spec in ["none", *specs]]


def translation_runs() -> list[Run]:
    """Return trainings of the Transformer: Adam, Adam with sketches (in one phase and in two), and SGD."""

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
