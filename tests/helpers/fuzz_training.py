"""Random training scripts under PyTorch: what a user may do between two steps, in any order, on real ranks.

After each action the weights of all ranks are the same, bit for bit, or all of them have raised; then the script goes
on with a new model. Where an action is known to be legal, none may raise. All ranks draw the same actions.
"""

import copy
import io
import random
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import horovod.torch as hvd
import torch
from horovod.torch.elastic import TorchState
from torch import nn

import hvd_compress.torch as hvdc
from hvd_compress import methods, parse

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


@dataclass(frozen=True)
class Setup:
    """How a model is trained: the same on all ranks."""

    kind: str
    spec: str
    rules: tuple[tuple[str, str], ...]
    momentum: float
    lr: float
    passes: int
    warmup: int
    sparse: bool
    settings: dict[str, Any]
    members: int
    frozen: frozenset[str] = frozenset()

    @property
    def keeps(self) -> bool:
        return any(parse(spec).has_momentum for spec in (self.spec, *(spec for _, spec in self.rules)))


@dataclass(frozen=True, repr=False)
class Pass:
    """What each rank uses in one forward and backward pass."""

    number: int
    heads: tuple[tuple[int, ...], ...]
    embeds: tuple[bool, ...]

    def __repr__(self) -> str:
        used = ("".join(map(str, heads)) + "e" * own for heads, own in zip(self.heads, self.embeds, strict=True))
        return f"{self.number}:{'|'.join(used)}"


@dataclass(frozen=True, repr=False)
class Training:
    """A step: its passes, how gradients are reset, and how the step is taken."""

    passes: tuple[Pass, ...]
    to_none: bool
    way: str = "plain"

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.passes)) + ("" if self.to_none else " set_to_none=False")


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


