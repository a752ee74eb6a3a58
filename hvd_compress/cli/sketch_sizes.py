"""How large a sketch must be, and what it sends compared with other methods."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hvd_compress.compressors.lowrank import PowerSGD
from hvd_compress.compressors.sketching import SketchedSGD
from hvd_compress.compressors.sparsify import TopK
from hvd_compress.ops.layout import Layout

RANK = 4  # of the PowerSGD that is shown beside the sketches


@dataclass(frozen=True)
class Size:
    """What a worker sends and receives in a step.

    Attributes:
        name: of the method.
        rows, columns: of its sketch; 0 if it has none.
        sent, received: bytes of all rounds together.
        second: bytes sent in the second round; 0 if there is none.
    """

    name: str
    rows: int
    columns: int
    sent: int
    received: int
    second: int = 0


def theory(parameters: int, k: int, steps: int, delta: float) -> tuple[int, int]:
    """Return the rows and columns that find all k heavy coordinates in every step, with probability 1 - delta.

    The number of sums is k ln(dT/delta) (Ivkin et al. 2019, theorem 1, with a constant of 1): k columns, and an odd
    number of rows, large enough for the median to be right for each of d coordinates in each of T steps. That may be
    more rows than `CountSketch` allows.
    """
    rows = math.ceil(math.log(parameters * steps / delta))
    return rows + 1 - rows % 2, k


def sizes(parameters: int, k: int, steps: int, delta: float, workers: int) -> list[Size]:
    """Return what each method sends: theory's sketch, the measured rule's, top-k, PowerSGD, and no compression last.

    PowerSGD's bytes are those of a single square matrix; many smaller matrices take more.

    Raises:
        ValueError: if an argument is outside its allowed range.
    """
    for name, value, most in (("parameters", parameters, 2**40), ("k", k, parameters)):
        if not 1 <= value <= most:
            raise ValueError(f"--{name} must be in 1 to {most}; got {value}")
    for name, value in (("steps", steps), ("workers", workers)):
        if value < 1:
            raise ValueError(f"--{name} must be at least 1; got {value}")
    if not 0 < delta < 1:
        raise ValueError(f"--delta must be above 0 and below 1; got {delta}")
    rows, columns = theory(parameters, k, steps, delta)
    exact = 4 * (rows * columns + k)
    split = SketchedSGD(k=k).split(parameters)
    rule = 4 * split.numbers
    topk = TopK(ratio=k / parameters).payload_bits(Layout.flat(parameters)) // 8
    side = math.isqrt(parameters)
    low_rank = PowerSGD(rank=RANK).payload_bits(Layout.of([("matrix", (side, side))])) // 8
    return [
        Size("sketch, by the theory", rows, columns, exact, exact, 4 * k),
        Size(f"sketched_sgd(k={k}), by the measured rule", split.rows, split.columns, rule, rule, 4 * split.candidates),
        Size(f"topk(ratio={k / parameters:.3g})", 0, 0, topk, workers * topk),
        Size(f"powersgd(rank={RANK}), of a square matrix", 0, 0, low_rank, low_rank),
        Size("none", 0, 0, 4 * parameters, 4 * parameters),
    ]


def verdicts(found: list[Size]) -> list[str]:
    """Return for each of the two sketches in what `sizes` returned a sentence that says whether it pays."""
    dense, topk = found[-1], found[2]
    lines = []
    for size in found[:2]:
        if size.sent >= dense.sent:
            times = size.sent / dense.sent
            lines.append(f"{size.name}: sends {times:.1f} times the bytes of the dense gradient, and buys nothing.")
        elif size.sent + size.received >= topk.sent + topk.received:
            times = (size.sent + size.received) / (topk.sent + topk.received)
            lines.append(f"{size.name}: moves {times:.1f} times the bytes of topk; it pays with more workers.")
        else:
            lines.append(f"{size.name}: {dense.sent / size.sent:.1f} times fewer bytes than dense.")
    return lines
