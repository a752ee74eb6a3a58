"""A round, in which the workers compute the gradient at a snapshot and then take steps: what its messages hold."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np

from hvd_compress.parameter_server.codecs import OPS, Bytes, Malformed, Vector
from hvd_compress.parameter_server.runtime.roles import Roles

TICK = 0.25  # seconds that a loop waits for a message before it sees to what else is due


class Round(NamedTuple):
    """What the coordinator announces (START): an epoch begins, or begins again, with these workers."""

    round: int
    epoch: int
    workers: list[int]

    @classmethod
    def decode(cls, sent: Any, roles: Roles) -> Round:
        """Return what was sent as JSON.

        Raises:
            Malformed: if it is no round of the job's workers.
        """
        try:
            found = cls(**sent)
            if found.round >= 0 and found.epoch >= 0 and set(found.workers) <= set(roles.worker_ranks):
                return found
        except TypeError:
            pass
        raise Malformed("a START that describes no round of the job's workers came in")


class GradientPart(NamedTuple):
    """What a worker's rows come to at the snapshot (PART).

    Attributes:
        loss: sum of the rows' losses.
        right, tested: of the worker's test rows how many are classified right, and how many there are.
        gradient: sum of the rows' gradients, float32 of shape (shard's size,); None if it is not wanted.
    """

    loss: float
    right: int
    tested: int
    gradient: Vector | None

    def encode(self) -> Bytes:
        """Return it as bytes."""
        head = np.frombuffer(_HEAD.pack(self.loss, self.right, self.tested), np.uint8)
        return head if self.gradient is None else np.concatenate([head, self.gradient.view(np.uint8)])

    @classmethod
    def decode(cls, payload: Bytes, size: int) -> GradientPart:
        """Return what `encode` wrote, with a gradient of shape (size,); without one if the size is 0.

        Raises:
            Malformed: if the payload is of another length, the gradient is not finite, or more rows are right than
                were tested.
        """
        expected = _HEAD.size + 4 * size
        if payload.nbytes != expected:
            raise Malformed(f"a part of the gradient of {payload.nbytes} bytes came in; expected {expected}")
        gradient = payload[_HEAD.size :].view(np.float32) if size else None
        if gradient is not None and not OPS.all_finite(gradient):
            raise Malformed("a part of the gradient with values that are not finite came in")
        loss, right, tested = _HEAD.unpack(payload[: _HEAD.size].tobytes())
        if not 0 <= right <= tested:
            raise Malformed(f"a part of the gradient with {right} of {tested} rows right came in")
        return cls(loss, right, tested, gradient)


_HEAD = struct.Struct("<dqq")


class Report(NamedTuple):
    """What the epochs so far have cost one server (REPORT).

    Attributes:
        up, down: bits of all messages from and to workers, headers included.
        penalty: h of the snapshot's shard.
        delays: how many steps had which delay, as text for JSON.
    """

    up: int
    down: int
    penalty: float
    delays: dict[str, int]

    @classmethod
    def decode(cls, sent: Any) -> Report:
        """Return what was sent as JSON.

        Raises:
            Malformed: if it is no report.
        """
        try:
            found = cls(*sent)
            counts = [found.up, found.down, *found.delays.values(), *map(int, found.delays)]
            if all(isinstance(count, int) and count >= 0 for count in counts):
                return found._replace(penalty=float(found.penalty))
        except (AttributeError, TypeError, ValueError):
            pass
        raise Malformed("a REPORT that is none came in")
