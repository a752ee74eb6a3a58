"""The settings of one simulated training."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.common.specs import spec_in_full
from hvd_compress import parse


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        task, model: as in examples/torch/train.py.
        compression: a compressor's spec.
        workers: their number.
        batch: examples a step, of all workers together.
        epochs: passes over the training data.
        lr: the largest learning rate; it rises from 0 for the first `warmup` of the steps and falls to 0 at the end.
        seed: of weights, data and compressor.
        width: channels of the first layer of resnet9, 64 in the published network; of a Transformer's vectors.
        limit: training examples, 0 for all.
        warmup: the share of the steps in which the learning rate rises.
        decay: weight decay.
        augment: whether images are flipped and shifted at random.
        optimizer: "sgd", with a momentum of 0.9 unless the compressor keeps it, or "adam".
        all_compressed: whether small parameters, and those of one axis, are compressed as well.
        clip_residual: largest norm of a worker's residual, in norms of its gradient; 0 for no limit.
        compressor: the spec with all settings: a result is of the defaults that a compressor had at the time.
    """

    task: str
    model: str
    compression: str
    workers: int
    batch: int
    epochs: int
    lr: float
    seed: int = 0
    width: int = 64
    limit: int = 0
    warmup: float = 0.0
    decay: float = 0.0
    augment: bool = False
    optimizer: str = "sgd"
    all_compressed: bool = False
    clip_residual: float = 0.0
    compressor: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "compressor", spec_in_full(parse(self.compression)))
