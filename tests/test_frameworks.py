"""A model that PyTorch and TensorFlow train ends with the same weights; and Keras 2 under Horovod's own optimizer."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parent / "frameworks"
MPIRUN = ["mpirun", "--allow-run-as-root", "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none", "-np"]


def arrays_of(ranks, program, *arguments, path):
    """Run a program that saves arrays on every rank; return those of each."""
    command = [*MPIRUN, str(ranks), sys.executable, str(FOLDER / program), *arguments, str(path)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    of_ranks = []
    for rank in range(ranks):
        with np.load(f"{path}-{rank}.npz") as file:
            of_ranks.append([file[name] for name in file.files])
    return of_ranks


def weights_of(of_ranks):
    """Return what all ranks have, in one array."""
    flat = [np.concatenate([array.reshape(-1) for array in arrays]) for arrays in of_ranks]
    assert all(np.array_equal(weights, flat[0]) for weights in flat)
    return flat[0]


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("spec", ["none", "topk(ratio=0.05)"])
def test_both_frameworks_end_with_the_same_weights(spec, ranks, tmp_path):
    trained = [
        weights_of(arrays_of(ranks, "train.py", framework, spec, path=tmp_path / framework))
        for framework in ("torch", "tensorflow")
    ]
    assert np.allclose(*trained, atol=1e-5)


def test_fit_of_keras_2_leaves_the_same_weights_on_all_ranks(tmp_path):
    trained, numbers = {}, {}
    for spec in ("horovod", "none", "topk(ratio=0.05)"):
        of_ranks = arrays_of(2, "fit_tf_keras.py", spec, path=tmp_path / "fit")
        numbers[spec] = of_ranks[0].pop()
        of_ranks[1].pop()
        trained[spec] = weights_of(of_ranks)
    assert np.array_equal(trained["none"], trained["horovod"])
    for first, last, _ in numbers.values():
        assert last < 0.5 * first
    assert numbers["topk(ratio=0.05)"][2] < 0.2 * numbers["none"][2]
