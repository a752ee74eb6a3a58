"""A TCP port of each process: there other ranks ask in which step its reducers are, and tell of their errors."""

from __future__ import annotations

import functools
import hmac
import json
import logging
import secrets
import socket
import socketserver
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol
from weakref import WeakSet

logger = logging.getLogger("hvd_compress")

ANSWER_SECONDS = 5.0  # that a worker is given to answer
MOST_BYTES = 1 << 20  # of what is told
Address = tuple[str, int, str]
"""Host name, port, and the word that a question begins with."""


class Asked(Protocol):
    """Who answers at a port: a reducer's progress.

    Attributes:
        name: what all workers call it.
    """

    name: str

    def describe(self) -> dict[str, Any]:
        """Return what others are told."""

    def hear(self, told: dict[str, Any]) -> None:
        """Take what another worker has sent to this name, or to all, which is an error's ``text`` at least."""


class Port:
    """Answers for all that is `watched` in this process.

    Attributes:
        address: where, and by which word.
        early: what came for a name that nobody has yet, by name: its sender has agreed on it a little earlier.
    """

    def __init__(self) -> None:
        self.word = secrets.token_hex(16)
        self.watched: WeakSet[Any] = WeakSet()
        self.early: dict[str, dict[str, Any]] = {}
        server = socketserver.ThreadingTCPServer(("", 0), _Answer)
        server.daemon_threads = True
        server.port = self  # type: ignore[attr-defined]
        self.address: Address = (socket.gethostname(), server.server_address[1], self.word)
        threading.Thread(target=server.serve_forever, daemon=True, name="hvd_compress.port").start()

    def hear(self, told: dict[str, Any]) -> None:
        """Log an error of another rank, and hand it to those whom it is for.

        That a rank has left its plan is none where the others have, too: those who have not will raise it.
        """
        if not told.get("left"):
            logger.error("%s", told["text"])
        name = told.get("name")
        if name is not None:
            self.early[name] = told  # first, for another thread may take this name at any moment
        for asked in self.asked():
            if name in (None, asked.name):
                asked.hear(told)
                self.early.pop(name or "", None)

    def asked(self) -> list[Asked]:
        """Return those who answer now."""
        return list(self.watched)


class _Answer(socketserver.StreamRequestHandler):
    timeout = ANSWER_SECONDS

    def handle(self) -> None:
        port: Port = self.server.port  # type: ignore[attr-defined]
        if hmac.compare_digest(self.rfile.read(len(port.word)), port.word.encode()):
            if data := self.rfile.read(MOST_BYTES):
                port.hear(json.loads(data))
            self.wfile.write(json.dumps({asked.name: asked.describe() for asked in port.asked()}).encode())


def ask(address: Address, told: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """Tell another process something; return what its reducers say of themselves, or None if it does not answer."""
    host, port, word = address
    try:
        where = "127.0.0.1" if host == socket.gethostname() else host
        with socket.create_connection((where, port), ANSWER_SECONDS) as connection:
            connection.settimeout(ANSWER_SECONDS)
            connection.sendall(word.encode() + (json.dumps(told).encode() if told is not None else b""))
            connection.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(functools.partial(connection.recv, 4096), b""))
        return dict(json.loads(answer))
    except (OSError, ValueError):
        return None


def ask_all(addresses: Sequence[Address], told: dict[str, Any] | None = None) -> list[dict[str, Any] | None]:
    """Ask several processes at once; return their answers, as `ask`."""
    if not addresses:
        return []
    with ThreadPoolExecutor(len(addresses)) as pool:
        return list(pool.map(functools.partial(ask, told=told), addresses))
