"""Who may do what, asked of the servers themselves."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import psycopg2
import pytest
from botocore.exceptions import ClientError
from embedded.conftest import Platform
from embedded.flow_folders import wait_for

from mlops import container_health
from mlops.local.home import Ports
from mlops.local.ports import choose_ports


@pytest.fixture
def http(platform: Platform) -> Iterator[httpx.Client]:
    """A client without credentials."""
    assert platform
    with httpx.Client(trust_env=False, timeout=30) as client:
        yield client


def connect(platform: Platform, user: str, database: str, password: str) -> None:
    """Log in to PostgreSQL and out again."""
    psycopg2.connect(
        host="127.0.0.1",
        port=platform.postgres_port,
        dbname=database,
        user=user,
        password=password,
    ).close()


@pytest.mark.parametrize("path", ["/api/admin/version", "/api/work_pools/default-agent-pool"])
def test_prefect_refuses_a_wrong_password(
    platform: Platform, http: httpx.Client, path: str
) -> None:
    """Prefect's API answers nobody without its password."""
    url = platform.addresses.prefect + path
    assert http.get(url).status_code == 401
    assert http.get(url, auth=("admin", "wrong")).status_code == 401
    right = (platform.credentials.prefect_username, platform.credentials.prefect_password)
    assert http.get(url, auth=right).status_code == 200


@pytest.mark.parametrize("user", ["admin", "agent", "experimenter"])
def test_mlflow_refuses_a_wrong_password(platform: Platform, http: httpx.Client, user: str) -> None:
    """MLflow's API answers nobody without a user's password."""
    url = f"{platform.addresses.mlflow}/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert http.get(url).status_code == 401
    assert http.get(url, auth=(user, "wrong")).status_code == 401
    right = getattr(platform.credentials, f"mlflow_{user}_password")
    assert http.get(url, auth=(user, right)).status_code == 200


@pytest.mark.parametrize("role", ["mlflow", "scheduler", "agent", "experimenter", "prune"])
def test_s3_knows_every_role_and_refuses_a_wrong_key(platform: Platform, role: str) -> None:
    """Each role has a key of its own; a key with another secret is refused."""
    key = platform.credentials.s3_key(role)

    def buckets(secret: str) -> set[str]:
        client = boto3.client(
            "s3",
            endpoint_url=platform.addresses.s3,
            aws_access_key_id=key.access_key_id,
            aws_secret_access_key=secret,
            region_name="us-east-1",
        )
        return {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}

    assert buckets(key.secret_access_key) == {"dvc", "mlflow", "prefect"}
    with pytest.raises(ClientError):
        buckets("wrong")


def test_s3_refuses_requests_without_a_key(platform: Platform, http: httpx.Client) -> None:
    """Nothing can be listed or fetched anonymously."""
    assert http.get(platform.addresses.s3).status_code in (400, 401, 403)
    assert http.get(f"{platform.addresses.s3}/mlflow").status_code in (400, 401, 403)


@pytest.mark.parametrize(
    ("user", "database"), [("postgres", "postgres"), ("prefect", "prefect"), ("mlflow", "mlrun")]
)
def test_postgres_refuses_a_wrong_password(platform: Platform, user: str, database: str) -> None:
    """Every PostgreSQL role needs its password, on the loopback address too."""
    field = "postgres_password" if user == "postgres" else f"{user}_db_password"
    connect(platform, user, database, getattr(platform.credentials, field))
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        connect(platform, user, database, "wrong")


@pytest.mark.parametrize(
    ("user", "database"),
    [
        ("prefect", "mlrun"),
        ("mlflow", "prefect"),
        ("prefect", "postgres"),
        ("mlflow", "template1"),
    ],
)
def test_postgres_roles_enter_their_own_database_only(
    platform: Platform, user: str, database: str
) -> None:
    """The owner of one database cannot even connect to another."""
    password = getattr(platform.credentials, f"{user}_db_password")
    with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
        connect(platform, user, database, password)


def test_postgres_roles_have_no_rights_beyond_their_database(platform: Platform) -> None:
    """The servers' roles are plain ones, and own exactly one database each."""
    with psycopg2.connect(
        host="127.0.0.1",
        port=platform.postgres_port,
        dbname="postgres",
        user="postgres",
        password=platform.credentials.postgres_password,
    ) as connection:
        cursor = connection.cursor()
        cursor.execute(
            "SELECT rolname FROM pg_roles WHERE rolname IN ('prefect', 'mlflow') AND"
            " (rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls)"
        )
        assert cursor.fetchall() == []
        cursor.execute(
            "SELECT datname, rolname FROM pg_database JOIN pg_roles ON pg_roles.oid = datdba"
            " WHERE NOT datistemplate ORDER BY datname"
        )
        assert cursor.fetchall() == [
            ("mlrun", "mlflow"),
            ("postgres", "postgres"),
            ("prefect", "prefect"),
        ]


LOG_AS_USER = """
import mlflow
mlflow.set_experiment("shared")
with mlflow.start_run() as run:
    mlflow.log_metric("accuracy", 0.5)
    mlflow.log_text("hello", "hello.txt")
print(run.info.run_id, run.info.artifact_uri)
"""


