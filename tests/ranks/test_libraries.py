"""Libraries that wrap a model in DDP for their users: one more line compresses, and the ranks stay together."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.jobs, pytest.mark.slow]

EXAMPLES = Path(__file__).parents[2] / "examples" / "torch"


@pytest.mark.parametrize("library", ["lightning", "accelerate"])
def test_the_ranks_have_the_same_weights_and_have_sent_less(library):
    command = ["torchrun", "--standalone", "--nproc-per-node", "2", str(EXAMPLES / f"train_{library}.py")]
    command += ["--compression", "topk(ratio=0.05)", "--rule", "*.bias=none", "--epochs", "3"]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same_weights"]
    assert found["steps"] == 66
    assert 10 < found["dense_bytes"] / found["bytes_sent"] < 20
    assert found["accuracy"] > 0.85
    assert "66/66" in done.stderr


CHECK = """
import json, torch.distributed as dist
weights = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
every = [torch.empty_like(weights) for _ in range(2)]
dist.all_gather(every, weights)
torch.manual_seed(0)
moved = weights - torch.cat([p.detach().reshape(-1) for p in torch.nn.Linear(64, 64).parameters()])
steps = (compress.compression if "compress" in globals() else compression).compression_stats()["steps"]
if dist.get_rank() == 0:
    print(json.dumps({"same": torch.equal(*every), "moved": float(moved.norm()), "steps": steps}))
"""


@pytest.mark.parametrize("library", ["lightning", "accelerate"])
def test_the_scripts_of_the_documents_clip_and_accumulate(library, tmp_path):
    """Two steps of a rate of 0.1, each of a gradient that is clipped to a norm of 0.001, and what is left over."""
    page = (EXAMPLES.parents[1] / "docs" / "migrating.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    [code] = [block for block in blocks if re.search(rf"^(import|from) {library}\b", block, re.MULTILINE)]
    (tmp_path / "train.py").write_text(code + CHECK)
    command = ["torchrun", "--standalone", "--nproc-per-node", "2", "train.py"]
    done = subprocess.run(command, cwd=tmp_path, timeout=120, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same"]
    assert found["steps"] == 2
    assert 0 < found["moved"] <= 2 * 0.1 * 0.001 * 1.001


def test_lightning_refuses_what_would_have_no_effect_on_horovods_way(tmp_path):
    """Clipping of gradients that are on their way, and more passes than the optimizer knows of."""
    done = subprocess.run(
        ["mpirun", "-np", "2", sys.executable, str(Path(__file__).parent / "programs" / "lightning_horovod.py")],
        timeout=200,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(said) == 2
    for found in said:
        assert "was changed after loss.backward()" in found["clipped"]
        assert "more than backward_passes_per_step times" in found["accumulated"]
        assert found["announced"] == "same weights"
