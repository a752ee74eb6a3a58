"""For PyTorch, under Horovod or over PyTorch's own process groups.

import horovod.torch as hvd
import hvd_compress.torch as hvdc

optimizer = hvdc.DistributedOptimizer(optimizer, named_parameters=model.named_parameters(),
compression=hvdc.Compression.topk(ratio=0.01))
"""

from hvd_compress.compressors import Exponential, Linear
from hvd_compress.reduction.agreement import WorkersDisagree
from hvd_compress.reduction.buckets import Rule
from hvd_compress.reduction.nonfinite import NonFiniteGradients
from hvd_compress.reduction.stalls import WorkersStalled
from hvd_compress.torch.adam import CompressedAdam
from hvd_compress.torch.averaging import averaged_iterates
from hvd_compress.torch.compression import Compression
from hvd_compress.torch.optimizer import DistributedOptimizer
from hvd_compress.torch.sketch import CountSketch
from hvd_compress.transports import WorkerFailed
from hvd_compress.transports.horovod import has_horovod

if has_horovod("torch"):  # in place as soon as they are imported
    from hvd_compress.torch import elastic, join  # noqa: F401

__all__ = [
    "CompressedAdam",
    "Compression",
    "CountSketch",
    "DistributedOptimizer",
    "Exponential",
    "Linear",
    "NonFiniteGradients",
    "Rule",
    "WorkerFailed",
    "WorkersDisagree",
    "WorkersStalled",
    "averaged_iterates",
]
