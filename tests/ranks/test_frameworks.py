"""A model that PyTorch and TensorFlow train ends with the same weights; and Keras 2 under Horovod's own optimizer."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.jobs

FOLDER = Path(__file__).parent / "programs"
SPECS = ["none", "topk(ratio=0.05)"]


def arrays_of(ranks, path, program, *arguments):
    """Run a program that saves arrays on every rank; return those of each, by name."""
    command = ["mpirun", "-np", str(ranks), sys.executable, str(FOLDER / program), *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    of_ranks = []
    for rank in range(ranks):
        with np.load(f"{path}-{rank}.npz") as file:
            of_ranks.append(dict(file))
    return of_ranks


@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_both_frameworks_end_with_the_same_weights(ranks, tmp_path):
    trained = [
        arrays_of(ranks, tmp_path / framework, "train.py", framework, str(tmp_path / framework), *SPECS)
        for framework in ("torch", "tensorflow")
    ]
    for spec in SPECS:
        first = trained[0][0][spec]
        for of_ranks in trained:
            assert all(np.array_equal(arrays[spec], of_ranks[0][spec]) for arrays in of_ranks)
            assert np.allclose(of_ranks[0][spec], first, atol=1e-5)
    assert not np.allclose(trained[0][0]["none"], trained[0][0]["topk(ratio=0.05)"], atol=1e-5)


def test_fit_of_keras_2_leaves_the_same_weights_on_all_ranks(tmp_path):
    specs = ["horovod", *SPECS]
    first, second = arrays_of(2, tmp_path / "fit", "fit_tf_keras.py", str(tmp_path / "fit"), *specs)
    assert np.array_equal(first["none"], first["horovod"])
    for spec in specs:
        assert np.array_equal(first[spec], second[spec])
        before, after, _ = first[f"numbers of {spec}"]
        assert after < 0.5 * before
    assert first["numbers of topk(ratio=0.05)"][2] < 0.2 * first["numbers of none"][2]
