"""Train under DDP on whatever processes torchrun starts, on one GPU; say whether the weights are equal, and the loss.

With `mixed`, the odd ranks train on the CPU.
"""

import json
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hvd_compress.torch import ddp

spec, backend, mixed = sys.argv[1], sys.argv[2], "mixed" in sys.argv
dist.init_process_group(backend)
rank = dist.get_rank()
device = torch.device("cuda:0" if torch.cuda.is_available() and not (mixed and rank % 2) else "cpu")
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)).to(device)
wrapped = DistributedDataParallel(model, broadcast_buffers=False)
compression = ddp.register(wrapped, spec, bucket_bytes=100_000, dense_below=0)
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
generator = torch.Generator().manual_seed(rank)
target = torch.randn(64, 10, generator=torch.Generator().manual_seed(99))
losses = []
for _ in range(60):
    x = torch.randn(64, 64, generator=generator)
    y = (x @ target).argmax(1)
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(wrapped(x.to(device)), y.to(device))
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
flat = torch.cat([p.detach().reshape(-1).cpu() for p in model.parameters()])
gathered = [None] * dist.get_world_size()
dist.all_gather_object(gathered, flat.numpy().tobytes())
if rank == 0:
    same = all(weights == gathered[0] for weights in gathered)
    sent = compression.compression_stats()
    print(json.dumps({"spec": spec, "same": same, "first": losses[0], "last": losses[-1], "steps": sent["steps"]}))
dist.destroy_process_group()