def log_as(platform: Platform, role: Any) -> tuple[str, str]:
    """Log a run as a role in a process of its own; return its id and where its artifacts are."""
    result = subprocess.run(
        [sys.executable, "-c", LOG_AS_USER],
        env=platform.environment(role) | {"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    run_id, artifact_uri = result.stdout.split()[-2:]
    return run_id, artifact_uri


def test_agent_and_experimenter_log_to_the_same_experiment(
    platform: Platform, http: httpx.Client
) -> None:
    """An agent logs to an experiment that an experimenter made, with artifacts in S3."""
    log_as(platform, "experimenter")
    run_id, artifact_uri = log_as(platform, "agent")
    run = http.get(
        f"{platform.addresses.mlflow}/api/2.0/mlflow/runs/get?run_id={run_id}",
        auth=("admin", platform.credentials.mlflow_admin_password),
    ).json()["run"]
    assert run["data"]["metrics"][0]["value"] == 0.5
    key = platform.credentials.s3_key("experimenter")
    client = boto3.client(
        "s3",
        endpoint_url=platform.addresses.s3,
        aws_access_key_id=key.access_key_id,
        aws_secret_access_key=key.secret_access_key,
        region_name="us-east-1",
    )
    bucket, _, prefix = artifact_uri.removeprefix("s3://").partition("/")
    body = client.get_object(Bucket=bucket, Key=f"{prefix}/hello.txt")["Body"].read()
    assert (bucket, body) == ("mlflow", b"hello")


def test_mlflow_offers_no_presigned_transfers(platform: Platform, http: httpx.Client) -> None:
    """A client that we did not configure is not sent to an S3 address that it cannot reach."""
    info = http.get(f"{platform.addresses.mlflow}/api/3.0/mlflow/server-info").json()
    offered = {name: value for name, value in info.items() if "multipart" in name}
    assert len(offered) == 2
    assert set(offered.values()) == {False}


@pytest.mark.parametrize(
    ("header", "status"), [("localhost:{port}", 200), ("127.0.0.1:{port}", 200), ("evil", 403)]
)
def test_mlflow_answers_to_its_own_names_only(
    platform: Platform, http: httpx.Client, header: str, status: int
) -> None:
    """A page that points its own name at the loopback address gets nowhere."""
    port = platform.addresses.mlflow.rpartition(":")[2]
    response = http.get(
        f"{platform.addresses.mlflow}/api/2.0/mlflow/experiments/get?experiment_id=0",
        auth=("admin", platform.credentials.mlflow_admin_password),
        headers={"Host": header.format(port=port)},
    )
    assert response.status_code == status


def test_set_up_again_converges(platform: Platform) -> None:
    """A changed password of a database's owner is set right by running the set-up again."""
    credentials = platform.credentials
    with psycopg2.connect(
        host="127.0.0.1",
        port=platform.postgres_port,
        dbname="postgres",
        user="postgres",
        password=credentials.postgres_password,
    ) as connection:
        connection.cursor().execute("ALTER ROLE mlflow CREATEDB PASSWORD 'another'")
    connection.close()
    told = {
        "POSTGRES_PORT": str(platform.postgres_port),
        "AWS_ENDPOINT_URL_S3": platform.addresses.s3,
        **secrets_of(platform),
    }
    result = subprocess.run(
        [sys.executable, "-m", "mlops", "server", "setup"],
        env=platform.environment() | told,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    connect(platform, "mlflow", "mlrun", credentials.mlflow_db_password)


@pytest.fixture
def spare_port() -> Iterator[int]:
    """A port that no platform takes meanwhile."""
    with choose_ports(Ports()) as ports:
        yield ports.mlflow


def test_mlflow_sets_its_users_right_when_it_starts(
    platform: Platform, spare_port: int, tmp_path: Path
) -> None:
    """A password that was changed in MLflow is the configured one again after a start."""
    credentials = platform.credentials
    base = f"{platform.addresses.mlflow}/api/2.0/mlflow/users"
    admin = ("admin", credentials.mlflow_admin_password)
    with httpx.Client(auth=admin, trust_env=False, timeout=30) as client:
        body = {"username": "agent", "password": "another-password-than-before"}
        client.patch(f"{base}/update-password", json=body).raise_for_status()
    key = credentials.s3_key("mlflow")
    told = {
        "LISTEN_PORT": str(spare_port),
        "MLOPS_RUNTIME_DIR": str(tmp_path),
        "POSTGRES_PORT": str(platform.postgres_port),
        "AWS_ENDPOINT_URL_S3": platform.addresses.s3,
        "AWS_ACCESS_KEY_ID": key.access_key_id,
        "AWS_SECRET_ACCESS_KEY": key.secret_access_key,
        **secrets_of(platform),
    }
    environment = platform.environment() | told
    second = subprocess.Popen([sys.executable, "-m", "mlops", "server", "mlflow"], env=environment)

    def is_healthy() -> bool:
        assert second.poll() is None
        check = [sys.executable, "-IS", container_health.__file__, "mlflow"]
        return (
            subprocess.run(check, env=environment, capture_output=True, check=False).returncode == 0
        )

    try:
        wait_for(is_healthy, 60)
        agent = ("agent", credentials.mlflow_agent_password)
        address = f"http://127.0.0.1:{spare_port}/api/2.0/mlflow/users/get?username=agent"
        assert httpx.get(address, auth=agent, trust_env=False).status_code == 200
    finally:
        second.terminate()
        second.wait(30)


def secrets_of(platform: Platform) -> dict[str, str]:
    """Return every secret as a variable."""
    return {name.upper(): value for name, value in platform.credentials.model_dump().items()}
