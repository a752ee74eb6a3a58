"""What random training scripts under TensorFlow share: the model, which gradients have come up, and checkpoints."""

import tempfile
from dataclasses import dataclass, replace
from typing import Any

import horovod.tensorflow as hvd
import keras
import numpy as np
import tensorflow as tf
from fuzz_scripts import HEADS, Action, Pass, RandomScript, Setup

tf.get_logger().setLevel("ERROR")  # it tells of what is traced anew
TRUNK, EMBEDDING = "trunk", "embedding"


def new_model(seed: int) -> keras.Model:
    """An embedding that may be left out, layers of all shapes, and heads that may be used or not."""
    keras.utils.clear_session()  # else Keras would number names otherwise on ranks that have made more models
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    trunk = [layers.Conv1D(12, 2, activation="relu"), layers.GlobalAveragePooling1D()]
    trunk = keras.Sequential([keras.Input((3, 8)), *trunk], name=TRUNK)
    ids = keras.Input((3,), dtype="int32")
    x = trunk(layers.Embedding(30, 8, name=EMBEDDING)(ids))
    return keras.Model(ids, layers.Concatenate()([layers.Dense(10, name=head(i))(x) for i in range(HEADS)]))


def head(number: int) -> str:
    return f"head{number}"


@dataclass(frozen=True, kw_only=True)
class TensorFlowSetup(Setup):
    """Of a tape or an optimizer; `graph` says that its steps are traced."""

    kind: str
    momentum: float
    lr: float
    graph: bool


class TensorFlowScript(RandomScript):
    """What a script does with a model, and actions that all know.

    A gradient that none has had before must come up on all ranks in the same step, or they raise. What has come up is
    kept for each plan: of the variables that are trained, and the compression.

    Attributes:
        model: None before the first one is made.
        known: by plan, the layers whose gradients have come up, if the plan has been made.
        before: those that a new plan will have besides.
        file: where this rank has saved its state.
    """

    hvd = hvd
    PATTERNS = ("*head*", "*embedding*", "*kernel", "*")
    LENGTHS = (4, 8)  # each new plan is traced, which takes time
    model: keras.Model | None = None

    def __init__(self, *args: Any) -> None:
        self.known: dict[Any, frozenset[str]] = {}
        self.before = self.saved_known = frozenset()
        self.folder = tempfile.TemporaryDirectory()
        self.file = f"{self.folder.name}/state"
        super().__init__(*args)

    @property
    def plan(self) -> Any:
        """What the plan depends on that is followed now."""
        return str(self.setup.meant)

    @property
    def checkpoint(self) -> tf.train.Checkpoint:
        raise NotImplementedError

    # --- what is drawn

    def draw_all_settings(self) -> dict[str, Any]:
        settings = self.draw_settings([1000, 1 << 20], hvd.Sum)
        if self.rng.random() < 0.3:
            settings["sparse_as_dense"] = True
        return settings

    def draw_members(self) -> int:
        return self.rng.choice([self.ranks] * 6 + sorted(self.process_sets))

    def draw_training(self) -> Pass:
        """Draw a step that is legal, of which the plan may grow."""
        one = self.draw_pass()
        if self.setup.graph:  # the same on all ranks
            one = replace(one, heads=one.heads[:1] * self.ranks, embeds=one.embeds[:1] * self.ranks)
        if not self.legal(one):
            one = self.whole(one)
        self.learn(one)
        return one

    def whole(self, one: Pass) -> Pass:
        return replace(one, heads=(tuple(range(HEADS)),) * self.ranks, embeds=(True,) * self.ranks)

    def used(self, one: Pass) -> list[frozenset[str]]:
        """Return the layers that each member uses."""
        pairs = list(zip(one.heads, one.embeds, strict=True))[: self.setup.members]
        return [frozenset([TRUNK, *map(head, heads), *[EMBEDDING] * embeds]) for heads, embeds in pairs]

    def legal(self, one: Pass) -> bool:
        """Tell whether what is new, if anything, is so on all ranks."""
        known = self.known.get(self.plan)
        return known is None or len({bool(used - known) for used in self.used(one)}) == 1

    def learn(self, one: Pass) -> None:
        self.known[self.plan] = self.known.get(self.plan, self.before).union(*self.used(one))

    # --- what scripts are made of

    def start(self) -> Action:
        self.known, self.before = {}, frozenset()
        return super().start()

    def plain(self, setup: Any) -> keras.optimizers.Optimizer:
        """Make a plain optimizer."""
        if setup.kind == "adam":
            return keras.optimizers.Adam(setup.lr)
        return keras.optimizers.SGD(setup.lr, momentum=setup.momentum)

    def ids(self, one: Pass) -> np.ndarray:
        return np.random.default_rng([self.base, one.number, self.rank]).integers(0, 30, (4, 3)).astype(np.int32)

    def loss(self, ids: tf.Tensor, heads: tuple[int, ...], embeds: bool) -> tf.Tensor:
        layer = self.model.get_layer
        floats = tf.tile(tf.cast(ids, tf.float32)[:, :, None], [1, 1, 8])
        x = layer(TRUNK)(layer(EMBEDDING)(ids) if embeds else tf.sin(floats))
        return tf.add_n([tf.reduce_mean(tf.square(layer(head(i))(x) - i)) for i in heads])

    def weights(self) -> np.ndarray:
        if self.model is None:
            return np.zeros(0, np.float32)
        return np.concatenate([np.asarray(w).reshape(-1) for w in self.model.weights])

    def load(self, how: str, saved: Any) -> None:
        """Load this rank's own state, or rank 0's on all ranks, or on rank 0 alone, which broadcasts the variables."""
        process_set = self.process_sets[self.setup.members]
        rank_0s = hvd.broadcast_object(self.file, name="file", process_set=process_set)
        if how != "broadcast":
            self.checkpoint.read(self.file if how == "own" and self.rank < saved.members else rank_0s)
            return
        if self.rank == 0:
            self.checkpoint.read(rank_0s)
        self.broadcast(process_set)

    def broadcast(self, process_set: Any) -> None:
        raise NotImplementedError

    # --- actions

    def do_skip(self) -> Action:
        one = self.draw_pass()
        ids = self.ids(one)
        return Action(f"skip a batch after its forward pass {one}", lambda: self.loss(ids, (0,), True) and None)

    def do_save(self) -> Action:
        self.saved, self.saved_known = self.setup, self.known.get(self.plan, self.before)
        trainings = self.draw_trainings() if self.rng.random() < 0.5 else []

        def body() -> None:
            self.checkpoint.write(self.file)
            self.train(trainings)

        return Action(f"save, {trainings}", body)

    def do_alone(self) -> Action:
        """Use on some ranks alone what none has used before."""
        known = self.known.get(self.plan)
        new = [i for i in range(HEADS) if known is not None and head(i) not in known]
        if not new or self.alone or self.setup.graph:
            return self.do_train()
        one, rank = self.whole(self.draw_pass()), self.rng.randrange(self.setup.members)
        heads = tuple(tuple(new if i == rank else set(range(HEADS)) - set(new)) or (0,) for i in range(self.ranks))
        one = replace(one, heads=heads)
        return Action(f"rank {rank} alone uses new heads {one}", lambda: self.step(one), "always", goes_on=True)
