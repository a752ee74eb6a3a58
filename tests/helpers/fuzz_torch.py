"""What random training scripts under PyTorch share, whoever averages the gradients."""

import copy
import io
from dataclasses import dataclass, replace
from typing import Any

import horovod.torch as hvd
import numpy as np
import torch
from fuzz_scripts import HEADS, Action, Pass, RandomScript, Setup
from horovod.torch.elastic import TorchState
from torch import nn


class Model(nn.Module):
    """An embedding that may be left out, layers of all shapes, and heads that may be used or not."""

    def __init__(self, seed: int, sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(30, 8, sparse=sparse)
        self.convolution = nn.Conv1d(8, 12, 2)
        self.middle = nn.Linear(12, 12)
        self.heads = nn.ModuleList(nn.Linear(12, 10) for _ in range(HEADS))

    def forward(self, ids: torch.Tensor, heads: tuple[int, ...], embeds: bool) -> torch.Tensor:
        given = self.embedding(ids) if embeds else torch.sin(ids.float())[:, :, None].expand(-1, -1, 8)
        x = self.convolution(given.transpose(1, 2)).relu().mean(dim=2)
        x = self.middle(x).relu()
        return sum(((self.heads[h](x) - h) ** 2).mean() for h in heads)


@dataclass(frozen=True, kw_only=True)
class TorchSetup(Setup):
    """Of PyTorch's optimizers: `passes` are those of a step, `frozen` the layers that are not trained."""

    kind: str
    momentum: float
    lr: float
    passes: int
    frozen: frozenset[str] = frozenset()


@dataclass(frozen=True, repr=False)
class Training:
    """A step: its passes, how gradients are reset, and how the step is taken."""

    passes: tuple[Pass, ...]
    to_none: bool
    way: str = "plain"

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.passes)) + ("" if self.to_none else " set_to_none=False")


