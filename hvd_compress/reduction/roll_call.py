"""Who is in which step, and which gradients are there: what the workers tell each other in each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from hvd_compress.compressors.base import AllGather
from hvd_compress.ops import Ops
from hvd_compress.reduction.agreement import WorkersDisagree
from hvd_compress.transports import Transport

STEP_BYTES = 4


class Roll(NamedTuple):
    """For each gradient of the plan whether some worker has it, and whether all have."""

    anywhere: list[bool]
    everywhere: list[bool]


class RollCall:
    """A small AllGather: this worker's step, and a bit for each gradient that it has.

    A gradient that no worker has is nobody's: its parameter must stay where it is. As long as all workers have all
    gradients there is no roll call. The first worker that lacks one sends NaN in its place; so all learn of it, hold a
    roll call, do the step again, and hold one in each step from then on.
    """

    def __init__(self, transport: Transport, ops: Ops) -> None:
        self.transport, self.ops = transport, ops
        self._handle: Any = None

    def start(self, name: str, step: int, present: Sequence[bool]) -> None:
        """Tell the others.

        Args:
            name: of the collective.
            step: this worker's number of steps so far.
            present: for each gradient of the plan whether it is there.
        """
        self._count = len(present)
        told = (step % (1 << 8 * STEP_BYTES)).to_bytes(STEP_BYTES, "little") + np.packbits(present).tobytes()
        payload = self.ops.from_numpy(np.frombuffer(told, np.uint8).copy())
        self._handle = self.transport.start(AllGather(payload, kind="roll_call"), name)

    def ready(self) -> bool:
        """Tell whether `finish` would return at once."""
        return self.transport.done(self._handle)

    def finish(self) -> Roll:
        """Return which gradients there are.

        Raises:
            WorkersDisagree: if the workers are not in the same step.
        """
        told = np.stack([self.ops.to_numpy(payload) for payload in self.transport.wait(self._handle)])
        steps = [int.from_bytes(line.tobytes(), "little") for line in told[:, :STEP_BYTES]]
        if len(set(steps)) > 1:
            listed = ", ".join(f"rank {rank}: {step}" for rank, step in enumerate(steps))
            raise WorkersDisagree(f"the workers are not in the same step ({listed}): one of them has left out a step")
        present = np.unpackbits(told[:, STEP_BYTES:], axis=1, count=self._count).astype(bool)
        return Roll([bool(p.any()) for p in present.T], [bool(p.all()) for p in present.T])
