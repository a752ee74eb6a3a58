"""For PyTorch, under Horovod or over PyTorch's own process groups.

import horovod.torch as hvd
import hvd_compress.torch as hvdc

optimizer = hvdc.DistributedOptimizer(optimizer, named_parameters=model.named_parameters(),
compression=hvdc.Compression.topk(ratio=0.01))

What Horovod's package has and this one has not is Horovod's here as well: ``import hvd_compress.torch as hvd`` will do.
"""

from typing import Any

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
from hvd_compress.transports.horovod import has_horovod, horovods, require_horovod

if has_horovod("torch"):
    import hvd_compress.torch.broadcasts  # in place as soon as they are imported
    import hvd_compress.torch.elastic
    import hvd_compress.torch.join  # noqa: F401

    _horovod = require_horovod("torch")
    elastic, join = _horovod.elastic, _horovod.join  # as ``hvd.elastic`` and ``hvd.join()``

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


def __getattr__(name: str) -> Any:
    return horovods(__name__, "horovod.torch", name)
