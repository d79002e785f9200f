"""A process that has imported what flows need, and forks itself for each run.

    python fork_server.py CONTROL PLAN

Both are numbers of descriptors: of the socket to its agent, and of a file that says what to import.

The agent sends one byte together with the descriptors of a
request (JSON: what a run finds set) and of the run's output and life line. The forked process
takes them as its own, becomes the leader of a session, and goes on as `flow_process` does in a
fresh interpreter. On its life line it says that it has started, and with which code it ended; the
end by a signal only this process sees, and tells the agent. When the agent is gone it ends: runs
in flight go on.

Nothing here may start a thread, or leave a file open that a run would inherit.

A script for the flow's own environment: standard library only, and Python from 3.9 on.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import random
import select
import signal
import socket
import ssl
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlops.agent import flow_process
else:
    import flow_process  # beside this file

# What runs of one agent may not share: the place of the mark is reserved in this process's first
# environment, where /proc shows it, and is written over in each run's process.
MARK = "MLOPS_ATTEMPT"
# What the engine needs. Not the engine itself, which is run as a program.
BASE_MODULES = (
    "prefect.flow_engine",
    "prefect._internal.control_listener",
    "prefect._internal.metrics",
    "prefect.events.worker",
)
# jemalloc, which pyarrow brings along, sets itself up anew in a fork (`jemalloc_postfork_child`).
FORK_AWARE = {"jemalloc_bg_thd"}
CONTEXTS = 4
DESCRIPTORS = 4  # request, standard output, standard error, life line


def resident_bytes() -> int:
    """Return the memory that this process occupies now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def other_threads() -> int:
    """Return how many threads there are besides this one and those that outlive a fork well."""
    count = -1
    for number in os.listdir("/proc/self/task"):  # noqa: PTH208  # called for each module
        with contextlib.suppress(OSError):
            name = Path(f"/proc/self/task/{number}/comm").read_text().strip()
            count += name not in FORK_AWARE
    return count


def uses_gpu() -> bool:
    """Return whether a GPU's driver is open here; a fork cannot use it any more."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  # called for each module
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("/dev/nvidia"):  # noqa: PTH115
                return True
    return False


def fork() -> int:
    """Fork without the warning of Python 3.12 about threads, for which `unfit` has looked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def unfit() -> str:
    """Say why this process must not be forked any more; empty: it may."""
    if threading.active_count() > 1:
        return "starts threads"
    if uses_gpu():
        return "opens the GPU"
    if other_threads():
        # Some libraries (OpenBLAS) end their threads before a fork and start them anew.
        pid = fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        if other_threads():
            return "starts threads"
    return ""


def import_ahead(names: list[str], *, limit_seconds: float, limit_bytes: int) -> dict[str, str]:
    """Import modules, as long as there is time and memory.

    Args:
        names: What to import, in this order.
        limit_seconds: No further one is begun after so long.
        limit_bytes: Nor above so much memory of this process.

    Returns:
        The ones that are not here to stay, by name, with the reason. When one makes this process
        unfit for forking, it is the last of them, and begins with `!`.
    """
    began = time.monotonic()
    skipped: dict[str, str] = {}
    for name in names:
        if name in sys.modules:
            continue
        if time.monotonic() - began > limit_seconds:
            skipped[name] = "no time left"
            continue
        if resident_bytes() > limit_bytes:
            skipped[name] = "no memory left"
            continue
        try:
            importlib.import_module(name)
        except BaseException as error:  # noqa: BLE001  # whatever a module does when it is imported
            skipped[name] = f"cannot be imported: {type(error).__name__}: {error}"
            continue
        if reason := unfit():
            skipped[name] = f"!{reason}"
            break
    return skipped


def complete_models() -> None:
    """Let pydantic finish what it puts off until a model of Prefect's is first used."""
    base = getattr(sys.modules.get("pydantic"), "BaseModel", None)
    pending = list(base.__subclasses__()) if base else []
    while pending:
        model = pending.pop()
        pending += model.__subclasses__()
        if not model.__pydantic_complete__ and model.__module__.startswith("prefect."):
            with contextlib.suppress(Exception):  # some are never complete
                model.model_rebuild(raise_errors=False)


