"""A training in an elastic job, under Keras 3; see `elastic_events`. "tape SPEC" is a loop with a tape of its own."""

import zlib

import horovod.tensorflow as hvd
import keras
import numpy as np
import tensorflow as tf
from elastic_events import SPEC, STEPS, next_event, write

import hvd_compress.tensorflow as hvdc_tensorflow
import hvd_compress.tensorflow.keras as hvdc
from hvd_compress.tensorflow import elastic

hvd.init()
tf.config.threading.set_intra_op_parallelism_threads(1)
keras.utils.set_random_seed(0)
teacher = np.random.default_rng(0).normal(size=(20, 10)).astype(np.float32)
model = keras.Sequential([keras.Input((20,)), keras.layers.Dense(40, "tanh"), keras.layers.Dense(10)])
if SPEC.startswith("adam "):
    optimizer = hvdc.CompressedAdam(0.02, warmup_steps=10, compression=SPEC.removeprefix("adam "), dense_below=0)
elif SPEC.startswith("tape "):
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
else:
    sgd = keras.optimizers.SGD(0.1, momentum=0.0 if "dgc" in SPEC else 0.9)
    optimizer = hvdc.DistributedOptimizer(sgd, compression=SPEC, dense_below=0)
model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))


def batch(seed, size=32):
    x = np.random.default_rng(seed).normal(size=(size, 20)).astype(np.float32)
    return x, (x @ teacher).argmax(axis=1)


def train_with_tape(x, y):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, model(x), from_logits=True))
    tape = hvdc_tensorflow.DistributedGradientTape(tape, compression=SPEC.removeprefix("tape "), dense_below=0)
    optimizer.apply_gradients(
        zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
    )


train_on = train_with_tape if SPEC.startswith("tape ") else model.train_on_batch


def digests():
    weights = np.concatenate([weight.numpy().reshape(-1) for weight in model.weights])
    return hvd.allgather_object(zlib.crc32(weights.tobytes()))


@elastic.run
def train(state):
    while state.step < STEPS:
        next_event(state, hvd)
        train_on(*batch(1000 * state.step + hvd.rank()))
        state.step += 1
        write(hvd, step=state.step, size=hvd.size(), digests=digests())
        state.commit()


train(elastic.KerasState(model, step=0, events=0))
x, y = batch(999_999, 2000)
tape = SPEC.startswith("tape ")
stats = hvdc_tensorflow.compression_stats(model.trainable_variables) if tape else optimizer.compression_stats()
accuracy = float((np.asarray(model(x)).argmax(axis=1) == y).mean())
write(hvd, accuracy=accuracy, lost=stats["workers_lost"], steps=stats["steps"])
