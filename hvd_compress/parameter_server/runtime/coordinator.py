"""The coordinator, on the first server's rank: it begins and ends epochs, drops silent workers and ends the job."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import numpy as np

from hvd_compress.parameter_server.codecs import Vector
from hvd_compress.parameter_server.runtime.messages import Kind, Malformed, Message
from hvd_compress.parameter_server.runtime.roles import Roles
from hvd_compress.parameter_server.runtime.rounds import Report, Round
from hvd_compress.parameter_server.runtime.server import Coordination, Server
from hvd_compress.parameter_server.runtime.watch import ADVICE, JobFailed


@dataclass
class Epoch:
    """What was reached after so many epochs, and at what cost.

    Attributes:
        epoch: epochs that are done.
        objective: P of the snapshot.
        right, tested: of the test rows how many are classified right, and how many there are.
        bits_up, bits_down: of all messages between workers and servers until the epoch's end, headers included.
        seconds: from the job's beginning to the epoch's end.
        steps: that were done, of the first server.
        workers: that are left.
        delays: how many steps had which delay (steps between giving a model and applying the answer), since the start.
    """

    epoch: int
    objective: float
    right: int
    tested: int
    bits_up: int
    bits_down: int
    seconds: float
    steps: int
    workers: int
    delays: Counter[int] = field(default_factory=Counter)


class Coordinator(Coordination):
    """Begins and ends epochs for all servers, beside the first of them.

    Attributes:
        last: the last epoch.
        model: the whole model, once the job is done.

    Args:
        roles: of all ranks.
        rows: of all workers together.
        epochs: most epochs.
        finished: told of each epoch and of the workers that are left, it returns whether the job is done.
        log: shows the user a line.
        kill: ends the process of a silent rank, if it can.
        progress: told of the steps done in an epoch, and of all of them.
        before: the epoch from which a resumed job goes on.
    """

    def __init__(
        self,
        roles: Roles,
        rows: int,
        *,
        epochs: int,
        finished: Callable[[Epoch, Collection[int]], bool],
        log: Callable[[str], None],
        kill: Callable[[int], None],
        progress: Callable[[int, int], None],
        before: Epoch | None = None,
    ) -> None:
        self.last: Epoch | None = None
        self.model: Vector | None = None
        self._roles, self._rows, self._epochs = roles, rows, epochs
        self._finished, self._log, self._kill, self._progress = finished, log, kill, progress
        self._before = before or Epoch(0, 0.0, 0, 0, 0, 0, 0.0, 0, 0)
        self._steps = self._before.steps
        self._reports: dict[int, Report] = {}  # of the epoch, by server
        self._ended: set[int] = set()  # workers that know that the epoch has no more steps
        self._shards: dict[int, Vector] = {}  # of the last snapshot, by server
        self._began = time.monotonic()
        self._seconds = 0.0

    def begin(self, server: Server) -> None:
        self._announce(server, self._before.epoch)

    def hear(self, server: Server, message: Message) -> None:
        """Take another server's report, or its last word."""
        if message.kind == Kind.REPORT and message.round == server.round:
            self._reports[message.source] = Report.decode(message.json())
            if server.gradient_complete:
                self.gradient_complete(server)
        elif message.kind == Kind.FAILED:
            raise JobFailed(f"server {message.source} has ended{ADVICE}")
        elif message.kind != Kind.REPORT:
            raise Malformed(f"a message of kind {message.kind.name} came in out of turn")

    def gradient_complete(self, server: Server) -> None:
        """If all servers have all parts, tell of the epoch, and let the steps begin or stop the job."""
        self._reports[0] = server.report
        if len(self._reports) < self._roles.servers:
            return
        self.last = self._epoch(server)
        if self._finished(self.last, server.workers) or server.epoch >= self._epochs:
            self._stop(server)
        else:
            server.begin_steps()

    def stepped(self, server: Server, steps: int) -> None:
        self._steps += steps
        self._progress(server.schedule.version, server.schedule.steps)

    def exhausted(self, server: Server, worker: int) -> bool:
        """Tell the worker that the epoch has no more steps: nobody else does."""
        self._ended.add(worker)
        server.endpoint.send(worker, Kind.END, server.round)
        return True

    def served(self, server: Server) -> None:
        """Begin the next epoch if this one has no more steps and all workers know it."""
        if not server.schedule.given and self._ended >= server.workers:
            self._seconds = time.monotonic() - self._began
            self._announce(server, server.epoch + 1)

    def dropped(self, server: Server, worker: int, reason: str) -> None:
        """Let all know; if the gradient is not complete, begin the epoch again, with the rows divided anew."""
        for rank in [*self._roles.server_ranks[1:], worker]:
            server.endpoint.send(rank, Kind.DROP, server.round, worker)
        self.say(f"worker {worker} {reason}")
        if not server.workers:
            self._stop(server)
            raise JobFailed("no worker is left")
        if not server.stepping and not server.stopped:
            self._announce(server, server.epoch)

    def tick(self, server: Server) -> None:
        """Drop workers that have been silent for too long."""
        for worker, seconds in server.endpoint.silent(server.workers).items():
            self._kill(worker)
            server.drop(worker, f"was silent for {seconds:.0f} s")

    def leave(self, server: Server) -> None:
        """Collect the shards, and the workers' farewells.

        Raises:
            JobFailed: if a server is gone.
        """

        def last(message: Message | None) -> bool:
            if message is not None and self._roles.is_server(message.source):
                if message.kind == Kind.SNAPSHOT:
                    self._shards[message.source] = message.payload.view(np.float32)
                    server.endpoint.send(message.source, Kind.BYE, server.round)
            elif message is not None and message.kind == Kind.BYE:
                server.workers.discard(message.source)
            servers = set(self._roles.server_ranks) - server.endpoint.dead
            return self._shards.keys() >= servers and not server.workers - server.endpoint.dead

        server.listen_until(last)
        missing = [rank for rank in self._roles.server_ranks if rank not in self._shards]
        for rank in sorted({*missing, *server.workers} - server.endpoint.dead):
            self._kill(rank)
            self.say(f"{'server' if self._roles.is_server(rank) else 'worker'} {rank} was silent when the job ended")
        if missing:
            raise JobFailed(f"server {missing[0]} is gone, with its part of the model")
        self.model = np.concatenate([self._shards[rank] for rank in self._roles.server_ranks])

    def say(self, text: str) -> None:
        self._log(text)

    def _announce(self, server: Server, epoch: int) -> None:
        """Begin a round on all ranks."""
        announced = Round(server.round + 1, epoch, sorted(server.workers))
        self._ended.clear()
        self._reports.clear()
        server.begin(announced)
        for rank in [*self._roles.server_ranks[1:], *sorted(server.workers)]:
            server.endpoint.send_json(rank, Kind.START, server.round, announced._asdict())

    def _stop(self, server: Server) -> None:
        for rank in range(1, self._roles.size):
            server.endpoint.send(rank, Kind.STOP, server.round)
        self._shards[0] = server.part.snapshot
        server.stopped = True

    def _epoch(self, server: Server) -> Epoch:
        """Return what was reached, of all servers' reports and all workers' parts."""
        parts, reports, before = server.parts.values(), self._reports.values(), self._before
        delays: Counter[int] = Counter()
        for report in reports:
            delays.update({int(delay): count for delay, count in report.delays.items()})
        return Epoch(
            epoch=server.epoch,
            objective=sum(part.loss for part in parts) / self._rows + sum(report.penalty for report in reports),
            right=sum(part.right for part in parts),
            tested=sum(part.tested for part in parts),
            bits_up=sum(report.up for report in reports) + before.bits_up,
            bits_down=sum(report.down for report in reports) + before.bits_down,
            seconds=self._seconds + before.seconds,
            steps=self._steps,
            workers=len(server.workers),
            delays=delays + before.delays,
        )
