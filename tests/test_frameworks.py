"""A model that PyTorch and TensorFlow train ends with the same weights."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TRAIN = Path(__file__).parent / "frameworks" / "train.py"
MPIRUN = ["mpirun", "--allow-run-as-root", "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none", "-np"]


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("spec", ["none", "topk(ratio=0.05)"])
def test_both_frameworks_end_with_the_same_weights(spec, ranks, tmp_path):
    trained = {}
    for framework in ("torch", "tensorflow"):
        command = [*MPIRUN, str(ranks), sys.executable, str(TRAIN), framework, spec, str(tmp_path / framework)]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False, env=env)
        assert done.returncode == 0, done.stderr[-3000:]
        of_ranks = []
        for rank in range(ranks):
            with np.load(tmp_path / f"{framework}-{rank}.npz") as file:
                of_ranks.append(np.concatenate([file[name].reshape(-1) for name in file.files]))
        assert all(np.array_equal(weights, of_ranks[0]) for weights in of_ranks)
        trained[framework] = of_ranks[0]
    assert np.allclose(trained["torch"], trained["tensorflow"], atol=1e-5)