class Script:
    """One random script.

    Args:
        seed, number: of the sequence, the same on all ranks.
        process_sets: for each number of workers that it may train with, Horovod's process set of the lowest ranks.
        log: is told of each action before it begins.
    """

    def __init__(self, seed: int, number: int, process_sets: dict[int, Any], log: Callable[[str], None]) -> None:
        self.rng = random.Random(f"{seed} {number}")
        self.base = self.rng.randrange(1 << 30)
        self.process_sets, self.log = process_sets, log
        self.rank, self.ranks = hvd.rank(), hvd.size()
        self.passes_drawn = 0
        self.saved: Setup | None = None
        self.file = b""
        self.outcome = Outcome()
        self.setup = self.draw_setup()

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
            if keeps or not compressor.has_momentum:
                return spec

    def draw_compression(self, setup: Setup, keeps: bool) -> Setup:
        spec, rules = self.draw_spec(keeps), ()
        if self.rng.random() < 0.25:
            rules = ((self.rng.choice(["heads.*", "embedding*", "*.weight", "*"]), self.draw_spec(keeps)),)
        return replace(setup, spec=spec, rules=rules)

    def draw_setup(self, members: int | None = None) -> Setup:
        rng = self.rng
        kind = rng.choices(["sgd", "adam", "compressed_adam"], [6, 2, 2])[0]
        sparse = kind == "sgd" and rng.random() < 0.25
        settings: dict[str, Any] = {
            "bucket_bytes": rng.choice([1, 600, 1 << 20]),
            "dense_below": rng.choice([0, 0, 100]),
            "seed": rng.randrange(3),
        }
        if rng.random() < 0.2:
            settings["op"] = hvd.Sum
        elif rng.random() < 0.2:
            settings["gradient_predivide_factor"] = 2.0
        if sparse and rng.random() < 0.3:
            settings["sparse_as_dense"] = True
        setup = Setup(
            kind=kind,
            spec="none",
            rules=(),
            momentum=rng.choice([0.0, 0.9]) if kind == "sgd" and not sparse else 0.0,
            lr=rng.choice([0.01, 0.001]),
            passes=rng.choice([1, 1, 2]),
            warmup=rng.choice([1, 2, 4]),
            sparse=sparse,
            settings=settings,
            members=members or rng.choice([self.ranks] * 6 + sorted(self.process_sets)),
        )
        if kind == "compressed_adam":
            spec = rng.choice(["onebit", "ef_signsgd", "topk(ratio=0.2)", "qsgd(bits=4)", "none", "powersgd(rank=1)"])
            return replace(setup, spec=spec)
        return self.draw_compression(setup, keeps=kind == "sgd" and setup.momentum == 0)

    def draw_training(self, count: int | None = None, way: str = "plain") -> Training:
        passes = []
        for _ in range(count or self.setup.passes):
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
            passes.append(Pass(self.passes_drawn, tuple(heads), tuple(embeds)))
        return Training(tuple(passes), self.rng.random() < 0.8, way)

    def draw_trainings(self, most: int = 2) -> list[Training]:
        return [self.draw_training() for _ in range(self.rng.randint(1, most))]

    @property
    def alone(self) -> bool:
        return self.setup.members == 1

    # --- what scripts are made of

    def begin(self, setup: Setup, frozen: frozenset[str] | None = None) -> None:
        """Make a model and its optimizer."""
        self.model = Model(self.base, setup.sparse)
        self.freeze(setup.frozen if frozen is None else frozen)
        self.wrap(setup)

    def wrap(self, setup: Setup, again: bool = False) -> None:
        model = self.model
        settings = {**setup.settings, "process_set": self.process_sets[setup.members]}
        settings["rules"] = setup.rules
        if setup.kind == "compressed_adam":
            self.inner = None
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
            self.inner = (
                torch.optim.SGD(model.parameters(), lr=setup.lr, momentum=setup.momentum)
                if setup.kind == "sgd"
                else torch.optim.Adam(model.parameters(), lr=setup.lr)
            )
        self.optimizer = hvdc.DistributedOptimizer(
            self.inner,
            model.named_parameters(),
            compression=setup.spec,
            backward_passes_per_step=setup.passes,
            **settings,
        )

    def freeze(self, frozen: frozenset[str]) -> None:
        for name, layer in self.layers().items():
            layer.requires_grad_(name not in frozen)

    def layers(self) -> dict[str, nn.Module]:
        heads = {f"heads.{i}": head for i, head in enumerate(self.model.heads)}
        return {"embedding": self.model.embedding, "middle": self.model.middle, **heads}

    def loss(self, one: Pass) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.base + 1000 * one.number + self.rank)
        ids = torch.randint(0, 30, (4, 3), generator=generator)
        return self.model(ids, one.heads[self.rank], one.embeds[self.rank])

    def backward(self, training: Training) -> None:
        self.optimizer.zero_grad(set_to_none=training.to_none)
        for one in training.passes:
            self.loss(one).backward()

    def train(self, trainings: list[Training]) -> None:
        for training in trainings:
            self.step(training)

    def step(self, training: Training) -> None:
        optimizer = self.optimizer
        if training.way == "closure":

            def closure() -> torch.Tensor:
                optimizer.zero_grad(set_to_none=training.to_none)
                losses = [self.loss(one) for one in training.passes]
                for loss in losses:
                    loss.backward()
                return sum(losses)

            optimizer.step(closure)
            return
        self.backward(training)
        if training.way == "refused" and not self.alone:
            try:
                optimizer.zero_grad()
            except AssertionError:
                pass
            else:
                raise ValueError("zero_grad() after backward() was not refused")
        if training.way == "clip":
            optimizer.synchronize()
            dense = [p for p in self.model.parameters() if p.grad is not None and not p.grad.is_sparse]
            nn.utils.clip_grad_norm_(dense, 0.1)
            with optimizer.skip_synchronize():
                optimizer.step()
        else:
            optimizer.step()

    def finite(self) -> bool:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return all((g.coalesce().values() if g.is_sparse else g).isfinite().all() for g in gradients)

    def written(self) -> bytes:
        buffer = io.BytesIO()
        torch.save({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}, buffer)
        return buffer.getvalue()

    def load(self, data: bytes) -> None:
        state = torch.load(io.BytesIO(data), weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    # --- actions

    def draw_action(self) -> Action:
        weights = {
            self.do_train: 5,
            self.do_way: 4,
            self.do_passes: 1,
            self.do_skip: 1,
            self.do_freeze: 2,
            self.do_save: 4,
            self.do_resume: 5 if self.saved else 0,
            self.do_set_compression: 2,
            self.do_rate: 1,
            self.do_momentum: 1,
            self.do_nan: 2,
            self.do_change_gradient: 1,
            self.do_one_rank: 1,
            self.do_ignore: 1,
            self.do_wrap: 1,
        }
        return self.rng.choices(list(weights), list(weights.values()))[0]()

    def do_train(self) -> Action:
        trainings = self.draw_trainings(3)
        return Action(f"train {trainings}", lambda: self.train(trainings))

    def do_way(self) -> Action:
        way = self.rng.choice(["clip", "closure", "refused", "partial"])
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

    def do_save(self) -> Action:
        self.saved = self.setup
        trainings = self.draw_trainings() if self.rng.random() < 0.5 else []

        def body() -> None:
            self.file = self.written()
            self.train(trainings)

        return Action(f"save, {trainings}", body)

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
        meant = [(parse(s.spec), [(pattern, parse(spec)) for pattern, spec in s.rules]) for s in (saved, present)]
        same = meant[0] == meant[1]
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

    def do_rate(self) -> Action:
        rate = self.rng.choice([0.02, 0.005])
        self.setup = replace(self.setup, lr=rate)

        def body() -> None:
            for group in self.optimizer.param_groups:
                group["lr"] = rate

        return Action(f"lr = {rate}", body)

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
            self.optimizer.synchronize()
            if self.finite():
                raise ValueError(f"{bad} of rank {rank} has not come here")
            if not skips:
                with self.optimizer.skip_synchronize():
                    self.optimizer.step()
            else:
                self.train(trainings)

        return Action(f"{bad} in {part} of rank {rank}, skipped: {skips}, {training}, {trainings}", body)

    def do_change_gradient(self) -> Action:
        training, rank = self.draw_training(), self.rng.randrange(self.setup.members)
        how = self.rng.choice(["scale", "none", "replace"])
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

    def do_one_rank(self) -> Action:
        what = self.rng.choice(["load", "freeze", "set_compression"])
        rank, trainings = self.rng.randrange(self.setup.members), self.draw_trainings()
        spec = self.draw_spec(keeps=False) if self.setup.kind != "compressed_adam" else None
        frozen = self.setup.frozen ^ {"middle"}
        if spec is None and what == "set_compression":
            what = "load"
        if self.alone:
            return self.do_train()
        trainings = [*trainings, self.draw_training()]

        def body() -> None:
            state = copy.deepcopy(self.optimizer.state_dict())
            self.train(trainings[:-1])
            if self.rank == rank:
                if what == "load":
                    self.optimizer.load_state_dict(state)
                elif what == "freeze":
                    self.freeze(frozen)
                else:
                    self.optimizer.set_compression(spec)
            self.train(trainings[-1:])

        return Action(f"rank {rank} alone: {what} {spec}, {trainings}", body, "always")

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

    # --- the sequence

    def run(self, length: int) -> Outcome:
        """Do so many actions.

        Raises:
            AssertionError: on all ranks, if the ranks' weights differ, or some have raised and others not, or all of
                them though the action is legal.
        """
        self.do(self.start())
        for _ in range(length):
            self.do(self.draw_action())
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
        digest, finite = self.digest() if member and hasattr(self, "model") else (0, True)
        told = hvd.allgather(torch.tensor([[member, error is not None, digest, finite]]), name="fuzz")
        members = told[told[:, 0] == 1]
        raised = members[:, 1].tolist()
        where = f"rank {self.rank}, action {number}, {action.text}"
        if any(raised):
            assert all(raised), f"{where}: raised on {raised}: {error!r}"
            assert action.raises != "never", f"{where}: {error!r}"
            self.outcome.raised += 1
            self.log(f"all raised: {type(error).__name__}: {error}")
            if not action.goes_on:
                self.setup = self.draw_setup()
                self.do(self.start())
                return
        else:
            assert action.raises != "always", f"{where}: should have raised"
        assert len(set(members[:, 2].tolist())) == 1, f"{where}: the weights differ"
        if not members[:, 3].all():
            self.setup = self.draw_setup()
            self.do(self.start())

    def digest(self) -> tuple[int, bool]:
        """Return a checksum of the weights, in which each NaN is the same, and whether they are finite."""
        weights = torch.cat([p.detach().reshape(-1) for p in self.model.parameters()])
        canonical = torch.where(weights.isnan(), torch.tensor(float("nan")), weights)
        return zlib.crc32(canonical.numpy().tobytes()), bool(weights.isfinite().all())


def run(seed: int, number: int, process_sets: dict[int, Any], log: Callable[[str], None]) -> Outcome:
    """Run one sequence of 6 to 14 actions; see `Script`."""
    script = Script(seed, number, process_sets, log)
    return script.run(script.rng.randint(6, 14))