class ContextsAhead:
    """TLS contexts that are made before they are asked for, each given out once.

    Prefect makes one for every client, also where it speaks plain HTTP: four for a run, which take
    25 ms of a core each, for reading the certificates.

    Args:
        count: How many of them.
    """

    def __init__(self, count: int) -> None:
        self._make = ssl.create_default_context
        self._cafile: str | None = None
        self._known: tuple[float, int] | None = None
        with contextlib.suppress(ImportError, OSError):
            self._cafile = importlib.import_module("certifi").where()
            self._known = self._state()
        self._contexts = [self._make(cafile=self._cafile) for _ in range(count)]

    def install(self) -> None:
        """Give them out from now on."""
        if self._known:
            ssl.create_default_context = self.create

    def create(self, *arguments: Any, **options: Any) -> ssl.SSLContext:
        """Return a context as `ssl.create_default_context` does."""
        is_ours = not arguments and options == {"cafile": self._cafile}
        if is_ours and self._contexts and self._state() == self._known:
            return self._contexts.pop()
        return self._make(*arguments, **options)

    def _state(self) -> tuple[float, int]:
        status = os.stat(str(self._cafile))  # noqa: PTH116
        return status.st_mtime, status.st_size


class Mark:
    """The place in this process's first environment that carries a run's mark."""

    def __init__(self) -> None:
        content = Path("/proc/self/environ").read_bytes()
        entry = f"{MARK}=".encode()
        at = content.index(entry) + len(entry)
        self._length = content.index(b"\0", at) - at
        # Source: proc(5), field 50 of stat; those after the name in parentheses begin with 3.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        self._address = int(fields[50 - 3]) + at

    def write(self, mark: str) -> None:
        """Show a mark in /proc, where another process looks for it."""
        ctypes.memmove(self._address, mark.encode()[: self._length], self._length)


class Run:
    """A run's process, as its parent knows it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.descriptor = os.pidfd_open(pid)

    def end(self) -> int:
        """Collect a process that has ended; return its exit code, negative for a signal."""
        os.close(self.descriptor)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class ForkServer:
    """The parent of the runs.

    Args:
        control: The socket of the agent.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._mark = Mark()
        self._runs: dict[int, Run] = {}
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)

    def say(self, **message: Any) -> None:
        """Tell the agent something; nobody listens any more when it is gone."""
        with contextlib.suppress(OSError):
            self._control.sendall(json.dumps(message).encode() + b"\n")

    def serve(self) -> list[int] | None:
        """Fork when asked to, until the agent is gone.

        Returns:
            In a run's process the descriptors that came with the request; None in this one, at
            its end.
        """
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._control.fileno():
                    _, descriptors, _, _ = socket.recv_fds(self._control, 1, DESCRIPTORS)
                    if len(descriptors) < DESCRIPTORS:  # the agent is gone, and nobody else asks
                        return None
                    if self._fork(descriptors):
                        return descriptors
                else:
                    run = self._runs.pop(descriptor)
                    self._poll.unregister(descriptor)
                    self.say(pid=run.pid, status=run.end())

    def _fork(self, descriptors: list[int]) -> bool:
        """Fork; return whether this is the new process."""
        pid = fork()
        if pid == 0:
            self._control.close()
            for other in self._runs:
                os.close(other)
            return True
        for descriptor in descriptors:
            os.close(descriptor)
        run = Run(pid)
        self._runs[run.descriptor] = run
        self._poll.register(run.descriptor, select.POLLIN)
        return False

    def become(self, request: dict[str, Any]) -> None:
        """Take a run's place: session, folder, environment, and what is random."""
        os.setsid()
        self._mark.write(request["environment"].get(MARK, ""))
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        forget_parent()


