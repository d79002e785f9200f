import configparser
import os
import shlex
import stat
from pathlib import Path

from mlops.local.home import Home, State
from mlops.local.services import SERVICES
from mlops.local.supervision import (
    Supervisor,
    choose_socket,
    is_configured,
    service_environment,
    write_config,
)


def _home(folder: Path) -> Home:
    home = Home(folder)
    home.create()
    return home


def test_config_names_every_service_and_survives_odd_paths(tmp_path: Path) -> None:
    """Spaces and percent signs in the home's path reach supervisor unharmed."""
    home = _home(tmp_path / "100% my home")
    state = State(instance="abc", path=str(home.path), control_socket=str(home.run / "control"))
    write_config(home, state)
    config = configparser.ConfigParser()  # with interpolation, as supervisor reads it
    config.read(home.supervisor_config)
    assert config["supervisord"]["logfile"] == str(home.log("supervisor"))
    for service in SERVICES:
        program = config[f"program:{service.name}"]
        assert shlex.split(program["command"])[-3:] == ["local", "service", service.name]
        assert program["autostart"] == "false"


def test_a_moved_home_is_configured_anew(tmp_path: Path) -> None:
    """The configuration is current only where its paths are right."""
    home = _home(tmp_path / "home")
    state = State(instance="abc", path=str(home.path), control_socket=str(home.run / "control"))
    assert not is_configured(home, state)
    write_config(home, state)
    assert is_configured(home, state)
    moved = Home(home.path.rename(tmp_path / "moved"))
    assert not is_configured(moved, state)


def test_socket_lies_in_the_home_where_the_path_is_short() -> None:
    """Usually everything is in one folder."""
    home = Home(Path("/home/somebody/checkout/.mlops"))
    assert choose_socket(home, State(instance="abc", path="")) == home.run / "control"


def test_socket_of_a_long_path_lies_in_a_private_short_folder(tmp_path: Path) -> None:
    """A socket's path may have 107 bytes; the other place is for its owner only, and kept."""
    home = Home(tmp_path / ("long" * 30))
    state = State(instance="abc", path="")
    socket = choose_socket(home, state)
    try:
        assert len(os.fsencode(socket)) < 100
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        assert choose_socket(home, state._replace(control_socket=str(socket))) == socket
        socket.parent.chmod(0o777)  # somebody else's by now, perhaps
        other = choose_socket(home, state._replace(control_socket=str(socket)))
        assert other != socket
        other.parent.rmdir()
    finally:
        socket.parent.rmdir()


def test_no_supervisor_is_no_error(tmp_path: Path) -> None:
    """A missing socket, or a stale one, means: not up."""
    assert not Supervisor(Home(tmp_path), tmp_path / "none").is_up()
    (tmp_path / "stale").touch()
    assert not Supervisor(Home(tmp_path), tmp_path / "stale").is_up()


def test_services_do_not_see_another_platform(tmp_path: Path) -> None:
    """What a shell holds for another Prefect, MLflow or S3 stays outside; the rest goes in."""
    caller = {
        "PATH": "/bin",
        "HF_HOME": "/models",
        "GPU_IDS": '["0"]',
        "PREFECT_API_URL": "https://elsewhere",
        "AWS_SECRET_ACCESS_KEY": "theirs",
        "PGPASSWORD": "theirs",
        "MLOPS_SERVICE": "agent",
    }
    told = service_environment(caller, Home(tmp_path), State(instance="abc", path=""))
    assert told == {
        "PATH": "/bin",
        "HF_HOME": "/models",
        "GPU_IDS": '["0"]',
        "MLOPS_HOME": str(tmp_path),
        "MLOPS_INSTANCE": "abc",
        "PYTHONUNBUFFERED": "1",
    }
