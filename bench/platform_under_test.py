"""The embedded platform under test, in a temporary folder and on ports of its own."""

import os
import shutil
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from measure import timed_command, wait_until

from mlops.health import UnhealthyError
from mlops.identities import ClientRole, role_environment
from mlops.local import checks
from mlops.local.home import HOST, Home, Ports, State, addresses
from mlops.local.processes import find_processes, memory_bytes
from mlops.local.services import SERVICES, Situation
from mlops.local.shutdown import stop_services
from mlops.local.supervision import FOREIGN_PREFIXES, Supervisor


def free_ports(count: int) -> list[int]:
    """Return TCP ports on which nothing listens now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [int(each.getsockname()[1]) for each in sockets]


def clean_environment() -> dict[str, str]:
    """Return this process's environment without other platforms' addresses and secrets."""
    foreign = (*FOREIGN_PREFIXES, "MLOPS_", "POOL_NAME", "QUEUE_NAME", "FLOW_DIR")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


class Platform:
    """The embedded platform in a temporary folder, on ports of its own.

    Args:
        folder: A folder that every user can pass: as root, PostgreSQL is another user.
    """

    def __init__(self, folder: Path) -> None:
        self.home = Home(folder / "home")
        self.flow_dir = folder / "flows"
        self.flow_dir.mkdir()
        self.home.create()
        self.home.save_state(
            State(instance=uuid.uuid4().hex, path=str(self.home.path), ports=Ports(*free_ports(4)))
        )

    @property
    def situation(self) -> Situation:
        """Its ports, folders and credentials."""
        state = self.home.load_state()
        assert state is not None
        return Situation(self.home, state, self.home.credentials())

    @property
    def supervisor(self) -> Supervisor:
        """What runs its services."""
        return Supervisor(self.home, Path(self.situation.state.control_socket))

    def environment(self, role: ClientRole) -> dict[str, str]:
        """Return a role's whole environment for a client of this platform."""
        _, state, credentials = self.situation
        return clean_environment() | role_environment(role, credentials, addresses(state.ports))

    def run(self, *arguments: str) -> float:
        """Run `mlops …` for this platform and return the seconds that it took.

        Raises:
            RuntimeError: It failed.
        """
        return timed_command(
            [sys.executable, "-m", "mlops", *arguments],
            clean_environment()
            | {"MLOPS_HOME": str(self.home.path), "FLOW_DIR": str(self.flow_dir)},
        )

    def stop(self, *names: str) -> None:
        """Stop the services named, and leave the others running."""
        stop_services(self.supervisor, names, lambda _name: None)

    def stop_all_but(self, kept: Sequence[str]) -> None:
        """Stop services, and leave the supervisor and the ones named running."""
        self.stop(*(s.name for s in SERVICES if s.name not in kept))

    def start_alone(self, name: str) -> float:
        """Start one service as `local up` does, and return the seconds until it is healthy."""
        supervisor, situation = self.supervisor, self.situation
        began = time.monotonic()
        supervisor.start_service(name)

        def is_healthy() -> bool:
            try:
                checks.check(name, situation, supervisor.processes()[name]["pid"])
            except UnhealthyError:
                return False
            return True

        wait_until(is_healthy, name)
        return time.monotonic() - began

    def memory(self) -> dict[str, int]:
        """Return the memory of each service in bytes (PSS); `supervisor` is one of them."""
        processes = find_processes(self.situation.state.instance)
        return {name or "supervisor": memory_bytes(group) for name, group in processes.items()}


@contextmanager
def open_folder() -> Iterator[Path]:
    """Make a temporary folder that other users may pass, and remove it with all it holds."""
    folder = Path(tempfile.mkdtemp(prefix="mlops-bench-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        for home in folder.glob("*/postgres"):  # as root it may be a link to another place
            shutil.rmtree(home.resolve(), ignore_errors=True)
        shutil.rmtree(folder)


@contextmanager
def own_platform(folder: Path) -> Iterator[Platform]:
    """Make a platform, not started yet, and leave nothing of it running."""
    platform = Platform(folder)
    try:
        yield platform
    finally:
        if platform.home.credentials_file.exists():
            platform.run("local", "down")
        assert not find_processes(platform.situation.state.instance)
