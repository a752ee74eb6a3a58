"""Messages between workers and servers: packed bytes, sent and received without waiting, and counted."""

from __future__ import annotations

import enum
import json
import os
import struct
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from hvd_compress import native

Bytes = NDArray[np.uint8]

HEADER = struct.Struct("<II")  # round and number
POLLS = 20  # without a pause, before a wait begins to sleep
PAUSE = 5e-5  # seconds
NOTHING = np.zeros(0, np.uint8)


class Kind(enum.IntEnum):
    """What a message is; the MPI tag."""

    START = 1  # coordinator to all: a round begins, with these workers
    SNAPSHOT = 2  # worker to server: asks for the snapshot; back: has it
    PART = 3  # worker to server: its rows' part of the loss and of the full gradient
    MODEL = 4  # worker to server: asks for the model; back: has it
    PUSH = 5  # worker to server: what it has computed
    WITHDRAW = 6  # worker to server: what it was given will not be answered
    END = 7  # coordinator to worker: the epoch has no more steps
    REPORT = 8  # server to coordinator: what an epoch came to
    DROP = 9  # coordinator to all: a worker does not belong any more
    REFUSED = 10  # server to worker: its message is malformed
    STOP = 11  # coordinator to all: the job is done
    BYE = 12  # worker to coordinator, coordinator to server: nothing more will come
    ASK = 13  # server to worker: it wants more for the same step, the next PUSH


def survives() -> bool:
    """Tell whether the MPI goes on when a rank dies: Open MPI under ``mpirun --with-ft ulfm``."""
    return os.environ.get("OMPI_MCA_mpi_ft_enable", "0") not in ("0", "false")  # noqa: SIM112


class Malformed(ValueError):
    """A message is not one that the other side can have meant; nothing was changed by it."""


class Message(NamedTuple):
    """What came in. `number` tells messages of a round apart."""

    source: int
    kind: Kind
    round: int
    number: int
    payload: Bytes

    def json(self) -> Any:
        """Return what `Endpoint.send_json` sent."""
        return json.loads(self.payload.tobytes())


class Endpoint:
    """One rank's end of all messages, over a duplicate of an MPI communicator.

    Attributes:
        rank, size: who this is, and of how many.
        sent, received: bytes of messages to and from each rank, headers included.
        dead: ranks that are known to be gone, where the MPI goes on without them.
    """

    def __init__(self, comm: MPI.Comm = MPI.COMM_WORLD) -> None:
        self.comm = comm.Dup()
        self.comm.Set_errhandler(MPI.ERRORS_RETURN)
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self.sent, self.received = [0] * self.size, [0] * self.size
        self.dead: set[int] = set()
        self._sending: list[tuple[MPI.Request, Any]] = []
        kernels = native.load()
        self._empty: Callable[[int], Bytes] = (
            (lambda count: kernels.empty(-(-count // 4)).view(np.uint8)[:count])
            if kernels
            else (lambda count: np.empty(count, np.uint8))
        )

    def send(self, to: int, kind: Kind, round: int, number: int = 0, payload: Bytes = NOTHING) -> None:
        """Send a message; the payload must not change until it has gone. To a dead rank nothing is sent."""
        if to in self.dead:
            return
        header = np.frombuffer(HEADER.pack(round, number), np.uint8)
        payload = np.ascontiguousarray(payload)
        # One message from two places, so that no payload is copied.
        places = MPI.BYTE.Create_hindexed([HEADER.size, payload.nbytes], [header.ctypes.data, payload.ctypes.data])
        places.Commit()
        try:
            request = self.comm.Isend([MPI.BOTTOM, 1, places], to, int(kind))
        except MPI.Exception:
            self._find_dead()
            return
        finally:
            places.Free()
        self._sending.append((request, (header, payload)))
        self.sent[to] += HEADER.size + payload.nbytes
        if len(self._sending) > 2 * self.size:
            self._reap()

    def send_json(self, to: int, kind: Kind, round: int, item: Any) -> None:
        """Send what JSON can hold."""
        self.send(to, kind, round, 0, np.frombuffer(json.dumps(item).encode(), np.uint8))

    def receive(self) -> Message | None:
        """Return a message that is there, or None."""
        status = MPI.Status()
        try:
            probed = self.comm.Improbe(MPI.ANY_SOURCE, MPI.ANY_TAG, status)
            if probed is None:
                return None
            body = self._empty(status.Get_count(MPI.BYTE))
            probed.Recv(body)
        except MPI.Exception:
            self._find_dead()
            return None
        source = status.Get_source()
        self.received[source] += body.nbytes
        if body.nbytes < HEADER.size:
            raise Malformed(f"rank {source} sent a message of {body.nbytes} bytes, shorter than a header")
        round, number = HEADER.unpack(body[: HEADER.size].tobytes())
        return Message(source, Kind(status.Get_tag()), round, number, body[HEADER.size :])

    def wait(self, seconds: float) -> Message | None:
        """Return the next message, or None after a time, or when a rank was found dead."""
        until, polls, known = time.monotonic() + seconds, 0, len(self.dead)
        while True:
            message = self.receive()
            if message is not None or len(self.dead) > known or time.monotonic() > until:
                return message
            polls += 1
            if polls > POLLS:
                self._reap()
                time.sleep(PAUSE)

    def flush(self, seconds: float) -> None:
        """Wait until all that was sent has gone, but no longer than a time."""
        until = time.monotonic() + seconds
        while self._sending and time.monotonic() < until:
            self._reap()
            time.sleep(PAUSE)

    def _reap(self) -> None:
        """Forget what has gone."""
        left = []
        for request, buffers in self._sending:
            try:
                if not request.Test():
                    left.append((request, buffers))
            except MPI.Exception:
                self._find_dead()
        self._sending = left

    def _find_dead(self) -> None:
        """Ask which ranks are gone; without an MPI that can tell, the error stands.

        Raises:
            MPI.Exception: if no rank is gone, or the MPI does not know.
        """
        failed = self.comm.Get_failed()
        self.dead |= set(MPI.Group.Translate_ranks(failed, None, self.comm.Get_group()))
        self.comm.Ack_failed()
