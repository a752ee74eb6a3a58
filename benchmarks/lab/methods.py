"""The methods that are compared, each at the settings that its documentation gives."""

from __future__ import annotations

from dataclasses import dataclass

PLAIN = "none"
MOMENTUM = 0.9
WITHOUT_MOMENTUM = "none, without momentum"  # for the question what the baseline's momentum is worth


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes:
        sgd: its spec where the optimizer is SGD; if it keeps the momentum itself, the optimizer has none.
        adam: its spec where the optimizer is Adam, which has momentum of its own; empty if it is the same.
        momentum: of SGD.
        rate: factor of SGD's learning rate: to begin with, a method whose steps are of another size has another one.
    """

    sgd: str
    adam: str = ""
    momentum: float = MOMENTUM
    rate: float = 1.0

    def spec(self, optimizer: str) -> str:
        """Return the spec for an optimizer, "sgd" or "adam"."""
        return (self.adam if optimizer == "adam" else "") or self.sgd


def _same(*specs: str) -> dict[str, Method]:
    return {spec: Method(spec) for spec in specs}


METHODS: dict[str, Method] = {
    **_same(PLAIN, "fp16", "int8", "qsgd(bits=4)", "qsgd(bits=2)", "terngrad"),
    "signsgd": Method("signsgd", rate=0.002),
    **_same("ef_signsgd", "topk(ratio=0.01)", "topk(ratio=0.001)", "topk(ratio=0.01, values=qsgd(bits=4))"),
    "dgc(ratio=0.001)": Method("dgc(ratio=0.001)", adam="dgc(ratio=0.001, feedback=ef)"),
    **_same("randomk(ratio=0.01)", "powersgd(rank=2)", "sketched_sgd"),
    "fetchsgd": Method("fetchsgd", adam="fetchsgd(momentum=0.0)"),
    WITHOUT_MOMENTUM: Method("none", momentum=0.0, rate=1 / (1 - MOMENTUM)),
}
COMPARED = [name for name in METHODS if name != WITHOUT_MOMENTUM]
SCALED = [
    PLAIN,
    "topk(ratio=0.01)",
    "qsgd(bits=4)",
    "powersgd(rank=2)",
    "sketched_sgd",
]  # with 2 and 8 workers, too
LONGER = [PLAIN, "qsgd(bits=2)", "topk(ratio=0.001)", "randomk(ratio=0.01)", "sketched_sgd"]  # twice as long, too
