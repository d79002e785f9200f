import csv
from pathlib import Path

import pytest

from mlops.credentials import Credentials
from mlops.errors import UsageError
from mlops.local.home import Home, Ports, State
from mlops.local.services import S3_IDENTITIES, SERVICES, SERVICES_BY_NAME, Situation, become


@pytest.fixture
def situation(tmp_path: Path) -> Situation:
    """A platform that was never started."""
    state = State(
        instance="abc",
        path=str(tmp_path),
        ports=Ports(s3=1, mlflow=2, prefect=3, postgres=4),
        flow_dir="/flows",
        postgres_folder=str(tmp_path / "postgres"),
        postgres_programs="/programs",
    )
    return Situation(Home(tmp_path), state, Credentials())


def test_services_are_listed_after_what_they_need() -> None:
    """Start order can be read from top to bottom, and no need is misspelt."""
    seen: set[str] = set()
    for service in SERVICES:
        assert seen.issuperset(service.needs), service.name
        seen.add(service.name)


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.name)
def test_no_command_line_holds_a_secret(situation: Situation, service: object) -> None:
    """Command lines can be read by every user of the machine."""
    assert isinstance(service, type(SERVICES[0]))
    shown = " ".join(service.command(situation))
    secrets = {
        value
        for name, value in situation.credentials.model_dump().items()
        if name.endswith(("password", "secret_access_key", "secret_key"))
    }
    assert not [secret for secret in secrets if secret in shown]


def test_s3_server_knows_root_and_every_role(situation: Situation) -> None:
    """Identities are apart even where the server enforces no policies."""
    text = SERVICES_BY_NAME["s3"].environment(situation)["RCLONE_AUTH_KEY"]
    pairs = [tuple(pair.split(",")) for pair in next(csv.reader([text]))]
    credentials = situation.credentials
    assert pairs[0] == (credentials.minio_root_user, credentials.minio_root_password)
    assert [pair[0] for pair in pairs[1:]] == [
        credentials.s3_key(role).access_key_id for role in S3_IDENTITIES
    ]


def test_agent_serves_the_platforms_pool(situation: Situation) -> None:
    """The Prefect server makes the pool that the agent serves."""
    situation = situation._replace(state=situation.state._replace(pool_name="gpus"))
    for name in ("agent", "prefect"):
        assert SERVICES_BY_NAME[name].environment(situation)["POOL_NAME"] == "gpus"


def test_scheduler_watches_the_platforms_flows(situation: Situation) -> None:
    """The scheduler is told the folder, the agent's password for MLflow is not for it."""
    environment = SERVICES_BY_NAME["scheduler"].environment(situation)
    assert environment["FLOW_DIR"] == "/flows"
    assert situation.credentials.mlflow_agent_password not in environment.values()


def test_an_unknown_service_names_the_known_ones(tmp_path: Path) -> None:
    """A wrong name is wrong usage."""
    with pytest.raises(UsageError, match="postgres"):
        become("postgrse", Home(tmp_path))
