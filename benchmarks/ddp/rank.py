"""One rank of the benchmark, as mpirun starts it: `rank.py SETTINGS`. Rank 0 prints a JSON object a measurement."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from benchmarks.common.networks import LARGE_MLP, dense
from examples.torch.models import GPT
from hvd_compress.torch import ddp

WARM_UP = 5  # steps: buckets are rebuilt, and PyTorch's PowerSGD begins after two
CONTEXT, CHARACTERS = 64, 100
ONE_BUCKET = 1 << 20  # MB: over gloo PyTorch's PowerSGD mixes up the rounds of several
BATCH = 8


def mlp() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Return a perceptron of 8.4 million parameters, with a batch."""
    return dense(*LARGE_MLP), torch.randn(BATCH, LARGE_MLP[0]), torch.randint(10, (BATCH,))


def gpt() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Return a GPT of 4.8 million parameters, with a batch."""
    text = torch.randint(CHARACTERS, (BATCH, CONTEXT + 1))
    return GPT(CHARACTERS, CONTEXT, width=256, layers=6, heads=8), text[:, :-1], text[:, 1:].flatten()


MODELS = {"MLP": mlp, "GPT": gpt}


def hook(chosen: Any, state: Any = None) -> Callable[[DistributedDataParallel], Callable[[], float]]:
    """Return what gives a model one of PyTorch's hooks; what it sends is not known."""

    def give(model: DistributedDataParallel) -> Callable[[], float]:
        if chosen is not None:
            model.register_comm_hook(state, chosen)
        return lambda: float("nan")

    return give


def ours(spec: str) -> Callable[[DistributedDataParallel], Callable[[], float]]:
    """Return what gives a model our hook, and returns what tells the bytes that were sent."""

    def give(model: DistributedDataParallel) -> Callable[[], float]:
        compression = ddp.register(model, spec)
        return lambda: float(compression.compression_stats()["bytes_sent"])

    return give


def schemes() -> dict[str, tuple[dict[str, Any], Callable[[DistributedDataParallel], Callable[[], float]]]]:
    """Return what is compared: DDP's arguments, and what gives it a hook."""
    powersgd = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=2, start_powerSGD_iter=2)
    return {
        "DDP": ({}, hook(None)),
        "DDP, fp16 hook": ({}, hook(default_hooks.fp16_compress_hook)),
        "DDP, PowerSGD hook, rank 2": ({"bucket_cap_mb": ONE_BUCKET}, hook(powerSGD_hook.powerSGD_hook, powersgd)),
        **{spec: ({}, ours(spec)) for spec in ("none", "fp16", "topk(ratio=0.01)", "powersgd(rank=2)", "qsgd")},
    }


def measure(model_name: str, scheme: str, steps: int) -> dict[str, Any]:
    """Return the median seconds of a step, and the bytes that a step hands over."""
    torch.manual_seed(0)
    module, inputs, labels = MODELS[model_name]()
    arguments, give = schemes()[scheme]
    model = DistributedDataParallel(module, **arguments)
    sent = give(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    seconds, before = [], 0.0
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            before = sent()
        dist.barrier()
        began = time.perf_counter()
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs).flatten(0, -2), labels).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - began)
    return {
        "model": model_name,
        "scheme": scheme,
        "seconds": statistics.median(seconds[WARM_UP:]),
        "bytes": (sent() - before) / steps,
        "parameters": sum(p.numel() for p in module.parameters()),
    }


def main() -> None:
    """Measure every scheme with every model, round after round."""
    settings = json.loads(sys.argv[1])
    os.environ |= {
        "RANK": os.environ["OMPI_COMM_WORLD_RANK"],
        "WORLD_SIZE": os.environ["OMPI_COMM_WORLD_SIZE"],
        "MASTER_ADDR": settings["address"],
        "MASTER_PORT": "29400",
    }
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for number in range(settings["rounds"]):
        for model in settings["models"]:
            for scheme in schemes():
                result = measure(model, scheme, settings["steps"])
                if dist.get_rank() == 0:
                    print(json.dumps({"round": number, **result}), flush=True)
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # process groups that are not used any more need not be taken down


if __name__ == "__main__":
    main()
