"""Messages between ranks over MPI: non-blocking, with every byte counted, and with dead ranks noticed."""

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
SMALL = 1 << 12  # largest payload, in bytes, that is sent together with its header; a larger one follows it
MOST = 1 << 36  # largest payload in bytes
BODY = 100  # the tag of a payload that follows its header; those of headers are kinds
POLLS = 20  # polls without a pause, before a wait begins to sleep between them
PAUSE = 5e-5  # seconds between polls
NOTHING = np.zeros(0, np.uint8)


class Kind(enum.IntEnum):
    """What a message is for; its value is the MPI tag."""

    START = 1  # coordinator to all: a `rounds.Round` begins
    SNAPSHOT = 2  # worker to server: asks for the snapshot; back: has it; server to coordinator: its shard of the last
    PART = 3  # worker to server: a `rounds.GradientPart`
    MODEL = 4  # worker to server: asks for the model; back: has it
    PUSH = 5  # worker to server: its answer to a model, or its reply to ASK
    WITHDRAW = 6  # worker to server: the models that it was given will not be answered
    END = 7  # coordinator to worker: the epoch has no more steps
    REPORT = 8  # server to coordinator: a `rounds.Report`; all parts of the gradient are there
    DROP = 9  # coordinator to servers and the worker: it does not belong to the job any more
    REFUSED = 10  # server to worker: its message is malformed
    STOP = 11  # coordinator to all: the job is done
    BYE = 12  # worker to coordinator, coordinator to server: nothing more will come
    ASK = 13  # server to worker: it needs another PUSH for the same step


def survives() -> bool:
    """Tell whether the MPI goes on when a rank dies: Open MPI under ``mpirun --with-ft ulfm``."""
    return os.environ.get("OMPI_MCA_mpi_ft_enable", "0") not in ("0", "false")  # noqa: SIM112


KINDS = frozenset(Kind)


class Message(NamedTuple):
    """A message that came in; `number` is that of the model that was given or is answered."""

    source: int
    kind: Kind
    round: int
    number: int
    payload: Bytes

    def json(self) -> Any:
        """Return what `Endpoint.send_json` sent."""
        return json.loads(self.payload.tobytes())


class Endpoint:
    """All messages of one rank, over a duplicate of an MPI communicator.

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
        """Send a message without waiting, unless the rank is dead; the payload must not change until it has gone."""
        if to in self.dead:
            return
        head = HEADER.pack(round, number, payload.nbytes)
        if payload.nbytes <= SMALL:
            parts = [(np.frombuffer(head + payload.tobytes(), np.uint8), int(kind))]
        else:  # no copy but MPI's own
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
        """Send an object as JSON."""
        self.send(to, kind, round, 0, np.frombuffer(json.dumps(item).encode(), np.uint8))

    def receive(self) -> Message | None:
        """Return a message that has arrived, or None.

        A payload in flight blocks later messages of the same rank (first in, first out for each rank).

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
        """Receive the next header, if there is one, and begin to receive the payload that follows it."""
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
        """Return the next message, or None after `seconds` or when a rank is found dead."""
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
        """Wait until all that was sent has gone, at most `seconds`."""
        until = time.monotonic() + seconds
        while self._sending and time.monotonic() < until:
            self._reap()
            time.sleep(PAUSE)

    def _reap(self) -> None:
        """Release the buffers of sends that are complete."""
        left = []
        for request, buffer in self._sending:
            try:
                if not request.Test():
                    left.append((request, buffer))
            except MPI.Exception as error:
                self._find_dead(error)
        self._sending = left

    def _find_dead(self, error: MPI.Exception) -> None:
        """Find out which ranks are dead.

        Raises:
            MPI.Exception: the error itself, if its cause is not a dead rank, or the MPI cannot tell.
        """
        if not survives() or error.Get_error_class() not in (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING):
            raise error
        failed = self.comm.Get_failed()
        self.dead |= set(MPI.Group.Translate_ranks(failed, None, self.comm.Get_group()))
        self.comm.Ack_failed()
