"""Who carries an optimizer's collectives: Horovod, PyTorch's process groups, or what the user gives."""

from __future__ import annotations

from typing import Any

from hvd_compress.transports import Transport
from hvd_compress.transports.horovod import check_one_given, exchanges, require_horovod

TORCH_DISTRIBUTED = "torch.distributed"


def carrier(transport: Transport | str | None, process_set: Any) -> Transport | None:
    """Return who carries the collectives, or None if there is nobody to exchange gradients with.

    Args:
        transport: what the user gave; None stands for Horovod, "torch.distributed" for all of its processes.
        process_set: Horovod's processes; None stands for all.

    Raises:
        ValueError: if both are given, or the transport is not known.
        RuntimeError: if torch.distributed is asked for and not initialized.
        ImportError: if Horovod is asked for and cannot be imported.
    """
    check_one_given(transport, process_set)
    if transport == TORCH_DISTRIBUTED:
        from hvd_compress.transports.torch_distributed import ProcessGroupTransport

        transport = ProcessGroupTransport()
    if isinstance(transport, str):
        raise ValueError(f"transport must be {TORCH_DISTRIBUTED!r} or an object that carries; got {transport!r}")
    if transport is not None:
        return transport if transport.workers > 1 else None
    hvd = require_horovod("torch")
    from hvd_compress.transports.horovod_torch import HorovodTransport

    process_set = hvd.global_process_set if process_set is None else process_set
    if not exchanges(process_set):
        return None
    return HorovodTransport(process_set, f"hvd_compress.{process_set.process_set_id}")
