"""Whether the process of a container is well, told by the exit code: Docker's health checks.

    python -IS container_health.py prefect | mlflow | heartbeat

A check runs two or three times a minute for as long as the platform is up. As a command of `mlops`
it took 0.4 s of a core each time, most of that for imports; this takes 0.02 s. So it stands alone,
in Python without site packages, with nothing of ours imported, and reads the environment by itself.
"""

import os
import socket
import sys
import time
from binascii import b2a_base64

HEARTBEAT_LIMIT_SECONDS = 60.0
TIMEOUT_SECONDS = 5.0

# What each server answers with 200 only if its database does; both their own `/health` are content
# without. MLflow's default experiment, number 0, is always there: a deleted one can still be read.
PREFECT_PATH = "/api/ready"
MLFLOW_PATH = "/api/2.0/mlflow/experiments/get?experiment_id=0"


class UnwellError(Exception):
    """The process is not well; the message says in which way."""


def check_server(port: int, path: str, username: str, password: str) -> None:
    """Ask the server in this container, all the way down to its database.

    Args:
        port: Where it listens.
        path: What to ask for.
        username: A user of the server's.
        password: Its password.

    Raises:
        UnwellError: No answer, or any other than 200.
    """
    login = b2a_base64(f"{username}:{password}".encode(), newline=False).decode()
    request = (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Basic {login}\r\n"
        "Connection: close\r\n\r\n"
    )
    try:
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_SECONDS) as connection:
            connection.sendall(request.encode())
            answer = connection.makefile("rb").read()
    except OSError as error:
        raise UnwellError(f"port {port} does not answer: {error}") from None
    status = answer.split(b"\r\n", 1)[0].decode(errors="replace")
    if status.split(" ")[1:2] != ["200"]:
        raise UnwellError(f"GET {path} gave {status or 'nothing'}")


def check_heartbeat(file: str) -> None:
    """See whether a process touched its file in the last minute (`mlops.heartbeat`).

    Args:
        file: Which one it is.

    Raises:
        UnwellError: It did not.
    """
    try:
        # From the future it says as little: the clock was set back since.
        age = abs(time.time() - os.stat(file).st_mtime)  # noqa: PTH116  # pathlib takes time
    except OSError:
        raise UnwellError("has not reached its servers yet") from None
    if age > HEARTBEAT_LIMIT_SECONDS:
        raise UnwellError(f"has not reached its servers for {age:.0f} s")


def check(name: str) -> None:
    """Check the process of that name, as the container's environment describes it.

    Args:
        name: `prefect`, `mlflow` or `heartbeat`.

    Raises:
        UnwellError: It is not well.
    """
    env = os.environ
    if name == "heartbeat":
        check_heartbeat(env["MLOPS_HEARTBEAT_FILE"])
    elif name == "prefect":
        user, password = env.get("PREFECT_USERNAME", "admin"), env["PREFECT_PASSWORD"]
        check_server(int(env["LISTEN_PORT"]), PREFECT_PATH, user, password)
    else:
        user, password = env.get("MLFLOW_ADMIN_USERNAME", "admin"), env["MLFLOW_ADMIN_PASSWORD"]
        check_server(int(env["LISTEN_PORT"]), MLFLOW_PATH, user, password)


if __name__ == "__main__":
    try:
        check(sys.argv[1])
    except UnwellError as error:
        sys.exit(f"{sys.argv[1]}: {error}")
