import configparser
import stat
from pathlib import Path

import pytest
from sqlalchemy import make_url

from mlops.server.mlflow import (
    allowed_hosts,
    allowed_origins,
    database_uri,
    mlflow_environment,
    write_auth_config,
)
from mlops.settings import MlflowServerSettings


@pytest.fixture
def settings(tmp_path: Path) -> MlflowServerSettings:
    """What the server is told."""
    return MlflowServerSettings.model_validate(
        {
            "listen_port": 5050,
            "mlops_addresses": "localhost, gpu.example.org",
            "mlops_runtime_dir": tmp_path / "run",
            "postgres_port": 5433,
            "mlflow_db_password": "p@ss/%41:w?#",
            "mlflow_admin_password": "admin-secret",
            "mlflow_agent_password": "agent-secret",
            "mlflow_experimenter_password": "experimenter-secret",
            "mlflow_flask_server_secret_key": "flask-secret",
            "aws_endpoint_url_s3": "http://127.0.0.1:9000",
            "aws_access_key_id": "key",
            "aws_secret_access_key": "s3-secret",
        }
    )


def test_hosts_are_allowed_with_and_without_port() -> None:
    """Browsers send the port in the Host header unless it is the scheme's own."""
    assert allowed_hosts(("a", "b"), 5050) == ["a", "a:5050", "b", "b:5050"]


def test_origins_are_allowed_for_both_schemes() -> None:
    """A proxy may put TLS in front; the UI's own POSTs must pass either way."""
    origins = allowed_origins(("a",), 5050)
    assert set(origins) == {"http://a", "https://a", "http://a:5050", "https://a:5050"}


def test_environment_lets_the_uis_addresses_in(settings: MlflowServerSettings) -> None:
    """Every address of the stack is an allowed host and an allowed origin."""
    environment = mlflow_environment(settings)
    assert "gpu.example.org:5050" in environment["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    origins = environment["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"].split(",")
    assert "http://gpu.example.org:5050" in origins
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_auth_config_is_private_and_replaced(settings: MlflowServerSettings) -> None:
    """The file holds a password: mode 0600, also over an older file that was open."""
    path = settings.mlops_runtime_dir / "basic_auth.ini"
    path.parent.mkdir()
    path.write_text("old")
    path.chmod(0o644)
    write_auth_config(settings)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    config = configparser.ConfigParser()
    config.read(path)
    section = config["mlflow"]
    assert section["default_permission"] == "EDIT"
    assert section["auth_cache_ttl_seconds"] == "300"
    assert section["database_uri"] == database_uri(settings)


def test_any_password_reaches_the_database(settings: MlflowServerSettings) -> None:
    """Characters that mean something in an address are a part of the password."""
    address = make_url(database_uri(settings))
    assert (address.username, address.password) == ("mlflow", "p@ss/%41:w?#")
    assert (address.host, address.port, address.database) == ("127.0.0.1", 5433, "mlrun")
