"""How many bytes a message can have, by what all ranks agreed on: one of more is refused when its header comes."""

from __future__ import annotations

from collections.abc import Callable

from hvd_compress.parameter_server.codecs import vector_bytes
from hvd_compress.parameter_server.runtime.messages import SMALL, Kind, Refused
from hvd_compress.parameter_server.runtime.roles import Roles, Shard

NAME = 16  # bytes of a rank in the JSON of a round
DELAY = 40  # bytes of a delay and its number in the JSON of a report

# What is in the payload of a message of each kind, by whether its sender and its receiver are servers.
TO_WORKER = {
    Kind.SNAPSHOT: "vector",
    Kind.MODEL: "vector",
    Kind.ASK: "vector",
    Kind.REFUSED: "text",
    # of the coordinator alone:
    Kind.START: "text",
    Kind.END: "nothing",
    Kind.DROP: "nothing",
    Kind.STOP: "nothing",
    Kind.FAILED: "text",
}
TO_SERVER = {
    Kind.SNAPSHOT: "nothing",
    Kind.PART: "vector",
    Kind.MODEL: "nothing",
    Kind.PUSH: "vector",
    Kind.WITHDRAW: "nothing",
    Kind.BYE: "nothing",
    Kind.FAILED: "text",
}
COORDINATOR_TO_SERVER = {
    Kind.START: "text",
    Kind.DROP: "nothing",
    Kind.STOP: "nothing",
    Kind.BYE: "nothing",
    Kind.FAILED: "text",
}
SERVER_TO_COORDINATOR = {Kind.REPORT: "text", Kind.SNAPSHOT: "vector", Kind.FAILED: "text"}
OF_ANY_SERVER = (Kind.SNAPSHOT, Kind.MODEL, Kind.ASK, Kind.REFUSED)


class Bounds:
    """The bounds of what one rank is sent.

    Args:
        roles: of all ranks.
        rank: this one.
        shards: of the model, one a server.
        steps: of an epoch: a delay is none but one of so many.
        answer: gives the most bytes of a worker's answer, on a server.
    """

    def __init__(
        self, roles: Roles, rank: int, shards: list[Shard], steps: int, answer: Callable[[], int] = lambda: 0
    ) -> None:
        self._roles, self._rank, self._shards, self._answer = roles, rank, shards, answer
        self._text = SMALL + NAME * roles.size + DELAY * (steps + 1)

    def __call__(self, source: int, kind: Kind) -> int:
        """Return the most bytes of the payload of a rank's message.

        Raises:
            Refused: if that rank sends this one nothing of that kind.
        """
        holds = self._sent_by(source).get(kind)
        if holds is None:
            raise Refused(source, f"rank {source} sent a message of kind {kind.name}, which is not for it to send here")
        if holds == "nothing":
            return 0
        if holds == "text":
            return self._text
        if not self._roles.is_server(source):
            return max(self._answer(), vector_bytes(self._shards[self._rank].layout.size))
        return vector_bytes(self._shards[source].layout.size)

    def _sent_by(self, source: int) -> dict[Kind, str]:
        if self._roles.is_server(self._rank):
            if not self._roles.is_server(source):
                return TO_SERVER
            if source == 0:
                return COORDINATOR_TO_SERVER
            return SERVER_TO_COORDINATOR if self._rank == 0 else {}
        if not self._roles.is_server(source):
            return {}
        return TO_WORKER if source == 0 else {kind: TO_WORKER[kind] for kind in OF_ANY_SERVER}
