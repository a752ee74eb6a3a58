"""Random training scripts under Keras 3, with this package's `DistributedOptimizer` and `CompressedAdam`."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import horovod.tensorflow as hvd
import keras
import numpy as np
import tensorflow as tf
from fuzz_scripts import HEADS, KEEPS, Action, Pass
from fuzz_tensorflow import EMBEDDING, TRUNK, TensorFlowScript, TensorFlowSetup, head, new_model

from hvd_compress.tensorflow.keras import (
    BroadcastAtStart,
    CompressedAdam,
    DistributedOptimizer,
    LearningRateWarmup,
    MetricAverage,
)

BATCH = 4


@dataclass(frozen=True, kw_only=True)
class KerasSetup(TensorFlowSetup):
    """Of a Keras optimizer: `options` are its own, `frozen` the layers that are not trained."""

    options: dict[str, Any] = field(default_factory=dict)
    warmup: int
    frozen: frozenset[str] = frozenset()

    @property
    def whole(self) -> bool:
        """Whether Keras must have all gradients: it accumulates them, or decides by them."""
        return self.kind == "loss_scale" or "gradient_accumulation_steps" in self.options


class Script(TensorFlowScript):
    """A script with `fit`, with batches one by one, or with a loop of its own that uses some heads."""

    optimizer: Any

    # --- what is drawn

    def draw_setup(self) -> KerasSetup:
        rng = self.rng
        kind = rng.choices(["sgd", "adam", "loss_scale", "compressed_adam"], [5, 2, 2, 3])[0]
        settings = self.draw_all_settings()
        if kind == "compressed_adam":
            settings = {name: settings[name] for name in ("bucket_bytes", "dense_below", "seed")}
        choices = [{}, {}, {"clipnorm": 0.1}, {"global_clipnorm": 0.1}, {"clipvalue": 0.01}]
        choices += [] if kind == "loss_scale" else [{"gradient_accumulation_steps": 2}]
        setup = KerasSetup(
            kind=kind,
            momentum=rng.choice([0.0, 0.9]) if kind in ("sgd", "loss_scale") else 0.0,
            lr=rng.choice([0.01, 0.001]),
            graph=rng.random() < 0.15,
            options=rng.choice(choices),
            warmup=rng.choice([1, 2, 4]),
            settings=settings,
            members=self.draw_members(),
        )
        if kind == "compressed_adam":
            spec = rng.choice(["onebit", "ef_signsgd", "topk(ratio=0.2)", "qsgd(bits=4)", "none", "powersgd(rank=1)"])
            return replace(setup, spec=spec)
        return self.draw_compression(setup, keeps=setup.momentum == 0)

    @property
    def plan(self) -> Any:
        return super().plan, self.setup.frozen

    def draw_pass(self) -> Pass:
        one = super().draw_pass()
        return self.whole(one) if self.setup.whole else one

    def used(self, one: Pass) -> list[frozenset[str]]:
        return [used - self.setup.frozen for used in super().used(one)]

    # --- what scripts are made of

    def begin(self, setup: KerasSetup) -> None:
        self.model = new_model(self.base)
        optimizer = self.wrapped(self.plain(setup), setup) if setup.kind != "compressed_adam" else self.adam(setup)
        optimizer.build(self.model.trainable_variables)
        self.use(optimizer, setup)

    def plain(self, setup: KerasSetup) -> keras.optimizers.Optimizer:
        optimizer = super().plain(setup)
        for name, value in setup.options.items():
            setattr(optimizer, name, value)
        return keras.optimizers.LossScaleOptimizer(optimizer, 4.0) if setup.kind == "loss_scale" else optimizer

    def wrapped(self, optimizer: Any, setup: KerasSetup) -> Any:
        process_set = self.process_sets[setup.members]
        return DistributedOptimizer(
            optimizer, compression=setup.spec, rules=setup.rules, process_set=process_set, **setup.settings
        )

    def adam(self, setup: KerasSetup) -> Any:
        return CompressedAdam(
            setup.lr,
            warmup_steps=setup.warmup,
            compression=setup.spec,
            rules=setup.rules,
            process_set=self.process_sets[setup.members],
            **setup.settings,
            **setup.options,
        )

    def use(self, optimizer: Any, setup: KerasSetup) -> None:
        """Compile the model, with some layers frozen."""
        for name in (EMBEDDING, TRUNK, *map(head, range(HEADS))):
            self.model.get_layer(name).trainable = name not in setup.frozen
        self.optimizer = optimizer
        self.model.compile(optimizer, "mean_squared_error", run_eagerly=not setup.graph, jit_compile=False)

    @property
    def checkpoint(self) -> tf.train.Checkpoint:
        return tf.train.Checkpoint(model=self.model, optimizer=self.optimizer)

    def step(self, one: Pass) -> None:
        ids, used = tf.constant(self.ids(one)), (one.heads[self.rank], one.embeds[self.rank])
        variables = self.model.trainable_variables
        with tf.GradientTape() as tape:
            loss = self.loss(ids, *used)
            if self.setup.kind == "loss_scale":
                loss = self.optimizer.scale_loss(loss)
        self.optimizer.apply(tape.gradient(loss, variables), variables)

    def batches(self, numbers: list[Pass]) -> tuple[np.ndarray, np.ndarray]:
        ids = np.concatenate([self.ids(one) for one in numbers])
        return ids, np.tile(np.repeat(np.arange(HEADS, dtype=np.float32), 10), (len(ids), 1))

    def fit(self, numbers: list[Pass], callbacks: Any = (), weights: np.ndarray | None = None) -> None:
        settings = {"batch_size": BATCH, "verbose": 0, "shuffle": False, "callbacks": list(callbacks)}
        self.model.fit(*self.batches(numbers), sample_weight=weights, **settings)

    def broadcast(self, process_set: Any) -> None:
        self.callbacks = [BroadcastAtStart(process_set=process_set)]

    def draw_fit(self, count: int | None = None) -> list[Pass]:
        numbers = [self.whole(self.draw_pass()) for _ in range(count or self.rng.randint(1, 3))]
        if self.legal(numbers[0]):
            self.learn(numbers[0])
        return numbers

    # --- actions

    @property
    def actions(self) -> dict[Callable[[], Action], int]:
        return {
            self.do_train: 3,
            self.do_fit: 3,
            self.do_batches: 2,
            self.do_skip: 1,
            self.do_alone: 0 if self.setup.whole or self.setup.frozen else 1,
            self.do_compile: 1,
            self.do_freeze: 1,
            self.do_save: 4,
            self.do_resume: 5 if self.saved else 0,
            self.do_save_model: 1,
            self.do_set_compression: 0 if self.setup.kind == "compressed_adam" else 3,
            self.do_rate: 1,
            self.do_momentum: 1,
            self.do_nan: 2,
            self.do_one_rank: 1,
        }

    def do_fit(self) -> Action:
        numbers, process_set = self.draw_fit(), self.process_sets[self.setup.members]
        names = self.rng.sample(["broadcast", "metrics", "warmup"], self.rng.randint(0, 3))
        made = {
            "broadcast": lambda: BroadcastAtStart(process_set=process_set),
            "metrics": lambda: MetricAverage(process_set=process_set),
            "warmup": lambda: LearningRateWarmup(0.01, warmup_epochs=1),
        }
        return Action(f"fit {numbers} with {names}", lambda: self.fit(numbers, [made[name]() for name in names]))

    def do_batches(self) -> Action:
        numbers = self.draw_fit()

        def body() -> None:
            for one in numbers:
                self.model.train_on_batch(*self.batches([one]))

        return Action(f"train_on_batch {numbers}", body)

    def do_compile(self) -> Action:
        numbers, setup = self.draw_fit(), self.setup

        def body() -> None:
            self.use(self.optimizer, setup)
            self.fit(numbers)

        return Action(f"compile again, fit {numbers}", body)

    def do_freeze(self) -> Action:
        name = self.rng.choice([EMBEDDING, TRUNK, *map(head, range(HEADS))])
        setup = self.setup = replace(self.setup, frozen=self.setup.frozen ^ {name})
        if len(setup.frozen) > 2:
            setup = self.setup = replace(setup, frozen=frozenset({name}))
        numbers = self.draw_fit()

        def body() -> None:
            self.use(self.optimizer, setup)
            self.fit(numbers)

        return Action(f"freeze {sorted(setup.frozen)}, fit {numbers}", body)

    def do_resume(self) -> Action:
        saved, present = self.saved, self.setup
        alike = ("kind", "settings", "graph", "options", "warmup", "frozen")
        new = self.rng.random() < 0.6 or any(getattr(saved, name) != getattr(present, name) for name in alike)
        new = new or (saved.meant != present.meant and 1 in (saved.members, present.members))
        how = self.rng.choice(["own", "rank 0's", "broadcast"])
        raises, goes_on = "never", False
        if new:
            setup = replace(saved, members=self.draw_members()) if self.rng.random() < 0.5 else saved
            self.known, self.before = {}, self.saved_known
            raises = "maybe" if saved.frozen else raises  # an optimizer is made of all variables first
        elif saved.meant != present.meant:
            how = self.rng.choice(["own", "rank 0's"])
            raises, goes_on, setup = "always", True, present
        else:
            setup, raises = present, "maybe"  # other buckets, or one rank alone
        if setup.members < self.ranks:
            how = self.rng.choice(["own", "rank 0's"])
        self.setup = setup
        numbers = [] if goes_on else self.draw_fit()

        def body() -> None:
            if new:
                self.begin(setup)
            self.callbacks = []
            self.load(how, saved)
            if numbers:
                self.fit(numbers, self.callbacks)

        text = f"resume {'anew' if new else 'in place'}, of {how}, saved {saved}, now {setup}, fit {numbers}"
        return Action(text, body, raises, goes_on)

    def do_save_model(self) -> Action:
        """Save the model on rank 0, load it everywhere, and wrap the plain optimizer that it has anew."""
        if self.setup.kind != "compressed_adam":
            self.setup = self.draw_compression(self.setup, keeps=self.setup.momentum == 0)
        self.known, self.before, self.saved = {}, frozenset(), None
        setup, numbers = self.setup, self.draw_fit()

        def body() -> None:
            path = f"{self.folder.name}/model.keras"
            self.model.save(path)
            path = hvd.broadcast_object(path, name="path", process_set=self.process_sets[setup.members])
            self.model = keras.models.load_model(path)
            adam = setup.kind == "compressed_adam"
            optimizer = self.adam(setup) if adam else self.wrapped(self.model.optimizer, setup)
            self.use(optimizer, setup)
            self.fit(numbers)

        return Action(f"save the model and load it, now {setup}, fit {numbers}", body)

    def do_set_compression(self) -> Action:
        former = self.setup
        setup = self.draw_compression(former, keeps=True)
        refused = setup.keeps and former.momentum != 0
        if not refused:
            self.before = self.known.pop(self.plan, self.before)
            self.known = {} if not setup.frozen else self.known
            self.setup = setup
        numbers = [] if refused or self.rng.random() < 0.4 else self.draw_fit()

        def body() -> None:
            self.change(setup.spec, setup.rules)
            if numbers:
                self.fit(numbers)

        text = f"set_compression({setup.spec}, {setup.rules}), fit {numbers}"
        return Action(text, body, "always" if refused else "never", goes_on=True)

    def change(self, spec: str, rules: Any = None) -> None:
        self.optimizer.set_compression(spec, rules)
        self.model.make_train_function(force=True)

    def do_rate(self) -> Action:
        rate = self.rng.choice([0.02, 0.005])
        return Action(f"lr = {rate}", lambda: setattr(self.optimizer, "learning_rate", rate))

    def do_momentum(self) -> Action:
        """Give the optimizer a second momentum, which is refused, and take it away again."""
        if not (self.setup.keeps and self.setup.kind == "sgd" and not self.setup.graph):
            return self.do_train()
        first, second = self.draw_fit(1), self.draw_fit(1)

        def body() -> None:
            self.optimizer.momentum = 0.9
            try:
                self.fit(first)
            except ValueError as error:
                if KEEPS not in str(error):
                    raise
            else:
                raise ValueError("a second momentum was not refused")
            self.optimizer.momentum = 0.0
            self.fit(second)

        return Action(f"momentum = 0.9, refused, and 0 again, fit {first}, {second}", body)

    def do_nan(self) -> Action:
        numbers, rank = self.draw_fit(), self.rng.randrange(self.setup.members)
        bad, row = self.rng.choice(["nan", "inf"]), self.rng.randrange(BATCH * len(numbers))

        def body() -> None:
            weights = np.ones(BATCH * len(numbers), np.float32)
            if self.rank == rank:
                weights[row] = float(bad)
            self.fit(numbers, weights=weights)

        return Action(f"{bad} in row {row} of rank {rank}, fit {numbers}", body)

    def do_one_rank(self) -> Action:
        if self.alone:
            return self.do_train()
        rank, setup, spec = self.rng.randrange(self.setup.members), self.setup, self.draw_spec(keeps=False)
        what = self.rng.choice(["load", "freeze", *["set_compression"] * (setup.kind != "compressed_adam")])
        frozen = replace(setup, frozen=setup.frozen ^ {TRUNK})
        before, after = self.draw_fit(), self.draw_fit(2)

        def body() -> None:
            path = f"{self.folder.name}/alone"
            self.checkpoint.write(path)
            self.fit(before)
            if self.rank == rank:
                if what == "load":
                    self.checkpoint.read(path)
                elif what == "freeze":
                    self.use(self.optimizer, frozen)
                else:
                    self.change(spec)
            self.fit(after)

        return Action(f"rank {rank} alone: {what} {spec}, fit {before}, {after}", body, "always")
