"""Training that saves after each epoch and resumes, in the style of Horovod's example of ImageNet."""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

import hvd_compress.torch as hvd  # was: import horovod.torch as hvd

parser = argparse.ArgumentParser()
parser.add_argument("--checkpoint-format", default="checkpoint-{epoch}.pth.tar")
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--batches-per-allreduce", type=int, default=2)
parser.add_argument("--base-lr", type=float, default=0.0125)
parser.add_argument("--warmup-epochs", type=float, default=1)
parser.add_argument("--compression", default="topk(ratio=0.05)")
args = parser.parse_args()

hvd.init()
torch.manual_seed(hvd.rank())
torch.set_num_threads(1)
resume_from_epoch = 0
for try_epoch in range(args.epochs, 0, -1):
    if Path(args.checkpoint_format.format(epoch=try_epoch)).exists():
        resume_from_epoch = try_epoch
        break
resume_from_epoch = hvd.broadcast(torch.tensor(resume_from_epoch), root_rank=0, name="resume_from_epoch").item()

model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 10))
lr_scaler = args.batches_per_allreduce * hvd.size()
optimizer = torch.optim.SGD(model.parameters(), lr=args.base_lr * lr_scaler, momentum=0.9, weight_decay=5e-5)
optimizer = hvd.DistributedOptimizer(
    optimizer,
    named_parameters=model.named_parameters(),
    compression=hvd.Compression.parse(args.compression),
    backward_passes_per_step=args.batches_per_allreduce,
    op=hvd.Average,
)
if resume_from_epoch > 0 and hvd.rank() == 0:
    checkpoint = torch.load(args.checkpoint_format.format(epoch=resume_from_epoch))
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
hvd.broadcast_parameters(model.state_dict(), root_rank=0)
hvd.broadcast_optimizer_state(optimizer, root_rank=0)


def adjust_learning_rate(epoch, batch, batches):
    done = (epoch + batch / batches) / args.warmup_epochs
    factor = min(1.0, (done * (hvd.size() - 1) + 1) / hvd.size())
    for group in optimizer.param_groups:
        group["lr"] = args.base_lr * lr_scaler * factor


for epoch in range(resume_from_epoch, args.epochs):
    model.train()
    for batch in range(4):
        adjust_learning_rate(epoch, batch, 4)
        optimizer.zero_grad()
        for _ in range(args.batches_per_allreduce):
            images, labels = torch.randn(8, 3, 8, 8), torch.randint(0, 10, (8,))
            (functional.cross_entropy(model(images), labels) / args.batches_per_allreduce).backward()
        optimizer.step()
    if hvd.rank() == 0:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, args.checkpoint_format.format(epoch=epoch + 1))
print(f"checksum {sum(p.double().sum().item() for p in model.parameters()):.17g} from {resume_from_epoch}", flush=True)
