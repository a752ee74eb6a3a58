import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import horovod.tensorflow as hvd
import pytest
import tensorflow as tf
from tensorflow_ranks import SECOND


@pytest.fixture(scope="session", autouse=True)
def _horovod():
    tf.config.threading.set_intra_op_parallelism_threads(1)
    hvd.init(process_sets=[SECOND])
    yield
    hvd.shutdown()


@pytest.fixture(autouse=True)
def _together(_horovod):
    """Begin each test on all ranks together, after all have ended the one before."""
    hvd.allreduce(tf.zeros(1), name="together")