class TorchScript(RandomScript):
    """What a script does with a model and its optimizer, and actions that all know.

    Attributes:
        model: None before the first one is made.
        optimizer: the distributed one.
        parts: by name what is saved, beside the model.
    """

    hvd = hvd
    PATTERNS = ("*heads.*", "*embedding*", "*.weight", "*")
    model: Model | None = None
    optimizer: Any
    file = b""

    @property
    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer}

    # --- what is drawn

    def draw_training(self, count: int | None = None, way: str = "plain") -> Training:
        passes = tuple(self.draw_pass() for _ in range(count or self.setup.passes))
        return Training(passes, self.rng.random() < 0.8, way)

    # --- what scripts are made of

    def inner(self, setup: TorchSetup) -> torch.optim.Optimizer:
        """Make a plain optimizer of the model's parameters."""
        parameters = self.model.parameters()
        if setup.kind == "sgd":
            return torch.optim.SGD(parameters, lr=setup.lr, momentum=setup.momentum)
        return torch.optim.Adam(parameters, lr=setup.lr)

    def freeze(self, frozen: frozenset[str]) -> None:
        for name, layer in self.layers().items():
            layer.requires_grad_(name not in frozen)

    def layers(self) -> dict[str, nn.Module]:
        heads = {f"heads.{i}": head for i, head in enumerate(self.model.heads)}
        return {"embedding": self.model.embedding, "middle": self.model.middle, **heads}

    def loss(self, one: Pass) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.base + 1000 * one.number + self.rank)
        ids = torch.randint(0, 30, (4, 3), generator=generator)
        return self.forward(ids, one.heads[self.rank], one.embeds[self.rank])

    def forward(self, *inputs: Any) -> torch.Tensor:
        return self.model(*inputs)

    def zero_grad(self, to_none: bool) -> None:
        self.optimizer.zero_grad(set_to_none=to_none)

    def backward(self, training: Training) -> None:
        self.zero_grad(training.to_none)
        for one in training.passes:
            self.loss(one).backward()

    def step(self, training: Training) -> None:
        self.backward(training)
        if training.way == "refused" and not self.alone:
            self.refused()
        if training.way == "clip":
            self.synchronize()
            dense = [p for p in self.model.parameters() if p.grad is not None and not p.grad.is_sparse]
            nn.utils.clip_grad_norm_(dense, 0.1)
            self.step_with_means()
        else:
            self.optimizer.step()

    def synchronize(self) -> None:
        self.optimizer.synchronize()

    def step_with_means(self) -> None:
        with self.optimizer.skip_synchronize():
            self.optimizer.step()

    def refused(self) -> None:
        """Try what may not be done between backward() and step()."""
        try:
            self.optimizer.zero_grad()
        except AssertionError:
            return
        raise ValueError("zero_grad() after backward() was not refused")

    def finite(self) -> bool:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return all((g.coalesce().values() if g.is_sparse else g).isfinite().all() for g in gradients)

    def weights(self) -> np.ndarray:
        if self.model is None:
            return np.zeros(0, np.float32)
        return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()]).numpy()

    def written(self) -> bytes:
        buffer = io.BytesIO()
        torch.save({name: part.state_dict() for name, part in self.parts.items()}, buffer)
        return buffer.getvalue()

    def load(self, data: bytes) -> None:
        state = torch.load(io.BytesIO(data), weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])

    def share(self, how: str) -> None:
        """Load on rank 0 alone, and broadcast as Horovod's examples do."""
        if self.rank == 0:
            self.load(self.file)
        trained = {i for i, p in enumerate(self.model.parameters()) if p.requires_grad}
        states = self.optimizer.state_dict()["state"]
        kept = {i: sorted(key for key, value in state.items() if value is not None) for i, state in states.items()}
        # Horovod's functions broadcast as many tensors as a rank has: they hang where ranks have others, and fail where
        # a parameter has none yet. Only a rank that has none at all is given them, by a step, if that makes some.
        told = hvd.allgather_object((kept, self.optimizer.param_groups[0].get("momentum")), name="kept")
        everybodys = [each for each, _ in told if each]
        none = everybodys and any(not each and momentum == 0 for each, momentum in told)
        if none or any(each != everybodys[0] or set(each) != trained for each in everybodys):
            hvd.broadcast_parameters(self.model.state_dict(), root_rank=0)
            state = self.optimizer.state_dict()
            state.pop("compression", None)
            state = hvd.broadcast_object(state, name="state")
            if self.rank != 0:
                self.optimizer.load_state_dict(state)
        elif how == "sync":
            TorchState(model=self.model, optimizer=self.optimizer, step=0).sync()
        else:
            hvd.broadcast_parameters(self.model.state_dict(), root_rank=0)
            hvd.broadcast_optimizer_state(self.optimizer, root_rank=0, model=self.model)
        if self.setup.sparse:  # Horovod leaves gradients there, of other sparse axes than PyTorch's
            self.optimizer.zero_grad()

    # --- actions

    def do_way(self, *ways: str) -> Action:
        way = self.rng.choice(ways)
        training = self.draw_training(1 if way == "partial" else None, way)
        return Action(f"{way} {training}", lambda: self.train([training]))

    def do_passes(self) -> Action:
        passes = self.rng.choice([1, 2])
        self.setup = replace(self.setup, passes=passes)
        trainings = self.draw_trainings()

        def body() -> None:
            self.optimizer.set_backward_passes_per_step(passes)
            self.train(trainings)

        return Action(f"set_backward_passes_per_step({passes}), {trainings}", body)

    def do_skip(self) -> Action:
        one = self.draw_training().passes[0]
        return Action(f"skip a batch after its forward pass {one}", lambda: self.loss(one) and None)

    def do_save(self) -> Action:
        self.saved = self.setup
        trainings = self.draw_trainings() if self.rng.random() < 0.5 else []

        def body() -> None:
            self.file = self.written()
            self.train(trainings)

        return Action(f"save, {trainings}", body)

    def resume(self, new: bool, how: str, saved: Any, setup: Any, raises: str, goes_on: bool) -> Action:
        """Load what was saved, in a new model or in this one, and train."""
        trainings = self.draw_trainings()

        def body() -> None:
            if new:
                self.begin(setup)
            if how in ("own", "rank 0's"):
                everybodys = hvd.broadcast_object(self.file, name="file", process_set=self.process_sets[setup.members])
                self.load(self.file if how == "own" and self.rank < saved.members else everybodys)
            else:
                self.share(how)
            for group in self.optimizer.param_groups:  # Horovod broadcasts no options of an optimizer without state
                group["lr"] = setup.lr
            self.train(trainings)

        text = f"resume {'anew' if new else 'in place'}, of {how}, saved {saved}, now {setup}, {trainings}"
        return Action(text, body, raises, goes_on)

    def do_rate(self) -> Action:
        rate = self.rng.choice([0.02, 0.005])
        self.setup = replace(self.setup, lr=rate)

        def body() -> None:
            for group in self.optimizer.param_groups:
                group["lr"] = rate

        return Action(f"lr = {rate}", body)

    def do_nan(self) -> Action:
        training, rank = self.draw_training(), self.rng.randrange(self.setup.members)
        part, bad = self.rng.choice(["convolution.weight", "convolution.bias"]), self.rng.choice(["nan", "inf"])
        skips, trainings = self.rng.random() < 0.7, self.draw_trainings()

        def body() -> None:
            hook = None
            if self.rank == rank:
                hook = dict(self.model.named_parameters())[part].register_hook(lambda g: torch.full_like(g, float(bad)))
            try:
                self.backward(training)
            finally:
                if hook is not None:
                    hook.remove()
            self.synchronize()
            if self.finite():
                raise ValueError(f"{bad} of rank {rank} has not come here")
            if not skips:
                self.step_with_means()
            else:
                self.train(trainings)

        return Action(f"{bad} in {part} of rank {rank}, skipped: {skips}, {training}, {trainings}", body)

    def do_change_gradient(self, *hows: str) -> Action:
        training, rank = self.draw_training(), self.rng.randrange(self.setup.members)
        how = self.rng.choice(hows)
        trainings = [self.draw_training()]

        def body() -> None:
            self.backward(training)
            if self.rank == rank:
                weight = self.model.convolution.weight
                if how == "scale":
                    weight.grad.mul_(2)
                else:
                    weight.grad = None if how == "none" else torch.ones_like(weight)
            self.optimizer.step()
            if self.rank != rank:  # they may learn of it in their next step
                self.train(trainings)

        return Action(f"rank {rank} changes a gradient: {how}, {training}", body, "never" if self.alone else "always")

    def one_rank(self, actions: dict[str, Any]) -> Action:
        """Do an action on one rank alone: each is given the state of before the steps that are taken first."""
        what, rank = self.rng.choice(list(actions)), self.rng.randrange(self.setup.members)
        if self.alone:
            return self.do_train()
        trainings = [*self.draw_trainings(), self.draw_training()]

        def body() -> None:
            states = {name: copy.deepcopy(part.state_dict()) for name, part in self.parts.items() if name != "model"}
            self.train(trainings[:-1])
            if self.rank == rank:
                actions[what](states)
            self.train(trainings[-1:])

        return Action(f"rank {rank} alone: {what}, {trainings}", body, "always")

    def load_parts(self, states: dict[str, Any]) -> None:
        for name, state in states.items():
            self.parts[name].load_state_dict(state)
