"""How the MLflow tracking server is started: in one process, with logins.

The `mlflow server` command keeps its own process (150 to 200 MB) beside the worker that it
starts. We do in one process what the two do: prepare the stores, make sure of the admin, serve.
MLflow is pinned to an exact version; the private names used here, to be looked at when the pin
moves, are the `_MLFLOW_…` variables of `mlflow.server._run_server`,
`mlflow.server.auth.create_app` and `.store`, and `build_server_info_payload`.
"""

import configparser
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mlops.settings import MlflowServerSettings

ARTIFACT_ROOT = "s3://mlflow"


def allowed_hosts(addresses: tuple[str, ...], port: int) -> list[str]:
    """Return the values of the Host header that MLflow accepts.

    Args:
        addresses: Host names and addresses that the server answers to.
        port: The port that clients use.
    """
    return [host for address in addresses for host in (address, f"{address}:{port}")]


def allowed_origins(addresses: tuple[str, ...], port: int) -> list[str]:
    """Return the origins whose pages may change something; without them the UI gets 403.

    Args:
        addresses: Host names and addresses that the server answers to.
        port: The port that clients use.
    """
    return [
        f"{scheme}://{host}"
        for host in allowed_hosts(addresses, port)
        for scheme in ("http", "https")
    ]


def database_uri(settings: MlflowServerSettings) -> str:
    """Return SQLAlchemy's address of MLflow's database, with its password."""
    password = quote(settings.mlflow_db_password.get_secret_value(), safe="")
    return (
        f"postgresql+psycopg2://mlflow:{password}"
        f"@{settings.postgres_host}:{settings.postgres_port}/mlrun"
    )


def mlflow_environment(settings: MlflowServerSettings) -> dict[str, str]:
    """Return what MLflow's server reads from its environment.

    Args:
        settings: Ports, addresses and secrets.
    """
    names, port = settings.mlops_addresses, settings.listen_port
    return {
        "_MLFLOW_SERVER_FILE_STORE": database_uri(settings),
        "_MLFLOW_SERVER_REGISTRY_STORE": database_uri(settings),
        "_MLFLOW_SERVER_ARTIFACT_ROOT": ARTIFACT_ROOT,
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": ARTIFACT_ROOT,
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "_MLFLOW_SERVER_BOOT_ID": uuid.uuid4().hex,
        "_MLFLOW_IN_JOB_EXECUTOR": "false",
        "_MLFLOW_SGI_NAME": "uvicorn",
        "MLFLOW_AUTH_CONFIG_PATH": str(_auth_config_path(settings)),
        "MLFLOW_AUTH_ADMIN_USERNAME": settings.mlflow_admin_username,
        "MLFLOW_AUTH_ADMIN_PASSWORD": settings.mlflow_admin_password.get_secret_value(),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": (
            settings.mlflow_flask_server_secret_key.get_secret_value()
        ),
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(allowed_hosts(names, port)),
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(allowed_origins(names, port)),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_ENABLE_WORKSPACES": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_S3_ENDPOINT_URL": settings.aws_endpoint_url_s3,
    }


def write_auth_config(settings: MlflowServerSettings) -> None:
    """Write the file that MLflow's basic-auth app takes its settings from, mode 0600.

    Args:
        settings: The database that holds the users, beside MLflow's own tables.
    """
    config = configparser.ConfigParser(interpolation=None)
    config["mlflow"] = {
        # The agent logs to experiments that an experimenter made, and the other way round.
        "default_permission": "EDIT",
        # MLflow reads the file with interpolation.
        "database_uri": database_uri(settings).replace("%", "%%"),
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
        # The stock login hashes the password at every request: 222 to 475 ms instead of 10.
        "auth_cache_ttl_seconds": "300",
    }
    path = _auth_config_path(settings)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        config.write(file)


def run_mlflow(settings: MlflowServerSettings) -> None:
    """Serve MLflow until a signal ends it.

    Args:
        settings: Ports, addresses and secrets.
    """
    write_auth_config(settings)
    os.environ.update(mlflow_environment(settings))
    # Only now: MLflow's modules read the environment when they are imported.
    import mlflow.server
    import uvicorn
    from mlflow.server import auth
    from mlflow.server.handlers import initialize_backend_stores

    initialize_backend_stores(database_uri(settings), database_uri(settings), ARTIFACT_ROOT)
    _report_proxied_transfers_only()
    application = auth.create_app()  # creates the admin when there is none
    _converge_users(settings, auth.store)
    uvicorn.run(
        application,
        host=settings.listen_host,
        port=settings.listen_port,
        log_config=str(Path(mlflow.server.__file__).parent / "uvicorn_log_config.yaml"),
        access_log=False,
    )


def _auth_config_path(settings: MlflowServerSettings) -> Path:
    return settings.mlops_runtime_dir / "basic_auth.ini"


def _converge_users(settings: MlflowServerSettings, store: Any) -> None:
    """Give the admin and each role's user the configured password; make the users missing.

    MLflow itself sets the admin's password at its first start only.
    """
    users = {
        settings.mlflow_admin_username: settings.mlflow_admin_password,
        "agent": settings.mlflow_agent_password,
        "experimenter": settings.mlflow_experimenter_password,
    }
    for name, secret in users.items():
        password = secret.get_secret_value()
        if not store.has_user(name):
            store.create_user(name, password)
        elif not store.authenticate_user(name, password):
            store.update_user(name, password=password)


def _report_proxied_transfers_only() -> None:
    """Tell clients that this server hands out no presigned addresses.

    An S3-backed MLflow 3.17 offers transfers presigned for its own S3 address, which clients
    on other hosts cannot reach: a 400 MB download was seen to hang. MLflow has no setting
    for what it offers, only each client for what it takes up.
    """
    from mlflow.server import handlers, server_info_api
    from mlflow.utils import server_info

    stock: Callable[[], dict[str, Any]] = handlers.build_server_info_payload

    def build_server_info_payload() -> dict[str, Any]:
        return stock() | {
            server_info.SERVER_INFO_MULTIPART_UPLOADS_ENABLED: False,
            server_info.SERVER_INFO_MULTIPART_DOWNLOADS_ENABLED: False,
        }

    for module in (handlers, server_info_api):  # both hold the name
        vars(module)["build_server_info_payload"] = build_server_info_payload
