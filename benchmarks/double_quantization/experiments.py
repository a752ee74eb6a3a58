"""The jobs of each experiment."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from benchmarks.double_quantization.job import Job

BITS = (2, 3, 4, 8)
WORKERS = (1, 2, 4, 8)
SEEDS = 5
LARGER = 105.0  # a step of about 1 / L
QUANTIZED = ("asylpg", "accelerated", "model-only", "gradient-only")


def seeded(jobs: Iterable[Job], seeds: int) -> list[Job]:
    """Return the jobs with each of `seeds` seeds, all of one seed before the next."""
    jobs = list(jobs)
    return [replace(job, seed=seed) for seed in range(seeds) for job in jobs]


def rt_polarity(variant: str, bits: int = 8, **more: Any) -> Job:
    """Return a logistic regression on sentences."""
    return Job("rt-polarity", "logistic", variant, bits, 4, 100, l2=1e-5, target=1e-6, **more)


def mnist(task: str, variant: str, bits: int = 8, **more: Any) -> Job:
    """Return a job on MNIST."""
    settings = {"workers": 4} | more
    return Job("mnist", task, variant, bits, **settings)


def target_jobs() -> list[Job]:
    """Return the jobs to a target, each variant with its default step, then some with a larger one."""
    jobs = [rt_polarity("full-precision"), *(rt_polarity(name, bits) for name in QUANTIZED for bits in BITS)]
    jobs += [rt_polarity("sparse", bits, budget=0.02) for bits in BITS]
    jobs += [rt_polarity("asylpg", bits, model="grid") for bits in (4, 8)]
    jobs += [rt_polarity("asylpg", 4, model_bits=2), rt_polarity("accelerated", 3, model_bits=2)]
    jobs += [rt_polarity("full-precision", step=LARGER), rt_polarity("asylpg", 3, step=LARGER)]
    jobs.append(rt_polarity("accelerated", 3, model_bits=2, step=LARGER, epoch_steps=167))
    return several_seeds(jobs, {"gradient-only"})


def several_seeds(jobs: list[Job], slow: set[str]) -> list[Job]:
    """Return the jobs for all seeds; slow variants for one, except at 4 bits: more would tell little."""
    return list(dict.fromkeys([*jobs, *seeded((j for j in jobs if j.variant not in slow or j.bits == 4), SEEDS)]))


def softmax_jobs() -> list[Job]:
    """Return the jobs on MNIST to a target."""
    settings = {"l2": 1e-3, "batch": 256, "target": 1e-5, "epochs": 40}
    jobs = [mnist("softmax", "full-precision", **settings)]
    jobs += [mnist("softmax", name, bits, **settings) for name in (*QUANTIZED, "sparse") for bits in BITS]
    jobs.append(mnist("softmax", "asylpg", 4, model="grid", **settings))
    return several_seeds(jobs, {"gradient-only", "model-only"})


def scaling_jobs() -> list[Job]:
    """Return the jobs with 1 to 8 workers: first with one server, then with as many servers as workers."""
    settings = {"hidden": 200, "batch": 16, "step": 0.05, "epoch_steps": 400, "epochs": 3, "target": 1.2}
    one = [
        mnist("mlp", variant, workers=workers, **settings)
        for variant in ("full-precision", "asylpg")
        for workers in WORKERS
    ]
    many = [replace(job, servers=job.workers, together=True, mbits=25) for job in one]
    return [*seeded(one, 2), *seeded(many, SEEDS)]


def network_jobs() -> list[Job]:
    """Return the jobs that train a network for a few epochs."""
    settings = {"hidden": 100, "step": 0.05, "epoch_steps": 469, "epochs": 3}
    variants = [("full-precision", 8), ("asylpg", 8), ("asylpg", 4), ("asylpg", 3), ("sparse", 4)]
    variants += [("model-only", 8), ("gradient-only", 8)]
    return seeded((mnist("mlp", variant, bits, **settings) for variant, bits in variants), SEEDS)
