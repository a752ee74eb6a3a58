"""A training loop by hand, in the style of Horovod's example for TensorFlow 2, with Keras 3's layers."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

import hvd_compress.tensorflow as hvd  # was: import horovod.tensorflow as hvd

hvd.init()
random = np.random.default_rng(hvd.rank())
images, labels = random.standard_normal((128, 8, 8, 1)).astype(np.float32), random.integers(0, 10, 128)
dataset = tf.data.Dataset.from_tensor_slices((images, labels)).repeat().shuffle(100, seed=hvd.rank()).batch(16)
model = tf.keras.Sequential(
    [
        tf.keras.layers.Conv2D(8, [3, 3], activation="relu"),
        tf.keras.layers.Flatten(),
        tf.keras.layers.Dense(10, activation="softmax"),
    ]
)
loss = tf.losses.SparseCategoricalCrossentropy()
opt = tf.optimizers.Adam(0.001 * hvd.size())


@tf.function
def training_step(images, labels, first_batch):
    with tf.GradientTape() as tape:
        loss_value = loss(labels, model(images, training=True))
    tape = hvd.DistributedGradientTape(tape, compression=hvd.Compression.topk(ratio=0.05))
    grads = tape.gradient(loss_value, model.trainable_variables)
    opt.apply_gradients(zip(grads, model.trainable_variables, strict=True))
    if first_batch:
        hvd.broadcast_variables(model.variables, root_rank=0)
        hvd.broadcast_variables(opt.variables, root_rank=0)
    return loss_value


for batch, (some, of_some) in enumerate(dataset.take(20 // hvd.size())):
    value = training_step(some, of_some, batch == 0)
    if batch % 5 == 0 and hvd.local_rank() == 0:
        print(f"Step #{batch}\tLoss: {float(value):.6f}")
checkpoint = tf.train.Checkpoint(model=model, optimizer=opt)
if hvd.rank() == 0:
    checkpoint.save("checkpoints/ckpt")
total = sum(float(np.sum(np.asarray(v), dtype=np.float64)) for v in model.trainable_variables)
print(f"checksum {total:.17g}", flush=True)
