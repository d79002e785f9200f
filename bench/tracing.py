"""A proxy that sees what passes between agents and the Prefect server."""

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple
from urllib.parse import urlsplit

from mlops.local.home import HOST

_REQUEST = re.compile(rb"(GET|POST|PATCH|PUT|DELETE) (/\S*) HTTP/1\.1\r\n")
_NUMBERS = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")


class Passage(NamedTuple):
    """One request that passed; times in seconds since the epoch."""

    name: str
    asked: float
    answered: float


class TracingProxy:
    """Stands before the Prefect server, counts the requests that pass and notes the answered ones.

    Args:
        upstream: The server's address.
    """

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or "", parts.port or 80)
        self._lock = threading.Lock()
        self.listener = socket.create_server((HOST, 0), backlog=256)
        self.api = f"http://{HOST}:{self.listener.getsockname()[1]}/api"
        self.requests = 0
        self.passages: list[Passage] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(self._upstream)
                for each in (client, server):
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                waiting: list[tuple[str, float]] = []
                for act in (self._ask, self._answer):
                    threading.Thread(
                        target=act, args=(client, server, waiting), daemon=True
                    ).start()

    def _ask(
        self, client: socket.socket, server: socket.socket, waiting: list[tuple[str, float]]
    ) -> None:
        with suppress(OSError):
            while block := client.recv(1 << 16):
                if match := _REQUEST.match(block):
                    with self._lock:
                        self.requests += 1
                    path = _NUMBERS.sub("…", match[2].decode()).partition("?")[0]
                    waiting.append((f"{match[1].decode()} {path}", time.time()))
                server.sendall(block)
            server.shutdown(socket.SHUT_RDWR)

    def _answer(
        self, client: socket.socket, server: socket.socket, waiting: list[tuple[str, float]]
    ) -> None:
        with suppress(OSError):
            while block := server.recv(1 << 16):
                if waiting and block.startswith(b"HTTP/1.1"):
                    name, asked = waiting.pop(0)
                    self.passages.append(Passage(name, asked, time.time()))
                client.sendall(block)
            client.shutdown(socket.SHUT_RDWR)


@contextmanager
def tracing_proxy(upstream: str) -> Iterator[TracingProxy]:
    """See the requests to a server for as long as the context lasts."""
    proxy = TracingProxy(upstream)
    try:
        yield proxy
    finally:
        proxy.listener.close()
