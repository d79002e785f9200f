"""The agent's health port: whether it is well, its status, and the same as Prometheus metrics.

The standard library's server, in threads of the agent: Prefect has imported it and Prometheus's
client already. So it costs no memory, and answers also when the agent's event loop hangs.
"""

import contextlib
import errno
import logging
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

from mlops.agent.metrics import StatusMetrics
from mlops.agent.status import AgentStatus
from mlops.errors import MlopsError

CLIENT_TIMEOUT_SECONDS = 5.0

logger = logging.getLogger("mlops.agent")


@contextlib.contextmanager
def health_port(bind: str, port: int, read: Callable[[], AgentStatus]) -> Iterator[int]:
    """Answer on a port for the length of the block; yields its number.

    Args:
        bind: The address to listen on.
        port: 0: any that is free.
        read: Returns the status; called in a thread for every question.

    Raises:
        MlopsError: The port or the address cannot be had.
    """
    try:
        server = (_IPv6Server if ":" in bind else _Server)((bind, port), partial(_Handler, read))
    except OSError as error:
        taken = error.errno in {errno.EADDRINUSE, errno.EACCES}
        name, mend = (
            ("MLOPS_AGENT_PORT", "let it name a free port, or 0 for any")
            if taken
            else ("MLOPS_AGENT_BIND", "let it name an address of this machine, such as 127.0.0.1")
        )
        raise MlopsError(
            f"{name}: the agent cannot listen on {bind}:{port}: {error.strerror}", hint=mend
        ) from error
    with server:
        threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


class _Server(socketserver.ThreadingTCPServer):
    """Not `HTTPServer`: that asks the name service who it is, which may take seconds."""

    allow_reuse_address = True
    daemon_threads = True


class _IPv6Server(_Server):
    address_family = socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    timeout = CLIENT_TIMEOUT_SECONDS

    def __init__(self, read: Callable[[], AgentStatus], *request: Any) -> None:
        self._read = read
        super().__init__(*request)  # which answers at once

    def do_GET(self) -> None:
        """Answer."""
        answer = {"/health": self._health, "/status": self._status, "/metrics": self._metrics}.get(
            urlsplit(self.path).path
        )
        if answer is None:
            self._send(HTTPStatus.NOT_FOUND, "there are: /health /status /metrics\n")
            return
        try:
            status = self._read()
        except Exception as error:  # the agent goes on, and its log says why
            logger.exception("the agent's status cannot be told")
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}\n")
        else:
            answer(status)

    def _health(self, status: AgentStatus) -> None:
        if status.healthy:
            self._send(HTTPStatus.OK, "healthy\n")
        else:
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, f"{status.problem}\n")

    def _status(self, status: AgentStatus) -> None:
        self._send(HTTPStatus.OK, status.model_dump_json(), "application/json")

    def _metrics(self, status: AgentStatus) -> None:
        registry = CollectorRegistry()
        registry.register(StatusMetrics(status))
        ProcessCollector(registry=registry)
        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        self._send(HTTPStatus.OK, encode(registry).decode(), content_type)

    def _send(
        self, code: HTTPStatus, text: str, content_type: str = "text/plain; charset=utf-8"
    ) -> None:
        body = text.encode()
        with contextlib.suppress(OSError):  # whoever asked is gone
            self.send_response(code)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def version_string(self) -> str:
        """Name no versions of libraries."""
        return "mlops"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # its name there
        """Say nothing: it is asked every few seconds."""
