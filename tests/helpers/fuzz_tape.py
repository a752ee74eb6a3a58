"""Random training scripts with this package's `DistributedGradientTape`, eagerly or in a `tf.function`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf
from fuzz_scripts import HEADS, Action, Pass
from fuzz_tensorflow import TRUNK, TensorFlowScript, TensorFlowSetup, head, new_model

import hvd_compress.tensorflow as hvdc
from hvd_compress.tensorflow.reducer import reducer_of, reduction_settings


@dataclass(frozen=True, kw_only=True)
class TapeSetup(TensorFlowSetup):
    """Of a tape; `made` is the compression that the tapes are made with, which may have been changed since."""

    made: tuple[str, Any] = ("none", ())


class Script(TensorFlowScript):
    """A script with a tape, and a plain optimizer of Keras."""

    state: Any  # of the compressors

    # --- what is drawn

    def draw_setup(self) -> TapeSetup:
        rng = self.rng
        setup = TapeSetup(
            kind=rng.choice(["sgd", "sgd", "adam"]),
            momentum=rng.choice([0.0, 0.9]),
            lr=rng.choice([0.01, 0.001]),
            graph=rng.random() < 0.15,
            settings=self.draw_all_settings(),
            members=self.draw_members(),
        )
        setup = self.draw_compression(setup, keeps=True)
        return replace(setup, made=(setup.spec, setup.rules))

    # --- what scripts are made of

    def begin(self, setup: TapeSetup) -> None:
        self.model = new_model(self.base)
        self.optimizer = self.plain(setup)
        self.optimizer.build(self.variables)
        spec, rules = setup.made
        settings = reduction_settings(spec, rules=rules, **setup.settings)
        self.state = reducer_of(self.variables, settings, self.process_sets[setup.members])
        self.trace()

    @property
    def variables(self) -> list[Any]:
        return self.model.trainable_variables

    @property
    def checkpoint(self) -> tf.train.Checkpoint:
        return tf.train.Checkpoint(model=self.model, optimizer=self.optimizer, compression=self.state)

    def trace(self) -> None:
        """Make the function of a step anew."""
        self.function = tf.function(self.gradients, autograph=False) if self.setup.graph else self.gradients

    def wrapped(self, tape: tf.GradientTape) -> Any:
        setup = self.setup
        spec, rules = setup.made
        process_set = self.process_sets[setup.members]
        return hvdc.DistributedGradientTape(
            tape, compression=spec, rules=rules, process_set=process_set, **setup.settings
        )

    def gradients(self, ids: tf.Tensor, heads: tuple[int, ...], embeds: bool, factor: tf.Tensor) -> list[Any]:
        with tf.GradientTape() as tape:
            loss = self.loss(ids, heads, embeds) * factor
        return self.wrapped(tape).gradient(loss, self.variables)

    def means(self, one: Pass, factor: float = 1.0) -> list[Any]:
        ids, used = tf.constant(self.ids(one)), (one.heads[self.rank], one.embeds[self.rank])
        return self.function(ids, *used, tf.constant(factor))

    def step(self, one: Pass) -> None:
        self.optimizer.apply(self.means(one), self.variables)

    def broadcast(self, process_set: Any) -> None:
        variables = [*self.model.weights, *self.optimizer.variables]
        hvdc.broadcast_variables(variables, root_rank=0, process_set=process_set)

    # --- actions

    @property
    def actions(self) -> dict[Callable[[], Action], int]:
        return {
            self.do_train: 5,
            self.do_skip: 1,
            self.do_alone: 1,
            self.do_save: 4,
            self.do_resume: 5 if self.saved else 0,
            self.do_set_compression: 3,
            self.do_rate: 1,
            self.do_nan: 2,
            self.do_other_tape: 1,
            self.do_allreduce: 1,
            self.do_trace: 1 if self.setup.graph else 0,
            self.do_one_rank: 1,
        }

    def do_resume(self) -> Action:
        saved, present = self.saved, self.setup
        alike = ("kind", "settings", "graph")
        new = self.rng.random() < 0.6 or any(getattr(saved, name) != getattr(present, name) for name in alike)
        new = new or (saved.meant != present.meant and 1 in (saved.members, present.members))
        how = self.rng.choice(["own", "rank 0's", "broadcast"])
        raises, goes_on = "never", False
        if new:
            # A new job: the tape is made with what the former one had at last.
            setup = replace(saved, made=(saved.spec, saved.rules))
            if self.rng.random() < 0.5:
                setup = replace(setup, members=self.draw_members())
            self.known, self.before = {}, self.saved_known
        elif saved.meant != present.meant:
            how = self.rng.choice(["own", "rank 0's"])
            raises, goes_on, setup = "always", True, present
        else:
            setup, raises = present, "maybe"  # other buckets, or one rank alone
        if setup.members < self.ranks:
            how = self.rng.choice(["own", "rank 0's"])
        self.setup = setup
        trainings = [] if goes_on else self.draw_trainings()

        def body() -> None:
            if new:
                self.begin(setup)
            self.load(how, saved)
            self.train(trainings)

        text = f"resume {'anew' if new else 'in place'}, of {how}, saved {saved}, now {setup}, {trainings}"
        return Action(text, body, raises, goes_on)

    def change(self, spec: str, rules: Any = None) -> None:
        hvdc.set_compression(self.variables, spec, rules)
        self.trace()

    def do_set_compression(self) -> Action:
        self.before = self.known.pop(self.plan, self.before)
        setup = self.setup = self.draw_compression(self.setup, keeps=True)
        self.known = {}
        trainings = [] if self.rng.random() < 0.4 else self.draw_trainings()

        def body() -> None:
            self.change(setup.spec, setup.rules)
            self.train(trainings)

        return Action(f"set_compression({setup.spec}, {setup.rules}), {trainings}", body)

    def do_rate(self) -> Action:
        rate = self.rng.choice([0.02, 0.005])
        return Action(f"lr = {rate}", lambda: setattr(self.optimizer, "learning_rate", rate))

    def do_nan(self) -> Action:
        one, rank = self.draw_training(), self.rng.randrange(self.setup.members)
        bad, skips, trainings = self.rng.choice(["nan", "inf"]), self.rng.random() < 0.7, self.draw_trainings()

        def body() -> None:
            means = self.means(one, float(bad) if self.rank == rank else 1.0)
            parts = [part for mean in means if mean is not None for part in tf.nest.flatten(mean, True)]
            if all(np.isfinite(part).all() for part in parts):
                raise ValueError(f"{bad} of rank {rank} has not come here")
            if skips:
                self.train(trainings)
            else:
                self.optimizer.apply(means, self.variables)

        return Action(f"{bad} on rank {rank}, skipped: {skips}, {one}, {trainings}", body)

    def do_other_tape(self) -> Action:
        """Take some steps of a part of the variables, with a tape of its own."""
        spec = self.draw_spec(keeps=True)
        layer, persistent = self.rng.choice([TRUNK, head(0)]), self.rng.random() < 0.5
        one = self.whole(self.draw_pass())
        process_set, ids = self.process_sets[self.setup.members], self.ids(one)

        def body() -> None:
            variables = self.model.get_layer(layer).trainable_variables
            with tf.GradientTape(persistent=persistent) as tape:
                loss = self.loss(tf.constant(ids), tuple(range(HEADS)), True)
            tape = hvdc.DistributedGradientTape(tape, compression=spec, process_set=process_set, dense_below=0)
            for _ in range(2 if persistent else 1):
                for variable, mean in zip(variables, tape.gradient(loss, variables), strict=True):
                    variable.assign_sub(0.01 * mean)

        return Action(f"another tape, of {layer}, with {spec}, persistent: {persistent}", body)

    def do_allreduce(self) -> Action:
        spec, one = self.draw_spec(keeps=True), self.draw_pass()
        name, process_set = f"fuzz {spec}", self.process_sets[self.setup.members]
        own = np.random.default_rng([self.base, one.number, self.rank]).standard_normal((12, 10)).astype(np.float32)

        def body() -> None:
            mean = hvdc.allreduce(tf.constant(own), name, spec, process_set=process_set)
            self.model.get_layer(head(0)).kernel.assign_sub(0.01 * mean)

        return Action(f"allreduce with {spec}", body)

    def do_trace(self) -> Action:
        trainings = self.draw_trainings()

        def body() -> None:
            self.trace()
            self.train(trainings)

        return Action(f"trace anew, {trainings}", body)

    def do_one_rank(self) -> Action:
        if self.alone:
            return self.do_train()
        spec, rank = self.draw_spec(keeps=True), self.rng.randrange(self.setup.members)
        what, trainings = self.rng.choice(["load", "set_compression"]), [*self.draw_trainings(), self.draw_training()]

        def body() -> None:
            state = self.state.serialize()
            self.train(trainings[:-1])
            if self.rank == rank and what == "load":
                self.state.deserialize(state)
            elif self.rank == rank:
                self.change(spec)
            self.train(trainings[-1:])

        # Where gradients come up for the first time all agree in any case, and a state is taken over.
        raises = "maybe" if what == "load" else "always"
        return Action(f"rank {rank} alone: {what} {spec}, {trainings}", body, raises)
