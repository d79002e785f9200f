"""The agent's side of one fork server: its start, the runs it is asked for, and its end."""

import asyncio
import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from mlops.agent.run_processes import ATTEMPT_VARIABLE
from mlops.agent.warm_process import WarmProcess, WarmStartError

PROGRAM = Path(__file__).with_name("fork_server.py")
START_SECONDS = 120.0  # until a server must be ready
FORK_SECONDS = 5.0  # until a run must have started; a fork takes milliseconds
STOP_SECONDS = 5.0
NO_MARK = "0" * 32  # as long as an attempt's name; written over in each run's process
CHUNK = 1 << 16


class Readiness(BaseModel):
    """What a server says when it has imported what it was told to.

    Args:
        ready: Whether it may be forked.
        skipped: Modules that it has not, with the reason.
        loaded: Names of all packages that it has.
        refreshable: Whether its Prefect can read its settings anew in a run's process.
        seconds: What importing took.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ready: bool
    skipped: dict[str, str]
    loaded: frozenset[str]
    refreshable: bool
    seconds: float


class _Ended(BaseModel):
    """The end of a run's process. `status` is its exit code, negative for a signal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    status: int


@dataclass(frozen=True)
class ForkRequest:
    """What a run's process finds set.

    Args:
        environment: All of its variables.
        folder: Its working directory.
        stream_output: Whether what it prints goes to the agent's own output.
    """

    environment: Mapping[str, str]
    folder: str
    stream_output: bool


