"""Lightning with an optimizer of this package under Horovod: what ranks are told of settings that would do nothing."""

import json
import logging

import horovod.torch as hvd
import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

import hvd_compress.torch as hvdc


class Module(lightning.LightningModule):
    def __init__(self, passes):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.passes = torch.nn.Linear(64, 64), passes

    def training_step(self, batch, number):
        return self.net(batch[0]).square().sum()

    def configure_optimizers(self):
        inner = torch.optim.SGD(self.parameters(), lr=0.001)
        passes = {"backward_passes_per_step": self.passes}
        return hvdc.DistributedOptimizer(inner, self.named_parameters(), "topk(ratio=0.1)", **passes)


def fit(passes=1, **settings):
    model = Module(passes)
    torch.manual_seed(hvd.rank())
    loader = DataLoader(TensorDataset(torch.randn(64, 64)), batch_size=4)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(accelerator="cpu", devices=1, max_epochs=1, **quiet, **settings)
    try:
        trainer.fit(model, loader)
    except (RuntimeError, AssertionError) as error:
        return str(error)
    every = hvd.allgather(torch.cat([p.detach().reshape(-1) for p in model.parameters()])[None], name="weights")
    return "same weights" if all(torch.equal(row, every[0]) for row in every) else "different weights"


logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
hvd.init()
print(
    json.dumps(
        {
            "clipped": fit(gradient_clip_val=0.001),
            "accumulated": fit(accumulate_grad_batches=4),
            "announced": fit(passes=4, accumulate_grad_batches=4),
        }
    ),
    flush=True,
)
