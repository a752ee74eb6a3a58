"""What the benchmark trains."""

from __future__ import annotations

import shlex
from typing import NamedTuple

from hvd_compress import methods

# A method is trained with its defaults and the example's own optimizer (SGD, momentum 0.9, learning rate 0.05), unless
# it has an entry here: its spec, and further arguments of the example.
SETTINGS = {
    "randomk": ("randomk(ratio=0.25)", ""),
    "dgc": ("dgc(ratio=0.01)", "--lr 0.1"),
    "signsgd": ("signsgd", "--optimizer sgd --lr 0.003"),
    "signum": ("signum", "--lr 0.001"),
    "fetchsgd": ("fetchsgd(budget=0.25)", "--lr 0.2"),
}
# With TensorFlow, whose initial weights differ:
WITH_TENSORFLOW = {"fetchsgd": ("fetchsgd(budget=0.25)", "--lr 0.4")}
# Methods combined with others, and settings that send less than a method's defaults.
COMPOSITIONS = [
    ("topk(ratio=0.01, values=qsgd(bits=4))", ""),
    ("topk(ratio=0.01, feedback=ef21)", ""),
    ("topk(ratio=0.05, feedback=ef21)", ""),
    ("topk(ratio=0.01, feedback=momentum)", "--lr 0.1"),
    ("topk(ratio=0.01, scope=model)", ""),
    ("dgc(ratio=exponential(0.25, 0.01, steps=88, every=22))", "--lr 0.1"),
    ("dgc(ratio=0.001)", "--epochs 20"),
    ("randomk(ratio=0.1, scaled=True)", "--optimizer sgd --lr 0.3"),
    ("randomk(ratio=0.1)", "--optimizer sgd --epochs 40"),
    ("threshold(threshold=0.01)", ""),
    ("wangni(ratio=0.003)", "--lr 0.01"),
    ("qsgd(bits=2)", ""),
    ("qsgd(bits=4, feedback=ef)", ""),
    ("qsgd(bits=4, feedback=ef21)", ""),
    ("low_precision(bits=4, feedback=ef)", ""),
    ("int8(feedback=ef)", ""),
    ("natural(feedback=ef)", ""),
    ("ef_signsgd(feedback=momentum(masking=False))", ""),
    ("powersgd(rank=2, feedback=ef21)", ""),
    ("sketched_sgd(p1=0.0625)", ""),
    ("sketched_sgd(p1=2, p2=4, momentum=0.9)", "--lr 0.1"),
    ("sketched_sgd(budget=0.005)", ""),
]
UNCOMPRESSED = [("none", more) for more in ("--lr 0.1", "--epochs 20", "--optimizer sgd --epochs 40")]


class Setting(NamedTuple):
    """What is trained.

    Attributes:
        kind: the table that shows it: "method", "composition" or "comparison".
        compression: a compressor's spec.
        more: further arguments of examples/FRAMEWORK/train.py.
    """

    kind: str
    compression: str
    more: str

    def line(self, seed: int) -> str:
        """Return the command line of one training of examples/FRAMEWORK/train.py."""
        return shlex.join(["--compression", self.compression, *shlex.split(self.more), "--seed", str(seed)])


def settings_of(framework: str) -> dict[str, tuple[str, str]]:
    """Return spec and further arguments of the methods that are not trained with their defaults."""
    return SETTINGS | (WITH_TENSORFLOW if framework == "tensorflow" else {})


def one_each(framework: str) -> list[Setting]:
    """Return one setting for every registered method, `none` first."""
    own = settings_of(framework)
    return [Setting("method", *own.get(name, (name, ""))) for name in methods()]


def all_settings(framework: str) -> list[Setting]:
    """Return `one_each`, the compositions, and for comparison the methods of `settings_of` with their defaults."""
    plain = [(name, "") for name in settings_of(framework)]
    return [
        *one_each(framework),
        *(Setting("composition", *item) for item in COMPOSITIONS),
        *(Setting("comparison", *item) for item in [*plain, *UNCOMPRESSED]),
    ]
