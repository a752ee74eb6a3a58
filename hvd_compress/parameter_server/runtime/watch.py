"""Who must be there for the job to go on: a server that is gone or silent is named, and ends it."""

from __future__ import annotations

import time

from hvd_compress.parameter_server.runtime.messages import Endpoint, Kind
from hvd_compress.parameter_server.runtime.roles import Roles
from hvd_compress.parameter_server.runtime.rounds import TICK

PATIENCE = 1.0  # seconds in which the coordinator's word may come, after a server was found dead
ADVICE = "; start again with --resume to go on from the checkpoint"


class JobFailed(RuntimeError):
    """The job cannot go on; the message says why."""


class Told(JobFailed):
    """The job cannot go on, and the coordinator has said why."""


class Stalled(JobFailed):
    """The job cannot go on without a server that is silent.

    Attributes:
        rank: of the server.
    """

    def __init__(self, rank: int, seconds: float) -> None:
        name = f"server {rank}{'' if rank else ', the coordinator,'}"
        super().__init__(f"{name} was silent for {seconds:.0f} s{ADVICE}")
        self.rank = rank


class Watch:
    """Looks after the servers, on any rank: the coordinator listens for all of them, the others for the coordinator.

    Args:
        endpoint: of this rank.
        roles: of all ranks.
    """

    def __init__(self, endpoint: Endpoint, roles: Roles) -> None:
        self._endpoint, self._roles = endpoint, roles
        self._listened = [0] if endpoint.rank else roles.server_ranks[1:]

    def look(self) -> None:
        """See whether the servers are there; to be called between messages, at least every TICK seconds.

        Raises:
            JobFailed: if one is gone; `Stalled` if it is silent, `Told` if the coordinator has said what happened.
        """
        for rank in sorted(self._endpoint.dead):
            if self._roles.is_server(rank):
                self._wait_for_word()
                raise JobFailed(f"server {rank} is gone{ADVICE}")
        for rank, seconds in self._endpoint.silent(self._listened).items():
            raise Stalled(rank, seconds)

    def _wait_for_word(self) -> None:
        """Raise Told if the coordinator says in time that the job has failed: this rank may know only a part of it."""
        until = time.monotonic() + PATIENCE
        while self._endpoint.rank and time.monotonic() < until:
            message = self._endpoint.wait(TICK)
            if message is not None and message.kind == Kind.FAILED:
                raise Told(message.text())
