"""Which method makes a step shortest, and below which bandwidth it pays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hvd_compress.advice.costs import bucket_costs
from hvd_compress.advice.model import BucketCosts, Computing, Network, Predicted, Ring, predict
from hvd_compress.compressors import parse
from hvd_compress.ops import Ops
from hvd_compress.reduction.buckets import Gradient, make_plan
from hvd_compress.reduction.settings import BUCKET_BYTES, DENSE_BELOW

PLAIN = ("none", "fp16")  # what a method has to beat
CANDIDATES = (
    *PLAIN,
    *("int8", "qsgd(bits=4)", "qsgd(bits=2)", "terngrad", "ef_signsgd"),
    *("topk(ratio=0.01)", "topk(ratio=0.001)", "topk(ratio=0.01, values=qsgd(bits=4))", "dgc(ratio=0.001)"),
    *("randomk(ratio=0.01)", "powersgd(rank=2)", "sketched_sgd"),
)
SLOWEST, FASTEST = 1e4, 1e12  # bytes a second, between which bandwidths are compared


@dataclass(frozen=True)
class Advice:
    """A method's step.

    Attributes:
        spec: of the method.
        costs: of its buckets on one worker.
        predicted: its step over the given network.
        pays_below: bytes a second of each host's link below which its step is shorter than that of the best of
            `PLAIN`, with the ring algorithms; 0 if nowhere, infinity if everywhere.
    """

    spec: str
    costs: Sequence[BucketCosts]
    predicted: Predicted
    pays_below: float

    @property
    def bytes(self) -> int:
        """Bytes that a worker hands over in a step."""
        return sum(each.bytes for bucket in self.costs for each in bucket.rounds)


def advise(
    gradients: Sequence[Gradient],
    computing: Computing,
    network: Network,
    ring: Ring,
    ops: Ops,
    *,
    workers: int,
    specs: Sequence[str] = CANDIDATES,
    sharing: float = 1.0,
) -> list[Advice]:
    """Measure what methods cost here, and predict their steps; the shortest step comes first.

    Args:
        gradients: of all parameters, in the order of the model.
        computing: a step without communication.
        network: carries the collectives.
        ring: the hosts' links, for the bandwidth below which a method pays.
        ops: the array operations of the framework that trains.
        workers: their number.
        specs: the methods; `PLAIN` are always compared.
        sharing: workers that share a core: encoding and decoding take so many times as long.

    Raises:
        ValueError: if a spec is wrong, or there are no gradients.
    """
    if not gradients:
        raise ValueError("there are no parameters to advise on")
    costs = {}
    for spec in dict.fromkeys((*PLAIN, *specs)):
        plan = make_plan(gradients, parse(spec), bucket_bytes=BUCKET_BYTES, dense_below=DENSE_BELOW)
        costs[spec] = [slower(each, sharing) for each in bucket_costs(plan, ops, workers)]
    plain = [costs[spec] for spec in PLAIN]
    found = [
        Advice(spec, own, predict(computing, own, network), pays_below(own, plain, computing, ring))
        for spec, own in costs.items()
    ]
    return sorted(found, key=lambda advice: advice.predicted.seconds)


def slower(costs: BucketCosts, factor: float) -> BucketCosts:
    """Return costs of which encoding and decoding take so many times as long."""
    rounds = tuple(replace(each, after=factor * each.after) for each in costs.rounds)
    return replace(costs, encode=factor * costs.encode, rounds=rounds)


def pays_below(
    own: Sequence[BucketCosts], plain: Sequence[Sequence[BucketCosts]], computing: Computing, ring: Ring
) -> float:
    """Return the rate, in bytes a second, below which a step is shorter than the shortest plain one."""

    def pays(rate: float) -> bool:
        link = replace(ring, rate=rate)
        best = min(predict(computing, each, link).seconds for each in plain)
        return predict(computing, own, link).seconds < best

    low, high = SLOWEST, FASTEST
    if not pays(low):
        return 0.0
    if pays(high):
        return float("inf")
    while high / low > 1.01:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if pays(middle) else (low, middle)
    return low
