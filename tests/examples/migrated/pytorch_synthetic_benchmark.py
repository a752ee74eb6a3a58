"""Steps a second with made-up data, in the style of Horovod's synthetic benchmark."""

import argparse
import timeit

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import hvd_compress.torch as hvd  # was: import horovod.torch as hvd

parser = argparse.ArgumentParser()
parser.add_argument("--batch-size", type=int, default=8)
parser.add_argument("--num-warmup-batches", type=int, default=2)
parser.add_argument("--num-batches-per-iter", type=int, default=3)
parser.add_argument("--num-iters", type=int, default=2)
parser.add_argument("--compression", default="powersgd")
args = parser.parse_args()

hvd.init()
torch.manual_seed(hvd.rank())
torch.set_num_threads(1)
model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 128), nn.ReLU(), nn.Linear(128, 100))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01 * hvd.size())
optimizer = hvd.DistributedOptimizer(
    optimizer, named_parameters=model.named_parameters(), compression=hvd.Compression.parse(args.compression)
)
hvd.broadcast_parameters(model.state_dict(), root_rank=0)
hvd.broadcast_optimizer_state(optimizer, root_rank=0)
data, target = torch.randn(args.batch_size, 3, 16, 16), torch.randint(0, 100, (args.batch_size,))


def benchmark_step():
    optimizer.zero_grad()
    functional.cross_entropy(model(data), target).backward()
    optimizer.step()


timeit.timeit(benchmark_step, number=args.num_warmup_batches)
rates = []
for _ in range(args.num_iters):
    seconds = timeit.timeit(benchmark_step, number=args.num_batches_per_iter)
    rates.append(args.batch_size * args.num_batches_per_iter / seconds)
if hvd.rank() == 0:
    print(f"Img/sec per rank: {np.mean(rates):.1f} +-{1.96 * np.std(rates):.1f}", flush=True)
print(f"checksum {sum(p.double().sum().item() for p in model.parameters()):.17g}", flush=True)
