"""The agents that live on this host's cache, and where each of them can be asked.

One file per agent, `agents/<id>.json`, locked by it for as long as it lives. The kernel releases
the lock of an agent that was killed: a file that nobody holds is stale, and whoever sees it
removes it.
"""

import contextlib
import fcntl
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from mlops.errors import MlopsError

_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # where such a one answers to us


class Presence(BaseModel):
    """What an agent notes about itself.

    Args:
        name: The worker's in Prefect.
        version: The agent's release.
        pid: Its process, as its container numbers it.
        machine: The system's own name of where it runs; containers that share a cache have others.
        bind: The address that its health server listens on.
        port: Its port.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str
    pid: int
    machine: str
    bind: str
    port: int

    @property
    def address(self) -> tuple[str, int]:
        """Where it answers to us."""
        if self.bind not in _ANY:
            return self.bind, self.port
        return _ANY[self.bind] if self.is_here else self.machine, self.port

    @property
    def is_here(self) -> bool:
        """Whether it runs in this container, or in none like us."""
        return self.machine == socket.gethostname()


@contextlib.contextmanager
def announced(root: Path, presence: Presence) -> Iterator[None]:
    """Let an agent be found for the length of the block.

    Args:
        root: The agent's cache, on a disk of this host.
        presence: What to note.

    Raises:
        MlopsError: It cannot be noted there.
    """
    find_agents(root)  # which removes what killed agents left
    path = root / "agents" / f"{uuid.uuid4().hex}.json"
    temporary = path.with_suffix(".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise _unusable(path.parent, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # before others can see it
        os.write(descriptor, presence.model_dump_json().encode())
        temporary.rename(path)
        yield
    finally:
        for each in (temporary, path):
            each.unlink(missing_ok=True)
        os.close(descriptor)


def find_agents(root: Path) -> list[Presence]:
    """Return the agents that live, by name.

    Args:
        root: Their cache.

    Raises:
        MlopsError: The files belong to somebody else.
    """
    found = []
    for path in (root / "agents").glob("*.json"):
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # it has just ended
            continue
        except OSError as error:
            raise _unusable(path, error) from error
        try:
            if presence := _read_living(descriptor, path):
                found.append(presence)
        finally:
            os.close(descriptor)
    return sorted(found, key=lambda each: (each.name, each.pid))


def _read_living(descriptor: int, path: Path) -> Presence | None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        with contextlib.suppress(ValidationError):  # another release's
            return Presence.model_validate_json(os.pread(descriptor, 1 << 16, 0))
        return None
    path.unlink(missing_ok=True)
    return None


def _unusable(path: Path, error: OSError) -> MlopsError:
    return MlopsError(
        f"{path}: {error.strerror}", hint="run as the user of the agent, whose cache this is"
    )
