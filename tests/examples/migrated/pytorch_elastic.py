"""An elastic training, in the style of Horovod's example."""

import torch
from torch import nn
from torch.nn import functional

import hvd_compress.torch as hvd  # was: import horovod.torch as hvd

hvd.init()
torch.manual_seed(hvd.rank())
torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01 * hvd.size(), momentum=0.9)
optimizer = hvd.DistributedOptimizer(
    optimizer, named_parameters=model.named_parameters(), compression=hvd.Compression.topk(ratio=0.1)
)


@hvd.elastic.run
def train(state):
    for state.epoch in range(state.epoch, 2):  # noqa: B020
        for state.batch in range(state.batch, 5):  # noqa: B020
            state.optimizer.zero_grad()
            data, target = torch.randn(8, 40), torch.randint(0, 10, (8,))
            functional.cross_entropy(state.model(data), target).backward()
            state.optimizer.step()
            if state.batch % 2 == 0:
                state.commit()
        state.batch = 0


def on_state_reset():
    for group in optimizer.param_groups:
        group["lr"] = 0.01 * hvd.size()


state = hvd.elastic.TorchState(model=model, optimizer=optimizer, epoch=0, batch=0)
state.register_reset_callbacks([on_state_reset])
train(state)
print(f"checksum {sum(p.double().sum().item() for p in model.parameters()):.17g}", flush=True)
