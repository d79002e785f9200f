"""Whether each service of the embedded platform is well."""

import datetime as dt
import socket

from mlops import health
from mlops.credentials import KeyPair
from mlops.local.home import HOST, Ports, addresses
from mlops.local.services import Situation

ANSWERING = frozenset({"postgres", "s3", "prefect", "mlflow", "agent"})
"""The services that can be asked; of the others only their process is known."""


def check(name: str, situation: Situation, pid: int) -> None:
    """Ask a running service whether it is well.

    Args:
        name: The service.
        situation: Its platform.
        pid: Its process.

    Raises:
        UnhealthyError: It is not.
    """
    state, credentials = situation.state, situation.credentials
    urls = addresses(state.ports)
    if name in Ports._fields:
        _check_listening(getattr(state.ports, name))
    if name == "postgres":
        health.check_postgres(
            HOST, state.ports.postgres, "postgres", "postgres", credentials.postgres_password
        )
    elif name == "s3":
        health.check_s3(
            urls.s3,
            KeyPair(
                access_key_id=credentials.minio_root_user,
                secret_access_key=credentials.minio_root_password,
            ),
        )
    elif name == "prefect":
        health.check_prefect(
            urls.prefect, credentials.prefect_username, credentials.prefect_password
        )
    elif name == "mlflow":
        health.check_mlflow(
            urls.mlflow, credentials.mlflow_admin_username, credentials.mlflow_admin_password
        )
    elif name == "agent":
        _check_agent(situation, pid)


def _check_listening(port: int) -> None:
    """See whether anything listens: much cheaper than a real question, and asked first."""
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        raise health.UnhealthyError(f"nothing listens on {HOST}:{port}") from None


def _check_agent(situation: Situation, pid: int) -> None:
    """Ask Prefect whether a worker has reported since the agent's process was started."""
    import psutil

    pool = situation.state.pool_name
    url = f"{addresses(situation.state.ports).prefect}/api/work_pools/{pool}/workers/filter"
    credentials = situation.credentials
    workers = health.ask(
        "POST", url, credentials.prefect_username, credentials.prefect_password, json={}
    ).json()
    try:
        started = dt.datetime.fromtimestamp(psutil.Process(pid).create_time(), dt.UTC)
    except psutil.Error as error:
        raise health.UnhealthyError(f"agent: {error}") from None
    heartbeats = [worker["last_heartbeat_time"] for worker in workers]
    if not any(dt.datetime.fromisoformat(beat) >= started for beat in heartbeats if beat):
        raise health.UnhealthyError(f"agent: no worker has reported to the work pool {pool}")
