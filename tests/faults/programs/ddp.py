"""A training under DDP whose rank 1 has a fault in its fourth step, whoever has started the ranks: `ddp.py FAULT`."""

import logging
import os
import signal
import sys
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from hvd_compress.torch import ddp

FAULT = sys.argv[1]
logging.basicConfig()
torch.set_num_threads(1)
dist.init_process_group("gloo")
torch.manual_seed(0)
model = DistributedDataParallel(torch.nn.Sequential(*[torch.nn.Linear(60, 60) for _ in range(4)]))
own = dist.get_rank() == 1
compression = ddp.register(model, "topk(ratio=0.2)" if FAULT == "disagree" and own else "topk(ratio=0.1)")
if FAULT == "early" and own:
    sys.exit("before its first step")
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for step in range(10):
    optimizer.zero_grad()
    loss = model(torch.randn(8, 60)).square().mean()
    if step == 3 and own:
        if FAULT == "kill":
            model.module[0].weight.register_hook(lambda _: os.kill(os.getpid(), signal.SIGKILL))
        elif FAULT == "raise":
            model.module[0].weight.register_hook(lambda _: 1 / 0)
        elif FAULT == "change":
            compression.set_compression("powersgd")
        elif FAULT == "stop":
            time.sleep(1000)
    loss.backward()
    optimizer.step()
if FAULT == "none":
    dist.destroy_process_group()
