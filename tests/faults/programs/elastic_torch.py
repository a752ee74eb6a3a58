"""A training in an elastic job: `elastic_torch.py FOLDER SPEC STEPS SCRIPT`.

SCRIPT is a list of events, as JSON, each before a step: [step, "kill", rank], or [step, "hosts", hosts], which writes
these hosts to FOLDER/hosts, for the launcher's discovery script, and waits until each has a rank. Rank 0 writes a line
for each step to FOLDER/log: step, number of ranks, and a digest of each rank's weights; and a last one with the
accuracy.
"""

import json
import os
import signal
import sys
import time
import warnings
import zlib
from pathlib import Path

import horovod.torch as hvd
import torch
from torch import nn

import hvd_compress.torch as hvdc
from hvd_compress.compressors.named import as_compressor
from hvd_compress.torch.compression import TorchCompression

FOLDER, SPEC, STEPS, SCRIPT = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
WAIT_SECONDS = 60.0  # for other workers

warnings.filterwarnings("ignore", message="rank . had the compressors' state")
hvd.init()
torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(20, 40), nn.Tanh(), nn.Linear(40, 10))
teacher = torch.randn(20, 10)
sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.0 if "dgc" in SPEC else 0.9)
bound, more = None, {}
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


def write(**line):
    if hvd.rank() == 0:
        with (FOLDER / "log").open("a") as log:
            log.write(json.dumps(line) + "\n")


def next_event(state):
    """Let the next event of this step happen, if there is one; it may end in an interrupt."""
    if state.events >= len(SCRIPT) or SCRIPT[state.events][0] > state.step:
        return
    _, what, given = SCRIPT[state.events]
    if what == "hosts":
        if hvd.rank() == 0:
            (FOLDER / "hosts").write_text("".join(f"{host}:1\n" for host in given))
        began = time.monotonic()
        while hvd.size() != len(given):
            state.check_host_updates()
            time.sleep(0.1)
            assert time.monotonic() - began < WAIT_SECONDS, f"{len(given)} ranks are expected, {hvd.size()} have come"
    state.events += 1
    state.save()
    if what == "kill":
        hvd.barrier()  # all have saved
        if hvd.rank() == given:
            os.kill(os.getpid(), signal.SIGKILL)


@hvd.elastic.run
def train(state):
    while state.step < STEPS:
        next_event(state)
        x, y = batch(1000 * state.step + hvd.rank())
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        state.step += 1
        write(step=state.step, size=hvd.size(), digests=digests())
        state.commit()


train(hvd.elastic.TorchState(model=model, optimizer=optimizer, step=0, events=0, **more))
x, y = batch(999_999, 2000)
stats = (bound or optimizer).compression_stats()
write(accuracy=(model(x).argmax(dim=1) == y).float().mean().item(), lost=stats["workers_lost"], steps=stats["steps"])
