"""`$MLOPS_HOME`: the folder that holds everything of one embedded platform.

    credentials.env   every secret, mode 0600
    platform.json     what the next start must know again: identity, ports, folders
    postgres/         the database; as root it may be a link (see `postgres.py`)
    s3/               the objects, one folder per bucket
    agent/ scheduler/ what these roles keep
    logs/  run/       log files; sockets, locks and what is made anew at every start

This module stays light: every command on a checkout asks it where the platform is.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from mlops.credentials import Credentials, load_credentials
from mlops.errors import MlopsError
from mlops.identities import Addresses, ClientRole, role_environment

HOST = "127.0.0.1"


class Ports(NamedTuple):
    """The TCP ports of the four servers, all on the loopback address."""

    s3: int = 9000
    mlflow: int = 5050
    prefect: int = 4200
    postgres: int = 5432


class State(NamedTuple):
    """What `platform.json` holds.

    Args:
        instance: Marks every process of this platform; made once.
        path: Where the home was at its last start, to tell a moved home from a copied one.
        ports: The servers' ports.
        flow_dir: The folder of flow folders that the scheduler watches.
        pool_name: The work pool that the agent serves.
        postgres_folder: Where the database's data and, if copied, its programs are.
        postgres_programs: The folder of `postgres` and `initdb`.
        postgres_account: The user that PostgreSQL runs as; empty: the one who starts it.
        control_socket: Through which the supervisor is told what to do.
        setup_stamp: What the last complete set-up was made from; empty: none.
    """

    instance: str
    path: str
    ports: Ports = Ports()
    flow_dir: str = ""
    pool_name: str = "default-agent-pool"
    postgres_folder: str = ""
    postgres_programs: str = ""
    postgres_account: str = ""
    control_socket: str = ""
    setup_stamp: str = ""


class Home:
    """The folder and the names of what lies in it.

    Args:
        path: The folder, absolute; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.credentials_file = path / "credentials.env"
        self.state_file = path / "platform.json"
        self.postgres = path / "postgres"
        self.s3 = path / "s3"
        self.agent = path / "agent"
        self.scheduler = path / "scheduler"
        self.logs = path / "logs"
        self.run = path / "run"
        self.lock_file = path / "run" / "lock"
        self.supervisor_config = path / "run" / "supervisord.conf"
        self.supervisor_pid_file = path / "run" / "supervisord.pid"

    def log(self, service: str) -> Path:
        """Return the log file of a service."""
        return self.logs / f"{service}.log"

    def create(self) -> None:
        """Make the folders.

        Raises:
            MlopsError: The place belongs to somebody else or cannot be written.
        """
        try:
            # Others may pass through, never look: as root, PostgreSQL is another user.
            self.path.mkdir(mode=0o711, parents=True, exist_ok=True)
            owner = self.path.stat().st_uid
            if owner != os.getuid():
                raise MlopsError(
                    f"{self.path}: belongs to another user (uid {owner})",
                    hint="run as that user, or set MLOPS_HOME to a folder of your own",
                )
            self.path.chmod(0o711)
            for folder in (self.s3, self.logs, self.run, self.agent, self.scheduler):
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise MlopsError(
                f"{error.filename or self.path}: {error.strerror}",
                hint="set MLOPS_HOME to a folder that you can write to",
            ) from None

    def credentials(self) -> Credentials:
        """Read the secrets; see `mlops.credentials.load_credentials`."""
        return load_credentials(self.credentials_file)

    def load_state(self) -> State | None:
        """Return what the last start left, or None before the first.

        Raises:
            MlopsError: The file is not one of ours.
        """
        try:
            text = self.state_file.read_text()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise MlopsError(
                f"{self.state_file}: {error.strerror}",
                hint="run as the user who started the platform",
            ) from None
        try:
            values: dict[str, Any] = json.loads(text)
            return State(**{**values, "ports": Ports(**values["ports"])})
        except (ValueError, TypeError, KeyError):
            raise MlopsError(
                f"{self.state_file}: not understood",
                hint=f"move it away; if the platform is up, end the processes with "
                f"MLOPS_HOME={self.path} in their environment first",
            ) from None

    def save_state(self, state: State) -> None:
        """Write `platform.json`, atomically."""
        values = state._asdict() | {"ports": state.ports._asdict()}
        descriptor, temporary = tempfile.mkstemp(dir=self.path, prefix=".platform.")
        with os.fdopen(descriptor, "w") as file:
            file.write(json.dumps(values, indent=2) + "\n")
        Path(temporary).replace(self.state_file)


def addresses(ports: Ports) -> Addresses:
    """Return where the servers answer.

    Args:
        ports: Their ports.
    """
    return Addresses(
        s3=f"http://{HOST}:{ports.s3}",
        mlflow=f"http://{HOST}:{ports.mlflow}",
        prefect=f"http://{HOST}:{ports.prefect}",
    )


def client_environment(path: Path, role: ClientRole) -> dict[str, str] | None:
    """Return the environment of a role's client for the platform kept in a folder.

    Whether the platform is up is not asked; its ports are those of the last start.

    Args:
        path: `$MLOPS_HOME`.
        role: Whose identity it is.

    Returns:
        The variables of the contract, or None if no platform was ever started there.

    Raises:
        MlopsError: The folder's files cannot be read by this user.
    """
    home = Home(path.absolute())
    state = home.load_state()
    if state is None or not home.credentials_file.exists():
        return None
    return role_environment(role, home.credentials(), addresses(state.ports))


def agent_cache(path: Path) -> str | None:
    """Return the cache of the platform's agent, or None before the first start.

    Args:
        path: `$MLOPS_HOME`.
    """
    home = Home(path.absolute())
    return str(home.agent) if home.load_state() else None


def flow_dir(path: Path) -> str | None:
    """Return the folder that the platform's scheduler watches, or None before the first start.

    Args:
        path: `$MLOPS_HOME`.
    """
    state = Home(path.absolute()).load_state()
    return state.flow_dir or None if state else None
