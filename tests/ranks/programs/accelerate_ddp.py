"""A training by Accelerate, under torchrun, compressed: each rank prints a digest of its weights, and what it sent."""

import json
import zlib

import accelerate
import torch
from torch import nn

from hvd_compress.torch import ddp

accelerator = accelerate.Accelerator(cpu=True)
accelerate.utils.set_seed(0)
model = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
data = torch.utils.data.TensorDataset(torch.randn(256, 40), torch.randn(256, 10))
model, optimizer, loader = accelerator.prepare(model, optimizer, torch.utils.data.DataLoader(data, batch_size=16))
compression = ddp.register(model, "topk(ratio=0.05)")
for _ in range(2):
    for inputs, targets in loader:
        optimizer.zero_grad()
        accelerator.backward(nn.functional.mse_loss(model(inputs), targets))
        optimizer.step()
weights = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
print(json.dumps({"digest": zlib.crc32(weights.numpy()), **compression.compression_stats()}), flush=True)
accelerator.end_training()
