"""The process in which Prefect's loader reads signatures, apart from the scheduler's secrets.

Reading a signature runs what it refers to: defaults, types, and the modules that these come from.
That is done by a child of this process without the scheduler's environment, in a fork of it for
each signature, so that whatever the code does to its interpreter is over with it. The child is
kept for the next signature, as the import of Prefect takes a second; it ends when the scheduler
does, however that ends.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from pydantic import BaseModel, ConfigDict

from mlops.errors import MlopsError
from mlops.garbage import collect_seldom

LIMIT_SECONDS = 10.0
_START_LIMIT_SECONDS = 120.0  # for the import of Prefect, on a machine that has much to do
_GRACE_SECONDS = 2.0
# What a program needs to know of the machine, and the marks by which the embedded platform finds
# its own. All else in the scheduler's environment may be a secret.
_PASSED_ON = frozenset(
    {
        *("HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "TMPDIR", "TZ", "USER"),
        *("MLOPS_INSTANCE", "MLOPS_SERVICE"),
    }
)
_PASSED_ON_PREFIXES = ("LC_", "PYTHON")
_ANSWERED = 77  # the exit code of a fork that has answered, and hardly of one that a flow ended


class UnreadableError(Exception):
    """A signature cannot be read; the message says why."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True)

    def to_bytes(self) -> bytes:
        return self.model_dump_json().encode()


class _Question(_Message):
    """Whose parameters are asked for; see `SignatureProcess.read_schema`."""

    source: Path
    function: str
    folders: tuple[Path, ...]
    limit_seconds: float


class _Answer(_Message):
    """The parameters' JSON Schema, or what is wrong."""

    parameters: dict[str, Any] = {}
    wrong: str = ""


class SignatureProcess:
    """Reads signatures in another process, which is started when there is one to read.

    Args:
        limit_seconds: How long the code of one signature may take.
    """

    def __init__(self, limit_seconds: float = LIMIT_SECONDS) -> None:
        self._limit_seconds = limit_seconds
        self._child: _Child | None = None

    def read_schema(
        self,
        source: Path,
        function: str,
        folders: Sequence[Path],
        meanwhile: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """Return the JSON Schema of a function's parameters.

        Args:
            source: A Python file, in a folder of its own, in which its code works.
            function: The function in it.
            folders: What else the code may import from.
            meanwhile: Done while the process starts, if it has to.

        Raises:
            UnreadableError: The code raises, ends its process or takes too long.
            MlopsError: The process does not start.
        """
        if self._child is None or self._child.process.poll() is not None:
            self.close()
            self._child = _start(meanwhile)
        question = _Question(
            source=source,
            function=function,
            folders=tuple(folders),
            limit_seconds=self._limit_seconds,
        )
        try:
            answer = self._child.ask(question)
        except BaseException:  # a late answer would be taken for the next question's
            self.close()
            raise
        if answer.wrong:
            raise UnreadableError(answer.wrong)
        return answer.parameters

    def close(self) -> None:
        """End the process; the next signature starts another."""
        if self._child is not None:
            self._child.kill()
            self._child = None


class _Child(NamedTuple):
    process: "subprocess.Popen[bytes]"
    connection: "Connection[bytes, bytes]"

    def ask(self, question: _Question) -> _Answer:
        try:
            self.connection.send_bytes(question.to_bytes())
            # The fork keeps the limit by itself, unless its code forbids that.
            if not self.connection.poll(question.limit_seconds + _GRACE_SECONDS):
                raise UnreadableError(_ending(-signal.SIGALRM, question.limit_seconds))
            return _Answer.model_validate_json(self.connection.recv_bytes())
        except (EOFError, OSError):
            raise UnreadableError("the process that reads it was killed") from None

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.connection.close()


def _start(meanwhile: Callable[[], None]) -> _Child:
    """Start the process and wait until it is ready, which takes a second; do that meanwhile.

    Raises:
        MlopsError: It is not.
    """
    ours, theirs = Pipe()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "mlops.scheduler.signature_process", str(theirs.fileno())],
            cwd="/",
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # so that what it starts can be ended with it
        )
    child = _Child(process, ours)
    try:
        meanwhile()
        if ours.poll(_START_LIMIT_SECONDS):
            ours.recv_bytes()
            return child
    except (EOFError, OSError):
        pass  # it has ended
    except BaseException:
        child.kill()
        raise
    child.kill()
    raise MlopsError(
        "the process that reads flows' signatures does not start",
        hint="its own message, if it had one, is above",
    )


def _environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES)
    }


def main() -> None:
    """Answer questions until whoever asks them has ended."""
    connection: Connection[bytes, bytes] = Connection(int(sys.argv[1]))
    collect_seldom()
    from prefect.utilities.callables import parameter_schema

    parameter_schema(_ending)  # which imports what else there is to import, once for all forks
    connection.send_bytes(b"ready")
    with contextlib.suppress(EOFError):
        while True:
            question = _Question.model_validate_json(connection.recv_bytes())
            fork = os.fork()
            if not fork:
                _answer(question, connection)
            _, status = os.waitpid(fork, 0)
            code = os.waitstatus_to_exitcode(status)
            if code != _ANSWERED:
                wrong = _ending(code, question.limit_seconds)
                connection.send_bytes(_Answer(wrong=wrong).to_bytes())


def _answer(question: _Question, connection: "Connection[bytes, bytes]") -> NoReturn:
    """Read a signature, send what it is, and end; the code that it runs may do anything."""
    from prefect.utilities.callables import parameter_schema_from_entrypoint

    signal.setitimer(signal.ITIMER_REAL, question.limit_seconds)  # whose signal nobody handles
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # libraries warn there
    os.chdir(question.source.parent)
    sys.path[:0] = [str(folder) for folder in question.folders]
    sys.dont_write_bytecode = True
    try:
        schema = parameter_schema_from_entrypoint(f"{question.source}:{question.function}")
        answer = _Answer(parameters=schema.model_dump(mode="json"))
    except BaseException as error:  # noqa: BLE001  # whatever a module raises when it is imported
        answer = _Answer(wrong=f"{type(error).__name__}: {_in_one_line(error)}")
    connection.send_bytes(answer.to_bytes())
    os._exit(_ANSWERED)


def _in_one_line(error: BaseException) -> str:
    """Return an error's text without the pages of pydantic's that it points to."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith("For further info"))


def _ending(code: int, limit_seconds: float) -> str:
    """Say how a fork ended without an answer, by its exit code or the signal that ended it."""
    if code == -signal.SIGALRM:
        return (
            f"its types and defaults take longer than {limit_seconds:g} s; do the work in the "
            "function, not where they are made"
        )
    how = f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
    return f"its types and defaults end the process, {how}"


if __name__ == "__main__":
    main()
