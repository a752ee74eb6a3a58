"""Messages between workers and servers: packed bytes, sent and received without waiting, and counted."""

from __future__ import annotations

import enum
import json
import os
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from mpi4py import MPI

from hvd_compress import native
from hvd_compress.parameter_server.codecs import Bytes, Malformed

HEADER = struct.Struct("<IIQ")  # round, number, and bytes of the payload
SMALL = 1 << 12  # bytes of a payload that goes with its header; a larger one follows it
MOST = 1 << 36  # bytes of a payload
BODY = 100  # the tag of a payload that follows its header; those of headers are kinds
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


KINDS = frozenset(Kind)


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
        self._arriving: dict[int, deque[tuple[MPI.Request | None, Message]]] = {}
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
        head = HEADER.pack(round, number, payload.nbytes)
        if payload.nbytes <= SMALL:
            parts = [(np.frombuffer(head + payload.tobytes(), np.uint8), int(kind))]
        else:  # as it lies in memory: it is copied by nobody but the MPI, and in one go
            parts = [(np.frombuffer(head, np.uint8), int(kind)), (np.ascontiguousarray(payload), BODY)]
        try:
            for part, tag in parts:
                self._sending.append((self.comm.Isend([part, MPI.BYTE], to, tag), part))
        except MPI.Exception as error:
            self._find_dead(error)
            return
        self.sent[to] += HEADER.size + payload.nbytes
        if len(self._sending) > 2 * self.size:
            self._reap()

    def send_json(self, to: int, kind: Kind, round: int, item: Any) -> None:
        """Send what JSON can hold."""
        self.send(to, kind, round, 0, np.frombuffer(json.dumps(item).encode(), np.uint8))

    def receive(self) -> Message | None:
        """Return a message that is there, or None. What is still on its way keeps up what its rank sent later.

        Raises:
            Malformed: if what came in is no message.
        """
        try:
            self._accept()
        except MPI.Exception as error:
            self._find_dead(error)
        for source, arriving in self._arriving.items():
            if not arriving:
                continue
            request, message = arriving[0]
            try:
                there = request is None or request.Test()
            except MPI.Exception as error:
                self._find_dead(error)
                arriving.clear()
                continue
            if there:
                arriving.popleft()
                self.received[source] += HEADER.size + message.payload.nbytes
                return message
        return None

    def _accept(self) -> None:
        """Take the next header, and begin to receive the payload that follows it."""
        status = MPI.Status()
        probed = self.comm.Improbe(MPI.ANY_SOURCE, MPI.ANY_TAG, status)
        if probed is None:
            return
        body = self._empty(status.Get_count(MPI.BYTE))
        probed.Recv([body, MPI.BYTE])
        source, tag = status.Get_source(), status.Get_tag()
        if body.nbytes < HEADER.size or tag not in KINDS:
            raise Malformed(f"rank {source} sent {body.nbytes} bytes with tag {tag}, which are no message")
        round, number, length = HEADER.unpack(body[: HEADER.size].tobytes())
        request, payload = None, body[HEADER.size :]
        if length > SMALL and not payload.nbytes:
            if length > MOST:
                raise Malformed(f"rank {source} announced a message of {length} bytes")
            payload = self._empty(length)
            request = self.comm.Irecv([payload, MPI.BYTE], source, BODY)
        elif length != payload.nbytes:
            raise Malformed(f"rank {source} sent a message of {payload.nbytes} bytes and announced {length}")
        self._arriving.setdefault(source, deque()).append((request, Message(source, Kind(tag), round, number, payload)))

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
        for request, buffer in self._sending:
            try:
                if not request.Test():
                    left.append((request, buffer))
            except MPI.Exception as error:
                self._find_dead(error)
        self._sending = left

    def _find_dead(self, error: MPI.Exception) -> None:
        """Ask which ranks are gone.

        Raises:
            MPI.Exception: the error itself, if it is another one than that a rank is gone, or the MPI cannot tell.
        """
        if not survives() or error.Get_error_class() not in (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING):
            raise error
        failed = self.comm.Get_failed()
        self.dead |= set(MPI.Group.Translate_ranks(failed, None, self.comm.Get_group()))
        self.comm.Ack_failed()
