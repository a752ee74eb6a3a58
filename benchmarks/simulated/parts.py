"""What a model is trained with, and what it is scored with."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Part = Literal["test", "valid"]
"""What a model is scored with: the test set, or a tenth of the training set, with which it is then not trained."""


def divided(examples: int, part: Part) -> tuple[Tensor, Tensor]:
    """Return the numbers of the training examples to train with, and of those to score with; always the same."""
    order = torch.randperm(examples, generator=torch.Generator().manual_seed(20190612))
    held_out = examples // 10 if part == "valid" else 0
    return order[held_out:].sort().values, order[:held_out].sort().values