def forget_parent() -> None:
    """Make anew what a fresh interpreter would not have in common with this one's siblings.

    Python itself seeds `random` anew after a fork.
    """
    tempfile.tempdir = None
    time.tzset()
    if numpy_random := sys.modules.get("numpy.random"):
        numpy_random.seed()
    if process := sys.modules.get("multiprocessing.process"):
        process.current_process().authkey = os.urandom(32)
    prefect_settings_anew()


def prefect_settings_anew() -> None:
    """Let Prefect read its settings again: a deployment may set some of its own."""
    before = prefect_settings_anew.__dict__.get("known")
    now = {k: v for k, v in os.environ.items() if k.startswith("PREFECT_") and "__" not in k}
    if now == before:
        return
    sys.modules["prefect.context"].refresh_global_settings_context()
    configuration = sys.modules["prefect.logging.configuration"]
    configuration.PROCESS_LOGGING_CONFIG.clear()
    configuration.setup_logging()


def take_descriptors(descriptors: list[int]) -> tuple[dict[str, Any], int]:
    """Make what the agent sent this process's own input and output.

    Returns:
        The request, and the life line.
    """
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    request, output, errors, life_line = descriptors
    with os.fdopen(request) as file:
        content: dict[str, Any] = json.load(file)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (errors, 2)):
        os.dup2(source, target)
        os.close(source)
    unbuffered = content["environment"].get("PYTHONUNBUFFERED", "") != ""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(write_through=unbuffered)  # type: ignore[union-attr]
    return content, life_line


def exit_code(error: SystemExit) -> int:
    """Return what the interpreter would make of an exit."""
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    print(error.code, file=sys.stderr)
    return 1


def run(server: ForkServer, descriptors: list[int]) -> None:
    """Be a run's process from its first moment to its end; never returns."""
    request, life_line = take_descriptors(descriptors)
    os.write(life_line, f"{os.getpid()}\n".encode())
    code = 1
    try:
        server.become(request)
        flow_process.run_engine(request["folder"])
        code = 0
    except SystemExit as error:
        code = exit_code(error)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
        sys.excepthook(*sys.exc_info())
    except BaseException:  # noqa: BLE001  # as at the interpreter's top level
        sys.excepthook(*sys.exc_info())
    finally:
        # As the interpreter ends, without taking apart every module it has loaded.
        with contextlib.suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001
        atexit._run_exitfuncs()  # noqa: SLF001
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        with contextlib.suppress(OSError):
            os.write(life_line, f"{code}\n".encode())
        os._exit(code)


def main() -> None:
    """Import, say so, and serve."""
    control = socket.socket(fileno=int(sys.argv[1]))
    with os.fdopen(int(sys.argv[2])) as file:
        plan = json.load(file)
    server = ForkServer(control)
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # this script's own folder
    flow_process.extend_mlflow(flow_process.read_context)
    began = time.monotonic()
    for name in BASE_MODULES:
        with contextlib.suppress(ImportError):  # not in every version
            importlib.import_module(name)
    prefect_settings_anew.__dict__["known"] = {
        k: v for k, v in os.environ.items() if k.startswith("PREFECT_") and "__" not in k
    }
    skipped = import_ahead(
        plan["modules"],
        limit_seconds=plan["limit_seconds"],
        limit_bytes=plan["limit_bytes"],
    )
    broken = next((reason for reason in skipped.values() if reason.startswith("!")), "") or unfit()
    server.say(
        ready=not broken,
        skipped=skipped,
        loaded=sorted({name.partition(".")[0] for name in sys.modules}),
        refreshable=hasattr(sys.modules["prefect.context"], "refresh_global_settings_context"),
        seconds=time.monotonic() - began,
    )
    if broken:
        return
    complete_models()
    ContextsAhead(CONTEXTS).install()
    gc.collect()
    gc.freeze()  # a run's collections leave the pages of what is here shared
    random.seed()
    if descriptors := server.serve():
        run(server, descriptors)


if __name__ == "__main__":
    main()
