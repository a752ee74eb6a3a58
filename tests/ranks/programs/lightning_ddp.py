"""A training by Lightning, under torchrun, compressed: each rank prints a digest of its weights, and what it sent."""

import json
import zlib

import lightning
import torch
from torch import nn

from hvd_compress.torch import ddp


class Compress(lightning.Callback):
    """Registers the hook as soon as Lightning has wrapped the model."""

    def on_train_start(self, trainer, module):
        self.compression = ddp.register(trainer.strategy.model, "topk(ratio=0.05)")


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 10))

    def training_step(self, batch, number):
        return nn.functional.mse_loss(self.model(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


lightning.seed_everything(0)
data = torch.utils.data.TensorDataset(torch.randn(256, 40), torch.randn(256, 10))
compress = Compress()
trainer = lightning.Trainer(
    accelerator="cpu",
    devices=2,
    strategy="ddp",
    max_epochs=2,
    callbacks=[compress],
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
module = Module()
trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=16))
weights = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
print(json.dumps({"digest": zlib.crc32(weights.numpy()), **compress.compression.compression_stats()}), flush=True)
