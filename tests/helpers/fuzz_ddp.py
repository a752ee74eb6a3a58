"""Random training scripts under DistributedDataParallel, with this package's communication hook."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from fuzz_groups import GroupsScript
from fuzz_scripts import Action, Pass
from fuzz_torch import Model, TorchScript, TorchSetup, Training
from torch.nn.parallel import DistributedDataParallel

from hvd_compress.torch import ddp


@dataclass(frozen=True, kw_only=True)
class DDPSetup(TorchSetup):
    """Of the hook; `wrapped` is what DDP is told."""

    wrapped: tuple[tuple[str, Any], ...]


class Script(GroupsScript, TorchScript):
    """A script with the hook."""

    wrapped: DistributedDataParallel
    compression: ddp.RegisteredCompression

    @property
    def parts(self) -> dict[str, Any]:
        return {**super().parts, "compression": self.compression}

    # --- what is drawn

    def draw_setup(self) -> DDPSetup:
        rng = self.rng
        kind, sparse = rng.choices(["sgd", "adam"], [3, 1])[0], rng.random() < 0.2
        if sparse:
            kind = "sgd"
        settings = self.draw_settings([1, 600, 1 << 20], "sum")
        if sparse and rng.random() < 0.3:
            settings["sparse_as_dense"] = True
        wrapped = {
            "find_unused_parameters": True,
            "gradient_as_bucket_view": rng.random() < 0.5,
            "bucket_cap_mb": rng.choice([0.0005, 0.002, 25]),
        }
        setup = DDPSetup(
            kind=kind,
            momentum=rng.choice([0.0, 0.9]) if kind == "sgd" and not sparse else 0.0,
            lr=rng.choice([0.01, 0.001]),
            passes=rng.choice([1, 1, 2]),
            sparse=sparse,
            settings=settings,
            members=rng.choice([self.ranks] * 6 + sorted(self.process_sets)),
            wrapped=tuple(wrapped.items()),
        )
        return self.draw_compression(setup, keeps=kind == "sgd" and setup.momentum == 0)

    def draw_pass(self) -> Pass:
        drawn = super().draw_pass()
        # DDP itself fails where a gradient that was sparse is missing.
        return replace(drawn, embeds=(True,) * self.ranks) if self.setup.sparse else drawn

    # --- what scripts are made of

    def begin(self, setup: DDPSetup) -> None:
        self.model = Model(self.base, setup.sparse)
        self.wrapped = DistributedDataParallel(
            self.model, process_group=self.groups[setup.members], **dict(setup.wrapped)
        )
        self.compression = ddp.register(self.wrapped, setup.spec, rules=setup.rules, **setup.settings)
        self.optimizer = self.inner(setup)

    def forward(self, *inputs: Any) -> torch.Tensor:
        return self.wrapped(*inputs)

    def backward(self, training: Training) -> None:
        self.zero_grad(training.to_none)
        for number, one in enumerate(training.passes, 1):
            with nullcontext() if number == len(training.passes) else self.wrapped.no_sync():
                self.loss(one).backward()

    def synchronize(self) -> None:
        """Do nothing: after backward() means are there."""

    def step_with_means(self) -> None:
        self.optimizer.step()

    # --- actions

    @property
    def actions(self) -> dict[Callable[[], Action], int]:
        return {
            self.do_train: 5,
            partial(self.do_way, "clip"): 1,
            self.do_passes: 1,
            self.do_save: 4,
            self.do_resume: 5 if self.saved else 0,
            self.do_set_compression: 2,
            self.do_rate: 1,
            self.do_nan: 2,
            self.do_one_rank: 1,
        }

    def do_passes(self) -> Action:
        self.setup = replace(self.setup, passes=self.rng.choice([1, 2]))
        return self.do_train()

    def do_resume(self) -> Action:
        assert self.saved is not None
        saved, how = self.saved, self.rng.choice(["own", "rank 0's"])
        new = self.rng.random() < 0.6 or saved != replace(self.setup, lr=saved.lr, passes=saved.passes)
        members = self.rng.choice([saved.members, *sorted(self.process_sets)]) if new else saved.members
        setup = self.setup = replace(saved, members=members)
        return self.resume(new, how, saved, setup, "never", goes_on=False)

    def do_set_compression(self) -> Action:
        setup = self.setup = self.draw_compression(
            self.setup, keeps=self.setup.kind == "sgd" and self.setup.momentum == 0
        )
        trainings = [] if self.rng.random() < 0.4 else self.draw_trainings()

        def body() -> None:
            self.compression.set_compression(setup.spec, setup.rules)
            self.train(trainings)

        return Action(f"set_compression({setup.spec}, {setup.rules}), {trainings}", body)

    def do_one_rank(self) -> Action:
        spec = self.draw_spec(keeps=False)
        actions = {
            "load": self.load_parts,
            f"set_compression({spec})": lambda _: self.compression.set_compression(spec),
        }
        return self.one_rank(actions)
