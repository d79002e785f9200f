import base64
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from mlops import container_health
from mlops.container_health import HEARTBEAT_LIMIT_SECONDS

SECRET = "p@ss:wörd%"
LOGIN = base64.b64encode(f"admin:{SECRET}".encode()).decode()
ENVIRONMENTS = {
    "prefect": {"PREFECT_PASSWORD": SECRET},
    "mlflow": {"MLFLOW_ADMIN_USERNAME": "admin", "MLFLOW_ADMIN_PASSWORD": SECRET},
}


def check(name: str, **environment: str) -> tuple[int, str]:
    """Run a check as Docker does; return its exit code and what it says."""
    done = subprocess.run(
        [sys.executable, "-IS", container_health.__file__, name],
        env={"PATH": os.environ["PATH"], "PYTHONIOENCODING": "utf-8", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


class Server(HTTPServer):
    """Answers one question with 200, or with 401 without the right login, or with its status."""

    status = 200
    question = container_health.PREFECT_PATH


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:  # so it is called
        right = self.headers["Authorization"] == f"Basic {LOGIN}"
        known = self.path == self.server.question
        self.send_response((self.server.status if known else 404) if right else 401)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), _Handler) as found:
        Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_server_that_answers_is_well(server: Server, name: str) -> None:
    """The check asks what makes the server ask its database, as who may."""
    if name == "mlflow":
        server.question = container_health.MLFLOW_PATH
    found = check(name, LISTEN_PORT=str(server.server_port), **ENVIRONMENTS[name])
    assert found == (0, "")


@pytest.mark.parametrize("status", [503, 500, 302])
def test_server_without_its_database_is_not_well(server: Server, status: int) -> None:
    """Any answer but 200 fails, and is shown."""
    server.status = status
    code, said = check("prefect", LISTEN_PORT=str(server.server_port), **ENVIRONMENTS["prefect"])
    assert code == 1
    assert f"prefect: GET /api/ready gave HTTP/1.0 {status}" in said


def test_refused_login_is_not_well(server: Server) -> None:
    """A wrong password is an answer other than 200, and is not shown."""
    code, said = check("prefect", LISTEN_PORT=str(server.server_port), PREFECT_PASSWORD="other")
    assert code == 1
    assert "401" in said
    assert "other" not in said


def test_server_that_does_not_answer_is_not_well() -> None:
    """Where nobody listens the check says so, without a traceback."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        code, said = check("mlflow", LISTEN_PORT=str(port), **ENVIRONMENTS["mlflow"])
    assert code == 1
    assert said.startswith(f"mlflow: port {port} does not answer: ")
    assert "Traceback" not in said


def test_process_that_touched_its_file_is_well(tmp_path: Path) -> None:
    """A beat of this minute is enough."""
    file = tmp_path / "heartbeat"
    file.touch()
    assert check("heartbeat", MLOPS_HEARTBEAT_FILE=str(file)) == (0, "")


def test_process_that_never_beat_is_not_well(tmp_path: Path) -> None:
    """Without the file nothing was reached so far."""
    code, said = check("heartbeat", MLOPS_HEARTBEAT_FILE=str(tmp_path / "heartbeat"))
    assert (code, said) == (1, "heartbeat: has not reached its servers yet\n")


@pytest.mark.parametrize("age", [HEARTBEAT_LIMIT_SECONDS + 10, -HEARTBEAT_LIMIT_SECONDS - 20])
def test_old_beat_is_not_well(tmp_path: Path, age: float) -> None:
    """A beat of more than a minute ago does not count, nor one from the future."""
    file = tmp_path / "heartbeat"
    file.touch()
    then = time.time() - age
    os.utime(file, (then, then))
    code, said = check("heartbeat", MLOPS_HEARTBEAT_FILE=str(file))
    assert code == 1
    assert said.startswith("heartbeat: has not reached its servers for ")
