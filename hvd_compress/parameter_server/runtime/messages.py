"""Messages between ranks over MPI: non-blocking, with every byte counted, and with dead and silent ranks noticed."""

from __future__ import annotations

import enum
import json
import os
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from mpi4py import MPI

from hvd_compress import native
from hvd_compress.parameter_server.codecs import Bytes, Malformed

HEADER = struct.Struct("<IIQ")  # round, number, and bytes of the payload
SMALL = 1 << 12  # largest payload, in bytes, that is sent together with its header; a larger one follows it
BEATS = 10  # ALIVE is sent so many times in a timeout
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
    ALIVE = 14  # coordinator to all, all to coordinator: this rank runs; it is taken and counted nowhere
    FAILED = 15  # coordinator to all: the job cannot go on; all to coordinator: this rank cannot; each has said why


def survives() -> bool:
    """Tell whether the MPI goes on when a rank dies: Open MPI under ``mpirun --with-ft ulfm``."""
    return os.environ.get("OMPI_MCA_mpi_ft_enable", "0") not in ("0", "false")  # noqa: SIM112


def failed_ranks(comm: MPI.Comm) -> set[int]:
    """Return which ranks of a communicator are dead, as far as this one knows; the MPI must be one that survives."""
    return set(MPI.Group.Translate_ranks(comm.Get_failed(), None, comm.Get_group()))


KINDS = frozenset(Kind)


class Refused(Malformed):
    """A message is not one that its sender can have meant.

    Attributes:
        source: the rank that sent it.
    """

    def __init__(self, source: int, text: str) -> None:
        super().__init__(text)
        self.source = source


class Message(NamedTuple):
    """A message that came in; `number` is that of the model that was given or is answered."""

    source: int
    kind: Kind
    round: int
    number: int
    payload: Bytes

    def json(self) -> Any:
        """Return what `Endpoint.send_json` sent.

        Raises:
            Malformed: if it is no JSON.
        """
        try:
            return json.loads(self.payload.tobytes())
        except (RecursionError, ValueError) as error:
            raise Malformed(f"a {self.kind.name} that is no JSON came in: {error}") from error

    def text(self) -> str:
        """Return what `Endpoint.send_text` sent."""
        return self.payload.tobytes().decode(errors="replace")


class Endpoint:
    """All messages of one rank, over a duplicate of an MPI communicator.

    Whoever waits for a message says every now and then that he is there: the coordinator to all, the others to it.

    Attributes:
        rank, size: who this is, and of how many.
        timeout: seconds after which a rank that was not heard counts as silent.
        most: tells how many bytes the payload of a rank's message of a kind can have at most, and raises Refused if
            that rank sends no such message here. It must be set before the first message is received.
        sent, received: bytes of messages to and from each rank, headers included, without those of kind ALIVE.
        dead: ranks that are known to be gone, where the MPI goes on without them.
    """

    most: Callable[[int, Kind], int]

    def __init__(self, comm: MPI.Comm, timeout: float) -> None:
        self.comm = comm.Dup()
        self.comm.Set_errhandler(MPI.ERRORS_RETURN)
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self.sent, self.received = [0] * self.size, [0] * self.size
        self.timeout = timeout
        self.dead: set[int] = set()
        self._heard = [time.monotonic()] * self.size  # when something came from a rank for the last time
        self._listened = self._beaten = time.monotonic()  # when `silent` and `_beat` were called for the last time
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
        if kind != Kind.ALIVE:
            self.sent[to] += HEADER.size + payload.nbytes
        if len(self._sending) > 2 * self.size:
            self._reap()

    def send_json(self, to: int, kind: Kind, round: int, item: Any) -> None:
        """Send an object as JSON."""
        self.send(to, kind, round, 0, np.frombuffer(json.dumps(item).encode(), np.uint8))

    def send_text(self, to: int, kind: Kind, round: int, text: str) -> None:
        """Send the beginning of a text."""
        self.send(to, kind, round, 0, np.frombuffer(text.encode()[:SMALL], np.uint8))

    def receive(self) -> Message | None:
        """Return a message that has arrived, or None.

        A payload in flight blocks later messages of the same rank (first in, first out for each rank).

        Raises:
            Refused: if what came in is no message, or larger than it can be; nothing is kept of it.
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
        source, tag, count = status.Get_source(), status.Get_tag(), status.Get_count(MPI.BYTE)
        self._heard[source] = time.monotonic()
        if tag not in KINDS or not HEADER.size <= count <= HEADER.size + SMALL:
            if count <= HEADER.size + SMALL:  # a larger one stays where it is, with its sender
                probed.Recv([self._empty(count), MPI.BYTE])
            raise Refused(source, f"rank {source} sent {count} bytes with tag {tag}, which are no message")
        body = self._empty(count)
        probed.Recv([body, MPI.BYTE])
        kind = Kind(tag)
        if kind == Kind.ALIVE:
            return
        round, number, length = HEADER.unpack(body[: HEADER.size].tobytes())
        most = self.most(source, kind)
        if length > most:
            raise Refused(
                source, f"rank {source} announced {length} bytes in a message of kind {kind.name}, of at most {most}"
            )
        request, payload = None, body[HEADER.size :]
        if length > SMALL and not payload.nbytes:
            payload = self._empty(length)
            request = self.comm.Irecv([payload, MPI.BYTE], source, BODY)
        elif length != payload.nbytes:
            raise Refused(source, f"rank {source} sent a message of {payload.nbytes} bytes and announced {length}")
        self._arriving.setdefault(source, deque()).append((request, Message(source, kind, round, number, payload)))

    def wait(self, seconds: float) -> Message | None:
        """Return the next message, or None after `seconds` or when a rank is found dead.

        Raises:
            Refused: as `receive` does.
        """
        self._beat()
        until, polls, known = time.monotonic() + seconds, 0, len(self.dead)
        while True:
            message = self.receive()
            if message is not None or len(self.dead) > known or time.monotonic() > until:
                return message
            polls += 1
            if polls > POLLS:
                self._reap()
                time.sleep(PAUSE)

    def _beat(self) -> None:
        """Say that this rank is there, if it is time."""
        now = time.monotonic()
        if now - self._beaten > self.timeout / BEATS:
            self._beaten = now
            for rank in [0] if self.rank else range(1, self.size):
                self.send(rank, Kind.ALIVE, 0)

    def silent(self, ranks: Iterable[int]) -> dict[int, float]:
        """Return for how many seconds each of some ranks has been silent, if that is longer than the timeout.

        To be called often: if the last call was long ago, this rank was busy or stopped itself and could hear nobody,
        so that all ranks have the whole time again.
        """
        now = time.monotonic()
        if now - self._listened > self.timeout / 2:
            self._heard = [now] * self.size
        self._listened = now
        return {
            rank: now - self._heard[rank]
            for rank in sorted(ranks)
            if rank not in self.dead and now - self._heard[rank] > self.timeout
        }

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
        self.dead |= failed_ranks(self.comm)
        self.comm.Ack_failed()
