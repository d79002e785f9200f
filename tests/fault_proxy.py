"""A proxy before a real HTTP server, whose connections a test can break at a chosen request."""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO, Literal, NamedTuple, Self
from urllib.parse import urlsplit

Fault = Literal["refuse", "cut", "hang"]

_BLOCK_BYTES = 1 << 16
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Request(NamedTuple):
    """What a client asked for; `target` is the path with the query."""

    method: str
    target: str


class FaultProxy:
    """Passes requests on to a server until its fault begins.

    The faults: `refuse` closes the port and every connection before the request is passed on, as
    a server does that ends; `cut` passes the request on and closes the connection instead of
    giving back the answer; `hang` passes it on and never gives back the answer.

    Args:
        upstream: The server's address, `http://host:port`.
        fault: What happens.
        healthy_requests: How many requests pass before; None: all of them.
        before: Is called with each request before it is passed on, which waits for it.
        rewrite: Changes the body of every answer.
        partial_status: Whether a part of an object has status 206, as other S3 servers give it and
            rclone does not.
    """

    def __init__(
        self,
        upstream: str,
        fault: Fault = "refuse",
        healthy_requests: int | None = None,
        *,
        before: Callable[[Request], None] | None = None,
        rewrite: Callable[[bytes], bytes] | None = None,
        partial_status: bool = False,
    ) -> None:
        address = urlsplit(upstream)
        self._upstream = (address.hostname or "", address.port or 80)
        self._fault = fault
        self._healthy_requests = healthy_requests
        self._before = before
        self._rewrite = rewrite
        self._partial_status = partial_status
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.requests: list[Request] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._close()

    @property
    def broken(self) -> bool:
        """Whether the fault has begun."""
        limit = self._healthy_requests
        return limit is not None and len(self.requests) > limit

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _close(self) -> None:
        with contextlib.suppress(OSError):
            # A thread that waits in `accept` keeps a port open that is only closed.
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._connections:
                _reset(connection)

    def _serve(self, client: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),  # either end may go away at any time
            client,
            self._open(client),
            socket.create_connection(self._upstream) as server,
            self._open(server),
            client.makefile("rb") as questions,
            server.makefile("rb") as answers,
        ):
            while question := _read_head(questions):
                fault = self._count(question)
                if fault == "refuse":
                    self._close()
                    return
                if any(line.lower().startswith(b"expect:") for line in question):
                    client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                server.sendall(_without_expectation(question))
                for block in _body(questions, question, chunked_kept=True):
                    server.sendall(block)
                answer = _read_head(answers)
                if fault == "hang":
                    questions.read()  # until the client has had enough
                if fault or not answer:
                    _reset(client)
                    return
                self._give_back(client, question, answer, answers)

    def _count(self, head: list[bytes]) -> Fault | None:
        """Note a request, and return what is to happen to it."""
        request = Request(*head[0].decode().split(" ")[:2])
        with self._lock:
            self.requests.append(request)
            fault = self._fault if self.broken else None
        if self._before:
            self._before(request)
        return fault

    def _give_back(
        self, client: socket.socket, question: list[bytes], head: list[bytes], answers: BinaryIO
    ) -> None:
        status = int(head[0].split(b" ", 2)[1])
        empty = question[0].startswith(b"HEAD ") or status in {204, 304}
        if self._partial_status and any(f.lower().startswith(b"content-range:") for f in head):
            head[0] = b"HTTP/1.1 206 Partial Content\r\n"
        if self._rewrite is None or empty:
            client.sendall(b"".join(head))
            for block in () if empty else _body(answers, head, chunked_kept=True):
                client.sendall(block)
            return
        body = self._rewrite(b"".join(_body(answers, head, chunked_kept=False)))
        kept = [
            line
            for line in head[:-1]
            if line.partition(b":")[0].lower() not in {b"content-length", b"transfer-encoding"}
        ]
        client.sendall(b"".join([*kept, f"Content-Length: {len(body)}\r\n\r\n".encode(), body]))

    @contextlib.contextmanager
    def _open(self, connection: socket.socket) -> Iterator[None]:
        with self._lock:
            self._connections.add(connection)
        try:
            yield
        finally:
            with self._lock:
                self._connections.discard(connection)


def _reset(connection: socket.socket) -> None:
    """End a connection as a process does that is killed: nothing more is sent."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        connection.shutdown(socket.SHUT_RDWR)


def _read_head(stream: BinaryIO) -> list[bytes]:
    """Return the lines up to and with the empty one; none at the stream's end."""
    lines: list[bytes] = []
    while line := stream.readline():
        lines.append(line)
        if line == b"\r\n":
            return lines
    return []


def _without_expectation(head: list[bytes]) -> bytes:
    """Return a request's head as the server gets it: it would ask for the body that it gets anyway,
    and that would be an answer more.
    """
    return b"".join(line for line in head if not line.lower().startswith(b"expect:"))


def _body(stream: BinaryIO, head: list[bytes], *, chunked_kept: bool) -> Iterator[bytes]:
    """Yield a message's body, as it came or without the marks of its chunks."""
    fields = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(b":") for line in head[1:-1])
    }
    if fields.get(b"transfer-encoding") != b"chunked":
        yield from _blocks(stream, int(fields.get(b"content-length", 0)))
        return
    while True:
        mark = stream.readline()
        size = int(mark.split(b";")[0], 16)
        if chunked_kept:
            yield mark
        yield from _blocks(stream, size)
        end = stream.readline()
        if chunked_kept:
            yield end
        if size == 0:
            return


def _blocks(stream: BinaryIO, size: int) -> Iterator[bytes]:
    while size > 0 and (block := stream.read(min(size, _BLOCK_BYTES))):
        size -= len(block)
        yield block
