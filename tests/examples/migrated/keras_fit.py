"""`model.fit` under Horovod, in the style of its example for Keras."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import hvd_compress.tensorflow.keras as hvd  # was: import horovod.keras as hvd

hvd.init()
random = np.random.default_rng(hvd.rank())
images, labels = random.standard_normal((128, 8, 8, 1)).astype(np.float32), random.integers(0, 10, 128)
model = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(8, [3, 3], activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dropout(0.25),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
scaled_lr = 0.001 * hvd.size()
opt = hvd.DistributedOptimizer(
    keras.optimizers.Adam(scaled_lr),
    backward_passes_per_step=1,
    average_aggregated_gradients=True,
    compression=hvd.Compression.topk(ratio=0.05),
)
model.compile(loss="sparse_categorical_crossentropy", optimizer=opt, metrics=["accuracy"])
callbacks = [
    hvd.BroadcastAtStart(0),  # was: hvd.callbacks.BroadcastGlobalVariablesCallback(0)
    hvd.MetricAverage(),  # was: hvd.callbacks.MetricAverageCallback()
    hvd.LearningRateWarmup(scaled_lr, warmup_epochs=1, verbose=1),  # was: ...LearningRateWarmupCallback(...)
]
if hvd.rank() == 0:
    callbacks.append(keras.callbacks.ModelCheckpoint("checkpoint-{epoch}.keras"))
model.fit(images, labels, batch_size=16, epochs=2, callbacks=callbacks, verbose=0)
print(
    f"checksum {sum(float(np.sum(np.asarray(v), dtype=np.float64)) for v in model.trainable_variables):.17g}",
    flush=True,
)
