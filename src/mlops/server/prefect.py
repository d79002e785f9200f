"""How the Prefect server is started."""

import os
import sys
from typing import NoReturn
from urllib.parse import quote

from mlops.server.prefect_app import POOL_VARIABLE
from mlops.settings import PrefectServerSettings


def prefect_environment(settings: PrefectServerSettings) -> dict[str, str]:
    """Return Prefect's own settings for our server.

    Args:
        settings: Ports, addresses and secrets.
    """
    password = quote(settings.prefect_db_password.get_secret_value(), safe="")
    return {
        "PREFECT_HOME": str(settings.mlops_runtime_dir),
        "PREFECT_SERVER_API_HOST": settings.listen_host,
        "PREFECT_SERVER_API_PORT": str(settings.listen_port),
        "PREFECT_SERVER_API_AUTH_STRING": (
            f"{settings.prefect_username}:{settings.prefect_password.get_secret_value()}"
        ),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": (
            f"postgresql+asyncpg://prefect:{password}"
            f"@{settings.postgres_host}:{settings.postgres_port}/prefect"
        ),
        # All that are opened at most are kept: of the stock 5 + 10 ten were opened anew, each with
        # a process of PostgreSQL's, whenever more than five were in use.
        "PREFECT_SERVER_DATABASE_SQLALCHEMY_POOL_SIZE": "15",
        "PREFECT_SERVER_DATABASE_SQLALCHEMY_MAX_OVERFLOW": "0",
        # Relative, so that the UI works under every address that reaches the server.
        "PREFECT_SERVER_UI_API_URL": "/api",
        # The default lies inside the installed package, which may be read-only.
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(settings.mlops_runtime_dir / "ui"),
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(
            settings.prefect_retention_days * 86400
        ),
        POOL_VARIABLE: settings.pool_name,
        # What `prefect server start` sets for the process that it starts.
        "PREFECT__SERVER_FINAL": "1",
    }


def run_prefect(settings: PrefectServerSettings) -> NoReturn:
    """Become the Prefect server.

    The process is replaced by the command that `prefect server start --background` runs, with
    our application around Prefect's, so that its process id stays the supervisor's, and none of
    the command line's own imports stay in memory.

    Args:
        settings: Ports, addresses and secrets.
    """
    settings.mlops_runtime_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    command = [
        *(
            sys.executable,
            "-P",
            "-m",
            "uvicorn",
            "--factory",
            "mlops.server.prefect_app:create_app",
        ),
        *("--host", settings.listen_host, "--port", str(settings.listen_port)),
        *("--timeout-keep-alive", "5", "--log-level", "warning"),
    ]
    os.execve(command[0], command, {**os.environ, **prefect_environment(settings)})  # noqa: S606