class WarmServer:
    """One fork server.

    Args:
        process: It.
        control: The socket to it.
    """

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket) -> None:
        self._process = process
        self._control = control
        self._readiness: asyncio.Future[Readiness] = asyncio.get_running_loop().create_future()
        self._runs: dict[int, WarmProcess] = {}
        self._early: dict[int, int] = {}  # ends that were told before their start was noticed
        self._pumps: set[asyncio.Task[None]] = set()
        self._listener = asyncio.create_task(self._listen())
        self.idle = asyncio.Event()  # it has no run that has not ended
        self.idle.set()
        self.started = time.time()
        self.served = 0

    @classmethod
    async def start(
        cls, python: Path, environment: Mapping[str, str], plan: Mapping[str, Any]
    ) -> "WarmServer":
        """Start a server.

        Args:
            python: The interpreter of its environment.
            environment: All of its variables.
            plan: What to import, and the limits.

        Raises:
            WarmStartError: It does not start.
        """
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs, _memory_file(plan) as content:
            try:
                process = await asyncio.create_subprocess_exec(
                    python,
                    PROGRAM,
                    str(theirs.fileno()),
                    str(content.fileno()),
                    env={**environment, ATTEMPT_VARIABLE: NO_MARK},
                    cwd="/",
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=[theirs.fileno(), content.fileno()],
                    start_new_session=True,  # a signal to the agent's group is not for it
                )
            except OSError as error:
                ours.close()
                raise WarmStartError(f"it cannot be started: {error}") from error
        server = cls(process, ours)
        try:
            await server.ready()
        except BaseException:
            server.kill()
            raise
        return server

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.returncode is None and not self._listener.done()

    def memory_bytes(self) -> int:
        """Return its share of the memory (PSS), without that of its runs."""
        try:
            return int(psutil.Process(self.pid).memory_full_info().pss)
        except psutil.Error:
            return 0

    async def ready(self) -> Readiness:
        """Wait until it is ready, and return what it said.

        Raises:
            WarmStartError: It has ended, or takes too long.
        """
        try:
            return await asyncio.wait_for(asyncio.shield(self._readiness), START_SECONDS)
        except TimeoutError:
            raise WarmStartError(f"it was not ready in {START_SECONDS:.0f} s") from None

    async def fork(self, request: ForkRequest) -> WarmProcess:
        """Start a run.

        Raises:
            WarmStartError: It has not started, and will not.
        """
        if not self.is_alive:
            raise WarmStartError("it has ended")
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as on_failure:
            content = theirs.enter_context(_memory_file(asdict(request)))
            output, errors, life_line = (_Pipe(theirs, on_failure) for _ in range(3))
            sinks = (output.writer, errors.writer)
            if not request.stream_output:
                nothing = theirs.enter_context(open(os.devnull, "wb"))  # noqa: ASYNC230, PTH123
                sinks = (nothing.fileno(), nothing.fileno())
            try:
                socket.send_fds(self._control, [b"r"], [content.fileno(), *sinks, life_line.writer])
            except OSError as error:
                raise WarmStartError(f"it does not listen: {error}") from error
            theirs.close()
            reader = await life_line.open()
            pid = await self._await_start(reader)
            for pipe, target in ((output, sys.stdout), (errors, sys.stderr)):
                pump = asyncio.create_task(_pump(await pipe.open(), target))
                self._pumps.add(pump)
                pump.add_done_callback(self._pumps.discard)
            on_failure.pop_all()
        process = WarmProcess(pid, reader)
        self.served += 1
        if pid in self._early:
            process.status.set_result(self._early.pop(pid))
        elif self.is_alive:
            self._runs[pid] = process
            self.idle.clear()
        else:
            process.status.set_result(None)
        return process

    async def _await_start(self, life_line: asyncio.StreamReader) -> int:
        """Return the number of the new process.

        A server that does not answer is killed: only then is it certain that it will not start
        the run after all.
        """
        try:
            line = await asyncio.wait_for(life_line.readline(), FORK_SECONDS)
        except TimeoutError:
            self.kill()
            line = await life_line.readline()
        if not line:
            self.kill()
            raise WarmStartError("it does not start runs")
        return int(line)

    async def _listen(self) -> None:
        """Take what the server says, until it is gone."""
        loop = asyncio.get_running_loop()
        rest = b""
        try:
            while chunk := await loop.sock_recv(self._control, CHUNK):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._take(line)
        except (OSError, ValidationError):
            pass
        finally:
            self._control.close()
            for process in self._runs.values():
                process.status.set_result(None)
            self._runs.clear()
            self.idle.set()
            if not self._readiness.done():
                self._readiness.set_exception(WarmStartError("it has ended"))

    def _take(self, line: bytes) -> None:
        if not self._readiness.done():
            self._readiness.set_result(Readiness.model_validate_json(line))
            return
        ended = _Ended.model_validate_json(line)
        if process := self._runs.pop(ended.pid, None):
            process.status.set_result(ended.status)
            if not self._runs:
                self.idle.set()
        else:
            self._early[ended.pid] = ended.status

    async def end(self) -> None:
        """End it at once, and wait until it is gone; its runs go on."""
        self.kill()
        await self._process.wait()

    def kill(self) -> None:
        """End it at once; its runs go on."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def stop(self) -> None:
        """End it; its runs go on."""
        self._listener.cancel()  # which closes the socket
        with contextlib.suppress(asyncio.CancelledError):
            await self._listener
        try:
            await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
        except TimeoutError:
            await self.end()


class _Pipe:
    """A pipe from a run's process.

    Args:
        theirs: Closes the end that the process has.
        on_failure: Closes ours.
    """

    def __init__(self, theirs: contextlib.ExitStack, on_failure: contextlib.ExitStack) -> None:
        self._reader, self.writer = os.pipe()
        theirs.callback(os.close, self.writer)
        self._file = on_failure.enter_context(open(self._reader, "rb", buffering=0))  # noqa: PTH123, SIM115

    async def open(self) -> asyncio.StreamReader:
        """Return our end as a stream."""
        stream = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), self._file
        )
        return stream


@contextlib.contextmanager
def _memory_file(content: Mapping[str, Any]) -> Iterator[IO[bytes]]:
    """Make a file without a name, for another process to read from its beginning."""
    with os.fdopen(os.memfd_create("mlops"), "w+b") as file:
        file.write(json.dumps(content).encode())
        file.flush()
        file.seek(0)
        yield file


async def _pump(source: asyncio.StreamReader, target: IO[str]) -> None:
    """Pass on what a run prints, line by line, until nobody holds the other end."""
    binary: BinaryIO = target.buffer  # type: ignore[attr-defined]
    while chunk := await source.read(CHUNK):
        binary.write(chunk)
        binary.flush()
