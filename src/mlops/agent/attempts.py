"""The attempts at running a flow that this host has begun and not yet brought to their end.

One file per attempt, `attempts/<attempt>.json` in the agent's cache, locked by the agent that made
it for as long as that lives. The kernel releases the lock of an agent that was killed; whoever
finds a file without a holder may therefore end the run, and agents that share a cache can never
take each other's runs for dead.
"""

import contextlib
import datetime as dt
import fcntl
import os
import signal
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from uuid import UUID

import anyio
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlops import lineage

Marks = tuple[str | None, str | None]  # a worker's name and an attempt's


def marks_of(labels: Mapping[str, object]) -> Marks:
    """Return who has a flow run, as its labels in Prefect say."""
    worker, attempt = labels.get(lineage.WORKER), labels.get(lineage.ATTEMPT)
    return None if worker is None else str(worker), None if attempt is None else str(attempt)


class Attempt(BaseModel):
    """One pick-up of a flow run by an agent.

    Args:
        name: Unique for ever; a retry of the same flow run is another attempt.
        flow_run_id: The run in Prefect.
        worker: The agent's name in Prefect.
        before: The run's marks when it was picked up; its own come a moment later.
        begun: By this host's clock.
        pid: Of the flow's process, once it was started.
        end: How that ended, when the server could not be told.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(default_factory=lambda: uuid.uuid4().hex)
    flow_run_id: UUID
    worker: str
    before: Marks = (None, None)
    begun: dt.datetime = Field(default_factory=lambda: dt.datetime.now(dt.UTC))
    pid: int | None = None
    end: str | None = None

    def holds(self, labels: Mapping[str, object]) -> bool:
        """Return whether nobody has picked the run up since, or let go of it, by its labels."""
        return marks_of(labels) in ((self.worker, self.name), self.before)


class OpenAttempt:
    """An attempt whose file this process has locked.

    Args:
        attempt: What the file says.
        path: The file.
        descriptor: Of the file, locked.
    """

    def __init__(self, attempt: Attempt, path: Path, descriptor: int) -> None:
        self.attempt = attempt
        self._path = path
        self._descriptor = descriptor
        self._scope: anyio.CancelScope | None = None

    @contextlib.contextmanager
    def until_taken_away(self) -> Iterator[None]:
        """Leave the block, as if it had come to its end, when the attempt is given up."""
        with anyio.CancelScope() as self._scope:
            yield

    def give_up(self) -> None:
        """End the flow's process, and the block that watches it, before either can report.

        What they report would be taken for the run's next attempt.
        """
        if self.attempt.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.attempt.pid, signal.SIGKILL)
        if self._scope is not None:
            self._scope.cancel()

    def note_process(self, pid: int) -> None:
        """Note the flow's process, by which another agent can tell that the run goes on."""
        self.attempt = self.attempt.model_copy(update={"pid": pid})
        _write(self._descriptor, self.attempt)

    def note_end(self, reason: str) -> None:
        """Note how the process ended, for whoever can tell the server."""
        self.attempt = self.attempt.model_copy(update={"end": reason})
        _write(self._descriptor, self.attempt)

    def close(self) -> None:
        """Note that nothing is left to do for this attempt."""
        self._path.unlink(missing_ok=True)


class AttemptJournal:
    """The folder of these files.

    Args:
        root: The agent's cache, on a disk of this host.
    """

    def __init__(self, root: Path) -> None:
        self._folder = root / "attempts"
        self._own: dict[str, OpenAttempt] = {}

    @contextlib.contextmanager
    def begin(self, attempt: Attempt) -> Iterator[OpenAttempt]:
        """Note a new attempt; it stays noted until it is closed, also when this block ends."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{attempt.name}.json"
        temporary = path.with_suffix(".new")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # before others can see it
            _write(descriptor, attempt)
            os.fsync(descriptor)
            temporary.rename(path)
            self._own[attempt.name] = OpenAttempt(attempt, path, descriptor)
            yield self._own[attempt.name]
        finally:
            self._own.pop(attempt.name, None)
            os.close(descriptor)

    def own(self) -> list[OpenAttempt]:
        """Return the attempts that this agent is at."""
        return list(self._own.values())

    @contextlib.contextmanager
    def abandoned(self) -> Iterator[list[OpenAttempt]]:
        """Take over the attempts that no living agent holds, for the length of the block."""
        with contextlib.ExitStack() as stack:
            found = []
            for path in sorted(self._folder.glob("*.json")):
                with contextlib.suppress(FileNotFoundError):  # somebody else has just closed it
                    descriptor = os.open(path, os.O_RDWR)
                    stack.callback(os.close, descriptor)
                    if attempt := _take(descriptor, path):
                        found.append(OpenAttempt(attempt, path, descriptor))
            yield found


def _take(descriptor: int, path: Path) -> Attempt | None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    if os.fstat(descriptor).st_nlink == 0:  # closed while we waited for our turn
        return None
    try:
        return Attempt.model_validate_json(os.pread(descriptor, 1 << 16, 0))
    except ValidationError:  # cut short by a power cut: says nothing that could be acted on
        path.unlink(missing_ok=True)
        return None


def _write(descriptor: int, attempt: Attempt) -> None:
    content = attempt.model_dump_json().encode()
    os.pwrite(descriptor, content, 0)
    os.ftruncate(descriptor, len(content))
