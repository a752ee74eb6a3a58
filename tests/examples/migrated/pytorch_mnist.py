"""A classifier of images under Horovod, in the style of its example of MNIST."""

import argparse

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import hvd_compress.torch as hvd  # was: import horovod.torch as hvd

parser = argparse.ArgumentParser()
parser.add_argument("--batch-size", type=int, default=16)
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--lr", type=float, default=0.01)
parser.add_argument("--compression", default="topk(ratio=0.05)")
parser.add_argument("--use-mixed-precision", action="store_true")
parser.add_argument("--gradient-predivide-factor", type=float, default=1.0)
args = parser.parse_args()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 5)
        self.drop = nn.Dropout2d()
        self.hidden = nn.Linear(8 * 12 * 12, 50)
        self.out = nn.Linear(50, 10)

    def forward(self, x):
        x = functional.relu(functional.max_pool2d(self.drop(self.conv(x)), 2))
        return functional.log_softmax(self.out(functional.relu(self.hidden(x.flatten(1)))), dim=1)


def metric_average(value, name):
    return hvd.allreduce(torch.tensor(value), name=name).item()


hvd.init()
torch.manual_seed(42 + hvd.rank())
torch.set_num_threads(1)
images, labels = torch.randn(256, 1, 28, 28, generator=torch.Generator().manual_seed(1)), torch.arange(256) % 10
images[torch.arange(256), 0, 0, labels] += 20
data = TensorDataset(images, labels)
sampler = DistributedSampler(data, num_replicas=hvd.size(), rank=hvd.rank())
loader = DataLoader(data, batch_size=args.batch_size, sampler=sampler)

model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=args.lr * hvd.size(), momentum=0.5)
hvd.broadcast_parameters(model.state_dict(), root_rank=0)
hvd.broadcast_optimizer_state(optimizer, root_rank=0)
optimizer = hvd.DistributedOptimizer(
    optimizer,
    named_parameters=model.named_parameters(),
    compression=hvd.Compression.parse(args.compression),  # was: hvd.Compression.fp16 if args.fp16 else ...none
    op=hvd.Average,
    gradient_predivide_factor=args.gradient_predivide_factor,
)
scaler = torch.amp.GradScaler("cpu", enabled=args.use_mixed_precision)
for epoch in range(args.epochs):
    model.train()
    sampler.set_epoch(epoch)
    for batch, target in loader:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.use_mixed_precision):
            loss = functional.nll_loss(model(batch).float(), target)
        if args.use_mixed_precision:
            scaler.scale(loss).backward()
            optimizer.synchronize()
            scaler.unscale_(optimizer)
            with optimizer.skip_synchronize():
                scaler.step(optimizer)
            scaler.update()
        else:
            loss.backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        right = (model(images).argmax(1) == labels).float().mean().item()
    average = metric_average(right, "avg_accuracy")
print(f"checksum {sum(p.double().sum().item() for p in model.parameters()):.17g} {average:.4f}", flush=True)
