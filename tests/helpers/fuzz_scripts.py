"""Random training scripts: what a user may do between two steps, in any order, on real ranks.

After each action the weights of all ranks are the same, bit for bit, or all of them have raised; then the script goes
on with a new model. Where an action is known to be legal, none may raise. All ranks draw the same actions.

This is what the scripts of all kinds share. `KINDS` names their modules, each with a class `Script`.
"""

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hvd_compress import methods, parse

KINDS = {
    "torch": "fuzz_optimizer",
    "groups": "fuzz_groups",
    "ddp": "fuzz_ddp",
    "bound": "fuzz_bound",
    "tape": "fuzz_tape",
    "keras": "fuzz_keras",
}
HEADS = 3
SETTINGS = {
    "topk": ("ratio=0.2", "ratio=linear(0.5, 0.1, steps=5)", "ratio=0.1, values=qsgd(bits=3)", "0.1, scope=model"),
    "threshold": ("threshold=0.01", "threshold=linear(0.001, 0.05, steps=6)"),
    "randomk": ("ratio=0.2", "ratio=0.2, scaled=True", "ratio=exponential(0.5, 0.05, steps=4)"),
    "dgc": ("ratio=0.1", "ratio=exponential(0.5, 0.05, steps=4)", "ratio=0.1, values=fp16"),
    "wangni": ("ratio=0.1", "ratio=0.3, values=fp16"),
    "qsgd": ("bits=2", "bits=8, block=64", "norm=l2"),
    "powersgd": ("rank=1", "rank=2, start=2", "warm_start=False"),
    "sketched_sgd": ("budget=0.3", "budget=0.3, heavymix=True", "budget=0.3, momentum=0.5"),
    "fetchsgd": ("budget=0.3", "budget=0.3, momentum=0.5"),
    "signum": ("momentum=0.5",),
    "terngrad": ("clip=1.0",),
    "low_precision": ("bits=4",),
    "int8": ("block=32",),
}
FEEDBACKS = ("none", "ef", "ef21", "momentum", "momentum(masking=False)", "momentum(nesterov=True, masking=False)")
KEEPS = "keeps the momentum"


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How a model is trained: the same on all ranks. Kinds of scripts add to it.

    Attributes:
        spec, rules: the compression.
        members: how many ranks train, the lowest ones.
        sparse: whether the embedding's gradients are.
    """

    spec: str = "none"
    rules: tuple[tuple[str, str], ...] = ()
    members: int
    sparse: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def keeps(self) -> bool:
        return any(parse(spec).has_momentum for spec in (self.spec, *(spec for _, spec in self.rules)))

    @property
    def meant(self) -> Any:
        """The compression, however it is written."""
        return parse(self.spec), [(pattern, parse(spec)) for pattern, spec in self.rules]


@dataclass(frozen=True, repr=False)
class Pass:
    """What each rank uses in one forward and backward pass."""

    number: int
    heads: tuple[tuple[int, ...], ...]
    embeds: tuple[bool, ...]

    def __repr__(self) -> str:
        used = ("".join(map(str, heads)) + "e" * own for heads, own in zip(self.heads, self.embeds, strict=True))
        return f"{self.number}:{'|'.join(used)}"


@dataclass
class Action:
    """What a script does next.

    Attributes:
        text: tells it.
        body: does it, on each member.
        raises: "never", "always" (on all members) or "maybe" (on all or none).
        goes_on: whether the script goes on with the same model after an error.
    """

    text: str
    body: Callable[[], None]
    raises: str = "never"
    goes_on: bool = False


@dataclass
class Outcome:
    """What a sequence came to: its actions, and how many of them raised on all ranks."""

    actions: list[str] = field(default_factory=list)
    raised: int = 0


class RandomScript:
    """One random script.

    Args:
        seed, number: of the sequence, the same on all ranks.
        process_sets: for each number of workers that it may train with, Horovod's process set of the lowest ranks.
        log: is told of each action before it begins.
    """

    hvd: Any  # Horovod for the framework
    PATTERNS: tuple[str, ...]  # of rules
    LENGTHS = (6, 14)  # the least and the most actions of a sequence

    def __init__(self, seed: int, number: int, process_sets: dict[int, Any], log: Callable[[str], None]) -> None:
        self.rng = random.Random(f"{seed} {number}")
        self.base = self.rng.randrange(1 << 30)
        self.process_sets, self.log = process_sets, log
        self.rank, self.ranks = self.hvd.rank(), self.hvd.size()
        self.passes_drawn = 0
        self.saved: Any = None  # the setup of the model that was saved
        self.outcome = Outcome()
        self.setup = self.draw_setup()

    # --- what a kind adds

    def draw_setup(self) -> Any:
        raise NotImplementedError

    def draw_training(self) -> Any:
        """Draw a step."""
        raise NotImplementedError

    @property
    def actions(self) -> dict[Callable[[], Action], int]:
        """What draws the next action, and how often."""
        raise NotImplementedError

    def begin(self, setup: Any) -> None:
        """Make a model and what trains it."""
        raise NotImplementedError

    def step(self, training: Any) -> None:
        raise NotImplementedError

    def weights(self) -> np.ndarray:
        """Return all weights as one vector; nothing if there is no model."""
        raise NotImplementedError

    def allowed(self, compressor: Any) -> bool:
        """Tell whether a kind takes a compressor."""
        return True

    # --- what is drawn

    def draw_spec(self, keeps: bool) -> str:
        """Draw a compression, of those that keep the momentum if it may."""
        while True:
            name = self.rng.choice(sorted(methods()))
            parts = [self.rng.choice(SETTINGS[name])] if name in SETTINGS and self.rng.random() < 0.9 else []
            if self.rng.random() < 0.4:
                parts.append(f"feedback={self.rng.choice(FEEDBACKS)}")
            spec = f"{name}({', '.join(parts)})" if parts else name
            try:
                compressor = parse(spec)
            except ValueError:  # a feedback that makes no sense
                continue
            if (keeps or not compressor.has_momentum) and self.allowed(compressor):
                return spec

    def draw_compression(self, setup: Any, keeps: bool) -> Any:
        spec, rules = self.draw_spec(keeps), ()
        if self.rng.random() < 0.25:
            rules = ((self.rng.choice(self.PATTERNS), self.draw_spec(keeps)),)
        return replace(setup, spec=spec, rules=rules)

    def draw_settings(self, bucket_bytes: list[int], summed: int) -> dict[str, Any]:
        """Draw arguments that optimizers and tapes share; `summed` is Horovod's Sum."""
        settings: dict[str, Any] = {
            "bucket_bytes": self.rng.choice(bucket_bytes),
            "dense_below": self.rng.choice([0, 0, 100]),
            "seed": self.rng.randrange(3),
        }
        if self.rng.random() < 0.2:
            settings["op"] = summed
        elif self.rng.random() < 0.2:
            settings["gradient_predivide_factor"] = 2.0
        return settings

    def draw_pass(self) -> Pass:
        mode = self.rng.choices(["all", "one", "some"], [5, 2, 3])[0]
        if mode == "some":
            heads = [tuple(self.rng.sample(range(HEADS), self.rng.randint(1, HEADS))) for _ in range(self.ranks)]
        else:
            heads = [tuple(range(HEADS)) if mode == "all" else (self.rng.randrange(HEADS),)] * self.ranks
        embeds = [True] * self.ranks
        if mode == "some" and self.rng.random() < 0.3:
            embeds = [self.rng.random() < 0.5 for _ in range(self.ranks)]
        if self.setup.sparse and "sparse_as_dense" not in self.setup.settings:
            embeds[0] = True  # else it would have to be said in the first step
        self.passes_drawn += 1
        return Pass(self.passes_drawn, tuple(heads), tuple(embeds))

    def draw_trainings(self, most: int = 2) -> list[Any]:
        return [self.draw_training() for _ in range(self.rng.randint(1, most))]

    @property
    def alone(self) -> bool:
        return self.setup.members == 1

    # --- what scripts are made of

    def train(self, trainings: list[Any]) -> None:
        for training in trainings:
            self.step(training)

    def do_train(self) -> Action:
        trainings = self.draw_trainings(3)
        return Action(f"train {trainings}", lambda: self.train(trainings))

    # --- the sequence

    def run(self, length: int) -> Outcome:
        """Do so many actions.

        Raises:
            AssertionError: on all ranks, if the ranks' weights differ, or some have raised and others not, or all of
                them though the action is legal.
        """
        self.do(self.start())
        for _ in range(length):
            actions = self.actions
            [draw] = self.rng.choices(list(actions), list(actions.values()))
            self.do(draw())
        return self.outcome

    def start(self) -> Action:
        setup = self.setup
        self.saved = None
        return Action(f"start {setup}", lambda: self.begin(setup))

    def do(self, action: Action) -> None:
        number = len(self.outcome.actions)
        self.outcome.actions.append(action.text)
        self.log(f"action {number} ({action.raises} raises): {action.text}")
        member, error = self.rank < max(self.setup.members, 1), None
        if member:
            try:
                action.body()
            except Exception as raised:
                error = raised
        digest, finite = self.digest() if member else (0, True)
        told = self.hvd.allgather_object((member, error is not None, digest, finite), name="fuzz")
        members = [each for each in told if each[0]]
        raised = [each[1] for each in members]
        where, said = f"rank {self.rank}, action {number}, {action.text}", f"{type(error).__name__}: {error}"
        if any(raised):
            assert all(raised), f"{where}: raised on {raised}: {said}"
            assert action.raises != "never", f"{where}: {said}"
            self.outcome.raised += 1
            self.log(f"all raised: {said}")
            if not action.goes_on:
                self.setup = self.draw_setup()
                self.do(self.start())
                return
        else:
            assert action.raises != "always", f"{where}: should have raised"
        assert len({each[2] for each in members}) == 1, f"{where}: the weights differ"
        if not all(each[3] for each in members):
            self.setup = self.draw_setup()
            self.do(self.start())

    def digest(self) -> tuple[int, bool]:
        """Return a checksum of the weights, in which each NaN is the same, and whether they are finite."""
        weights = self.weights()
        canonical = np.where(np.isnan(weights), np.float32("nan"), weights)
        return zlib.crc32(canonical.tobytes()), bool(np.isfinite(weights).all())


def run(kind: type[RandomScript], *args: Any) -> Outcome:
    """Run one sequence; the arguments are those of `RandomScript`."""
    script = kind(*args)
    return script.run(script.rng.randint(*script.LENGTHS))
