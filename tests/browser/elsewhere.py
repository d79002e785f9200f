"""A proxy for everything that a page asks of any other host than its own: noted, and refused."""

import contextlib
import socketserver
import threading
from collections.abc import Iterator


class Elsewhere(socketserver.ThreadingTCPServer):
    """The proxy.

    Attributes:
        asked: The first line of each request, such as `CONNECT example.org:443 HTTP/1.1`.
        url: Where it listens.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Refusal)
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Refusal(socketserver.StreamRequestHandler):
    server: Elsewhere

    def handle(self) -> None:
        if line := self.rfile.readline().decode().strip():
            self.server.asked.append(line)
            self.wfile.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")


@contextlib.contextmanager
def elsewhere() -> Iterator[Elsewhere]:
    """Run the proxy for a while."""
    with Elsewhere() as proxy:
        thread = threading.Thread(target=proxy.serve_forever, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()
