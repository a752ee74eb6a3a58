"""A training in an elastic job, under PyTorch; see `elastic_events`."""

import warnings
import zlib

import horovod.torch as hvd
import torch
from elastic_events import SPEC, STEPS, next_event, write
from torch import nn

import hvd_compress.torch as hvdc
from hvd_compress import spec
from hvd_compress.advice import auto
from hvd_compress.compressors.named import as_compressor
from hvd_compress.torch.compression import TorchCompression

warnings.filterwarnings("ignore", message="rank . had the compressors' state")
hvd.init()
torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(20, 40), nn.Tanh(), nn.Linear(40, 10))
teacher = torch.randn(20, 10)
sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.0 if "dgc" in SPEC else 0.9)
bound, more = None, {}
if SPEC == "auto":  # in place of what they measure
    auto.Chooser._predict = lambda *given: dict.fromkeys(auto.CANDIDATES, 9.0) | {"qsgd(bits=4)": 1.0}
if SPEC.startswith("bound "):
    compressor = as_compressor(SPEC.removeprefix("bound "))
    bound = TorchCompression(compressor).bind(model.named_parameters(), dense_below=0)
    more = {"bound": bound}
    optimizer = hvd.DistributedOptimizer(sgd, model.named_parameters(), compression=bound)
elif SPEC.startswith("adam "):
    optimizer = hvdc.CompressedAdam(
        model.parameters(),
        0.02,
        named_parameters=model.named_parameters(),
        warmup_steps=10,
        compression=SPEC.removeprefix("adam "),
    )
else:
    optimizer = hvdc.DistributedOptimizer(sgd, model.named_parameters(), SPEC, dense_below=0)


def batch(seed, size=32):
    x = torch.randn(size, 20, generator=torch.Generator().manual_seed(seed))
    return x, (x @ teacher).argmax(dim=1)


def digests():
    weights = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    return hvd.allgather(torch.tensor([zlib.crc32(weights.numpy().tobytes())]), name="digest").tolist()


@hvd.elastic.run
def train(state):
    while state.step < STEPS:
        next_event(state, hvd)
        x, y = batch(1000 * state.step + hvd.rank())
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        state.step += 1
        write(hvd, step=state.step, size=hvd.size(), digests=digests())
        state.commit()


train(hvd.elastic.TorchState(model=model, optimizer=optimizer, step=0, events=0, **more))
x, y = batch(999_999, 2000)
stats = (bound or optimizer).compression_stats()
accuracy = (model(x).argmax(dim=1) == y).float().mean().item()
method = {"method": spec(optimizer._reducer.settings.compression)} if SPEC == "auto" else {}
write(hvd, accuracy=accuracy, lost=stats["workers_lost"], steps=stats["steps"], **method)
