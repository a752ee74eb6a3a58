"""A model and an optimizer of PyTorch that take a known time at least, for tests of where the time goes."""

import time

import torch
from torch import nn
from torch_training import RANK

NAP = 0.02


class Slow(nn.Module):
    """Takes its time in the forward pass, and in the backward pass once the layers after it have their gradients."""

    def forward(self, x):
        time.sleep(NAP)
        if x.requires_grad:
            x.register_hook(lambda gradient: time.sleep(NAP))
        return x


class SlowSGD(torch.optim.SGD):
    def step(self, closure=None):
        time.sleep(NAP)
        return super().step(closure)


def slow_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), Slow(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))


def step(model, optimizer, number):
    optimizer.zero_grad()
    images = torch.randn(8, 64, generator=torch.Generator().manual_seed(number + 100 * RANK))
    model(images).square().mean().backward()
    optimizer.step()
