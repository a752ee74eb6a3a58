"""Random training scripts under this package's `DistributedOptimizer` and `CompressedAdam` for PyTorch."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import horovod.torch as hvd
import torch
from fuzz_scripts import HEADS, KEEPS, Action
from fuzz_torch import Model, TorchScript, TorchSetup, Training

import hvd_compress.torch as hvdc


@dataclass(frozen=True, kw_only=True)
class OptimizerSetup(TorchSetup):
    """Of this package's optimizers; `warmup` is that of CompressedAdam."""

    warmup: int


class Script(TorchScript):
    """A script with this package's optimizers."""

    # --- what is drawn

    def draw_setup(self) -> OptimizerSetup:
        rng = self.rng
        kind = rng.choices(["sgd", "adam", "compressed_adam"], [6, 2, 2])[0]
        sparse = kind == "sgd" and rng.random() < 0.25
        settings = self.draw_settings([1, 600, 1 << 20], hvd.Sum)
        if sparse and rng.random() < 0.3:
            settings["sparse_as_dense"] = True
        setup = OptimizerSetup(
            kind=kind,
            momentum=rng.choice([0.0, 0.9]) if kind == "sgd" and not sparse else 0.0,
            lr=rng.choice([0.01, 0.001]),
            passes=rng.choice([1, 1, 2]),
            warmup=rng.choice([1, 2, 4]),
            sparse=sparse,
            settings=settings,
            members=rng.choice([self.ranks] * 6 + sorted(self.process_sets)),
        )
        if kind == "compressed_adam":
            spec = rng.choice(["onebit", "ef_signsgd", "topk(ratio=0.2)", "qsgd(bits=4)", "none", "powersgd(rank=1)"])
            return replace(setup, spec=spec)
        return self.draw_compression(setup, keeps=kind == "sgd" and setup.momentum == 0)

    # --- what scripts are made of

    def begin(self, setup: OptimizerSetup, frozen: frozenset[str] | None = None) -> None:
        """Make a model and its optimizer."""
        self.model = Model(self.base, setup.sparse)
        self.freeze(setup.frozen if frozen is None else frozen)
        self.wrap(setup)

    def carried(self, setup: OptimizerSetup) -> dict[str, Any]:
        """Return the arguments that say who carries the collectives."""
        return {"process_set": self.process_sets[setup.members]}

    def wrap(self, setup: OptimizerSetup, again: bool = False) -> None:
        model = self.model
        settings = {**setup.settings, **self.carried(setup), "rules": setup.rules}
        if setup.kind == "compressed_adam":
            self.plain = None
            self.optimizer = hvdc.CompressedAdam(
                model.parameters(),
                setup.lr,
                named_parameters=model.named_parameters(),
                warmup_steps=setup.warmup,
                compression=setup.spec,
                backward_passes_per_step=setup.passes,
                **settings,
            )
            return
        if not again:
            self.plain = self.inner(setup)
        self.optimizer = hvdc.DistributedOptimizer(
            self.plain,
            model.named_parameters(),
            compression=setup.spec,
            backward_passes_per_step=setup.passes,
            **settings,
        )

    def step(self, training: Training) -> None:
        if training.way != "closure":
            super().step(training)
            return

        def closure() -> torch.Tensor:
            self.zero_grad(training.to_none)
            losses = [self.loss(one) for one in training.passes]
            for loss in losses:
                loss.backward()
            return sum(losses)

        self.optimizer.step(closure)

    # --- actions

    @property
    def actions(self) -> dict[Callable[[], Action], int]:
        return {
            self.do_train: 5,
            partial(self.do_way, "clip", "closure", "refused", "partial"): 4,
            self.do_passes: 1,
            self.do_skip: 1,
            self.do_freeze: 2,
            self.do_save: 4,
            self.do_resume: 5 if self.saved else 0,
            self.do_set_compression: 2,
            self.do_rate: 1,
            self.do_momentum: 1,
            self.do_nan: 2,
            partial(self.do_change_gradient, "scale", "none", "replace"): 1,
            self.do_one_rank: 1,
            self.do_ignore: 1,
            self.do_wrap: 1,
        }

    def do_freeze(self) -> Action:
        name = self.rng.choice(["embedding", "middle", *(f"heads.{i}" for i in range(HEADS))])
        self.setup = replace(self.setup, frozen=self.setup.frozen ^ {name})
        frozen, resets = self.setup.frozen, self.rng.random() < 0.5
        trainings = self.draw_trainings() if self.rng.random() < 0.6 else []

        def body() -> None:
            self.freeze(frozen)
            if resets:
                self.optimizer.zero_grad()
            self.train(trainings)

        return Action(f"freeze {sorted(frozen)}, zero_grad: {resets}, {trainings}", body)

    def do_resume(self) -> Action:
        assert self.saved is not None
        saved, present = self.saved, self.setup
        new = self.rng.random() < 0.6
        members = saved.members if self.rng.random() < 0.5 else self.rng.choice(sorted(self.process_sets))
        how = self.rng.choice(["own", "rank 0's", "broadcast", "sync"])
        other = frozenset() if self.rng.random() < 0.9 else frozenset({"middle"})
        alike = ("kind", "sparse", "settings", "warmup")
        if any(getattr(saved, name) != getattr(present, name) for name in alike):
            new = True
        same = saved.meant == present.meant
        if not new and not same and 1 in (saved.members, present.members):
            new = True
        if new:
            same, frozen = True, saved.frozen ^ other
            self.setup = replace(saved, members=members, frozen=frozen)
        else:
            frozen = present.frozen
            self.setup = replace(saved, members=present.members, frozen=frozen, passes=present.passes)
        setup = self.setup
        raises = "never"
        if new and self.rng.random() < 0.1:
            setup = self.setup = replace(setup, settings={**setup.settings, "bucket_bytes": 300})
            raises = "maybe"  # other buckets
        if setup.members < self.ranks or not same:
            how = self.rng.choice(["own", "rank 0's"])
        elif not new and how in ("broadcast", "sync"):
            raises = "maybe"
        goes_on = False
        if not same:
            raises, goes_on, self.setup = "always", True, present
        return self.resume(new, how, saved, setup, raises, goes_on)

    def do_set_compression(self) -> Action:
        former, refused = self.setup, False
        if former.kind == "compressed_adam":
            refused = self.rng.random() < 0.2
            start = "" if refused else f", feedback=adam(start={former.warmup})"
            spec = self.rng.choice([f"topk(ratio=0.3{start})", f"qsgd(bits=3{start})"])
            setup = replace(former, spec=spec, rules=())
            refused = refused and not self.alone
        else:
            setup = self.draw_compression(former, keeps=True)
            refused = setup.keeps and (former.kind == "adam" or former.momentum != 0)
        self.setup = former if refused else setup
        trainings = [] if refused or self.rng.random() < 0.4 else self.draw_trainings()

        def body() -> None:
            self.optimizer.set_compression(setup.spec, setup.rules)
            self.train(trainings)

        text = f"set_compression({setup.spec}, {setup.rules}), {trainings}"
        return Action(text, body, "always" if refused else "never", goes_on=True)

    def do_momentum(self) -> Action:
        if self.setup.kind != "sgd" or (self.setup.sparse and not self.setup.keeps):
            return self.do_train()
        momentum, keeps, training = self.rng.choice([0.5, 0.9]), self.setup.keeps, self.draw_training()
        if not keeps:
            self.setup = replace(self.setup, momentum=momentum)

        def body() -> None:
            [group] = self.optimizer.param_groups
            group["momentum"] = momentum
            self.backward(training)
            if keeps:
                try:
                    self.optimizer.step()
                except ValueError as error:
                    if KEEPS not in str(error):
                        raise
                else:
                    raise ValueError("a second momentum was not refused")
                group["momentum"] = 0.0
            self.optimizer.step()

        return Action(f"momentum = {momentum}{', refused, and 0 again' if keeps else ''}, {training}", body)

    def do_one_rank(self) -> Action:
        frozen = self.setup.frozen ^ {"middle"}
        actions = {"load": self.load_parts, "freeze": lambda _: self.freeze(frozen)}
        if self.setup.kind != "compressed_adam":
            spec = self.draw_spec(keeps=False)
            actions[f"set_compression({spec})"] = lambda _: self.optimizer.set_compression(spec)
        return self.one_rank(actions)

    def do_ignore(self) -> Action:
        training, trainings = self.draw_training(), self.draw_trainings()

        def body() -> None:
            with self.optimizer.ignore_gradients() if not self.alone else nullcontext():
                self.loss(training.passes[0]).backward()
            self.train([replace(t, to_none=True) for t in trainings])

        return Action(f"ignore_gradients {training}, {trainings}", body)

    def do_wrap(self) -> Action:
        again = self.setup.kind != "compressed_adam" and self.rng.random() < 0.5
        if self.setup.kind != "compressed_adam":
            keeps = self.setup.kind == "sgd" and self.setup.momentum == 0
            self.setup = self.draw_compression(self.setup, keeps)
        setup, trainings = self.setup, self.draw_trainings()

        def body() -> None:
            self.wrap(setup, again)
            self.train(trainings)

        return Action(f"wrap {'the same' if again else 'a new'} optimizer anew: {setup}, {trainings}", body)
