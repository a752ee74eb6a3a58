"""Random training scripts under Horovod's own optimizer for PyTorch, with a compressor that is bound."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any

import horovod.torch as hvd
import torch
from fuzz_scripts import HEADS, Action, Pass
from fuzz_torch import Model, TorchScript, TorchSetup

from hvd_compress import parse
from hvd_compress.torch.compression import TorchCompression


@dataclass(frozen=True, kw_only=True)
class BoundSetup(TorchSetup):
    """Of Horovod's optimizer: `settings` are those of `bind`, `groups` and `predivide` its own."""

    groups: int | None
    predivide: float


class Script(TorchScript):
    """A script with Horovod's optimizer.

    Horovod gives its collectives the parameters' names. After an error some may be pending, so that the next model's
    begin with another number: a script of a user would have ended.
    """

    starts = count()  # of this process
    bound: Any

    @property
    def parts(self) -> dict[str, Any]:
        return {**super().parts, "compression": self.bound}

    def allowed(self, compressor: Any) -> bool:
        return not compressor.whole_gradient

    # --- what is drawn

    def draw_setup(self) -> BoundSetup:
        rng = self.rng
        kind = rng.choice(["sgd", "sgd", "adam"])
        sparse = kind == "sgd" and rng.random() < 0.1
        settings: dict[str, Any] = {"dense_below": rng.choice([0, 0, 100]), "seed": rng.randrange(3)}
        if rng.random() < 0.2:
            settings["op"] = hvd.Sum
        setup = BoundSetup(
            kind=kind,
            momentum=rng.choice([0.0, 0.9]) if kind == "sgd" and not sparse else 0.0,
            lr=rng.choice([0.01, 0.001]),
            passes=rng.choice([1, 1, 2]),
            frozen=frozenset(["middle"] if rng.random() < 0.1 else []),
            sparse=sparse,
            groups=2 if not sparse and rng.random() < 0.15 else None,
            predivide=2.0 if "op" not in settings and rng.random() < 0.1 else 1.0,
            settings=settings,
            members=self.ranks,
        )
        return self.draw_compression(setup, keeps=True)

    def draw_pass(self) -> Pass:
        one = super().draw_pass()
        if self.setup.groups:  # of which Horovod misses none
            one = replace(one, heads=(tuple(range(HEADS)),) * self.ranks)
        if self.setup.groups or self.setup.sparse:  # nor does it know of a sparse gradient that is missing
            one = replace(one, embeds=(True,) * self.ranks)
        return one

    # --- what scripts are made of

    def start(self) -> Action:
        self.prefix = next(self.starts)
        return super().start()

    def begin(self, setup: BoundSetup) -> None:
        self.model = Model(self.base, setup.sparse)
        self.freeze(setup.frozen)
        named = [(f"{self.prefix}.{name}", p) for name, p in self.model.named_parameters()]
        self.bound = TorchCompression(parse(setup.spec)).bind(named, rules=setup.rules, **setup.settings)
        self.optimizer = hvd.DistributedOptimizer(
            self.inner(setup),
            named,
            compression=self.bound,
            backward_passes_per_step=setup.passes,
            op=setup.settings.get("op", hvd.Average),
            gradient_predivide_factor=setup.predivide,
            groups=setup.groups,
        )

    def zero_grad(self, to_none: bool) -> None:
        self.optimizer.zero_grad()
        if not to_none:  # Horovod's takes no such argument
            for layer in self.model.children():
                for p in () if self.setup.sparse and layer is self.model.embedding else layer.parameters():
                    p.grad = torch.zeros_like(p)

    def refused(self) -> None:
        """Try what may not be done between backward() and step()."""
        super().refused()
        try:
            self.bound.set_compression("none")
        except RuntimeError:
            return
        raise ValueError("set_compression() after backward() was not refused")

    # --- actions

    @property
    def actions(self) -> dict[Callable[[], Action], int]:
        return {
            self.do_train: 5,
            partial(self.do_way, "clip", "refused", "partial"): 4,
            self.do_passes: 1,
            self.do_skip: 1,
            self.do_freeze: 1,
            self.do_save: 4,
            self.do_resume: 5 if self.saved else 0,
            self.do_set_compression: 3,
            self.do_rate: 1,
            self.do_momentum: 1,
            self.do_nan: 2,
            partial(self.do_change_gradient, "scale", "replace"): 1 if self.setup.groups is None else 0,
            self.do_one_rank: 1 if self.setup.groups is None else 0,
        }

    def do_freeze(self) -> Action:
        """Freeze a layer that was trained when it was bound, or thaw it: Horovod sends zeros for it."""
        name = self.rng.choice(["embedding", *(f"heads.{i}" for i in range(HEADS))])
        if self.setup.groups or self.setup.sparse:
            return self.do_train()
        self.setup = replace(self.setup, frozen=self.setup.frozen ^ {name})
        frozen, trainings = self.setup.frozen, self.draw_trainings()

        def body() -> None:
            self.freeze(frozen)
            self.train(trainings)

        return Action(f"freeze {sorted(frozen)}, {trainings}", body)

    def do_resume(self) -> Action:
        saved, present = self.saved, self.setup
        alike = ("kind", "sparse", "settings", "groups", "predivide")
        new = self.rng.random() < 0.6 or any(getattr(saved, name) != getattr(present, name) for name in alike)
        how = self.rng.choice(["own", "rank 0's", "broadcast", "sync"])
        raises, goes_on = "never", False
        if not new and (saved.meant != present.meant or present.groups):  # an error is not told to those in a group
            how = self.rng.choice(["own", "rank 0's"])
        if not new and saved.meant != present.meant:
            raises, goes_on = "always", True
            setup = present
        elif new:
            setup = replace(saved, frozen=saved.frozen & {"middle"})
        else:
            setup = replace(saved, frozen=present.frozen, passes=present.passes)
            raises = "maybe" if how in ("broadcast", "sync") else "never"
        self.setup = setup
        return self.resume(new, how, saved, setup, raises, goes_on)

    def do_set_compression(self) -> Action:
        setup = self.setup = self.draw_compression(self.setup, keeps=True)
        trainings = [] if self.rng.random() < 0.4 else self.draw_trainings()

        def body() -> None:
            self.bound.set_compression(setup.spec, setup.rules)
            self.train(trainings)

        return Action(f"set_compression({setup.spec}, {setup.rules}), {trainings}", body)

    def do_momentum(self) -> Action:
        if self.setup.kind != "sgd" or self.setup.sparse:
            return self.do_train()
        momentum, training = self.rng.choice([0.0, 0.5, 0.9]), self.draw_training()
        self.setup = replace(self.setup, momentum=momentum)

        def body() -> None:
            for group in self.optimizer.param_groups:
                group["momentum"] = momentum
            self.step(training)

        return Action(f"momentum = {momentum}, {training}", body)

    def do_one_rank(self) -> Action:
        spec = self.draw_spec(keeps=True)
        return self.one_rank(
            {"load": self.load_parts, f"set_compression({spec})": lambda _: self.bound.set_compression(spec)}
        )
