"""The code of docs/training-scripts.md runs, and leaves the same weights on all ranks."""

import re
from pathlib import Path

import horovod.torch as hvd
import pytest
import torch
from torch import nn
from torch_ranks import flat, same_on_all_ranks

import hvd_compress.torch as hvdc

PAGE = Path(__file__).parents[3] / "docs" / "training-scripts.md"
SECTIONS = [section.split("\n", 1) for section in PAGE.read_text().split("\n## ")[1:]]
BLOCKS = [
    (title, number, block)
    for title, text in SECTIONS
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", text, re.S))
]


@pytest.mark.filterwarnings("ignore:rank . had the compressors' state")
@pytest.mark.parametrize(("title", "number", "block"), BLOCKS, ids=[f"{title}-{i}" for title, i, _ in BLOCKS])
def test_it_runs(title, number, block, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 40))
    torch.manual_seed(1 + hvd.rank())
    names = {
        "hvd": hvd,
        "hvdc": hvdc,
        "torch": torch,
        "model": model,
        "batches": [torch.randn(8, 40) for _ in range(6)],
        "loss_of": lambda batch: model(batch).square().mean(),
        "directory": hvd.broadcast_object(str(tmp_path), root_rank=0, name="directory"),
    }
    before = flat(model).clone()
    exec(compile(block, f"{PAGE.name}, {title}", "exec"), names)
    trained = [names[name] for name in ("generator", "discriminator") if name in names] or [model]
    assert all(same_on_all_ranks(flat(part)) for part in trained)
    assert trained != [model] or not torch.equal(flat(model), before)


def test_the_page_has_what_it_says():
    assert len(BLOCKS) == 7
