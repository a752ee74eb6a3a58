"""What the tests of PyTorch on real ranks share, whoever has started them: models, data, training."""

import os

import torch
from specs import FEW
from torch import nn

from hvd_compress import methods, parse


def told_by_launcher(*names, default):
    return int(next((os.environ[name] for name in names if os.environ.get(name)), default))


RANKS = told_by_launcher("OMPI_COMM_WORLD_SIZE", "HOROVOD_SIZE", "WORLD_SIZE", default=2)
RANK = told_by_launcher("OMPI_COMM_WORLD_RANK", "HOROVOD_RANK", "RANK", default=0)
SPECS = list(FEW)
if RANKS == 2:  # a few represent the families on more
    SPECS += [*methods(), "topk(ratio=0.05, values=qsgd(bits=3))"]
    SPECS += ["ef_signsgd(feedback=momentum(masking=False, clip=1.0))"]
    SPECS = list(dict.fromkeys(SPECS))


def small_cnn(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 36, 40),
        nn.ReLU(),
        nn.Linear(40, 10),
    )


def batch(step, size=16):
    """A batch of this rank's own."""
    generator = torch.Generator().manual_seed(1000 * step + RANK)
    images = torch.randn(size, 1, 8, 8, generator=generator)
    return images, images.sum(dim=(1, 2, 3)).abs().long() % 10


def sgd(model, spec="none", **settings):
    """SGD with momentum, unless the compressor keeps it."""
    momentum = 0.0 if parse(spec).has_momentum else 0.9
    return torch.optim.SGD(model.parameters(), **{"lr": 0.05, "momentum": momentum, **settings})


def train(model, optimizer, steps, passes=1, start=0):
    for step in range(start, start + steps):
        optimizer.zero_grad()
        for part in range(passes):
            images, labels = batch(step * passes + part)
            nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return flat(model)


def flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])
