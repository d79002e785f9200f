import json
import stat
from pathlib import Path

import pytest

from mlops.credentials import load_or_create_credentials
from mlops.errors import MlopsError
from mlops.local.home import Home, Ports, State, addresses, client_environment, flow_dir


def test_state_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    """What one start leaves, the next one finds."""
    home = Home(tmp_path)
    state = State(instance="abc", path=str(tmp_path), ports=Ports(s3=1234), flow_dir="/flows")
    home.save_state(state)
    assert home.load_state() == state


def test_a_home_that_was_never_started_has_no_state(tmp_path: Path) -> None:
    """Nothing there is no error."""
    assert Home(tmp_path).load_state() is None
    assert flow_dir(tmp_path) is None
    assert client_environment(tmp_path, "agent") is None


@pytest.mark.parametrize("text", ["", "{}", '{"instance": 1, "ports": {"no": 1}}', "[]"])
def test_a_state_that_is_not_ours_is_named(tmp_path: Path, text: str) -> None:
    """A broken file is reported with its path and what to do."""
    home = Home(tmp_path)
    home.state_file.write_text(text)
    with pytest.raises(MlopsError, match=r"platform\.json: not understood"):
        home.load_state()


def test_state_of_an_older_release_gets_the_defaults(tmp_path: Path) -> None:
    """Fields that a newer release added need not be in the file."""
    home = Home(tmp_path)
    home.state_file.write_text(
        json.dumps({"instance": "abc", "path": "/x", "ports": Ports()._asdict()})
    )
    assert home.load_state() == State(instance="abc", path="/x")


def test_client_environment_is_the_roles_part_of_this_platform(tmp_path: Path) -> None:
    """A client is told this platform's addresses and its own key."""
    home = Home(tmp_path)
    home.save_state(State(instance="abc", path=str(tmp_path), ports=Ports(prefect=4321)))
    credentials = load_or_create_credentials(home.credentials_file)
    environment = client_environment(tmp_path, "experimenter")
    assert environment is not None
    assert environment["PREFECT_API_URL"] == "http://127.0.0.1:4321/api"
    assert environment["AWS_ACCESS_KEY_ID"] == credentials.experimenter_s3_access_key_id
    assert credentials.agent_s3_secret_access_key not in environment.values()


def test_folders_are_private(tmp_path: Path) -> None:
    """Others may pass through the home, and look into none of its folders."""
    home = Home(tmp_path / "home")
    home.create()
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o711
    for folder in (home.s3, home.logs, home.run, home.agent, home.scheduler):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_home_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A file in the way is reported with its path."""
    (tmp_path / "file").touch()
    with pytest.raises(MlopsError, match="file"):
        Home(tmp_path / "file" / "home").create()


def test_addresses_are_on_the_loopback() -> None:
    """Clients reach the servers at 127.0.0.1."""
    assert addresses(Ports()).mlflow == "http://127.0.0.1:5050"
