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
import json
import os
import random
import select
import signal
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlops.agent import flow_process, imports_ahead, mlflow_context
else:  # beside this file
    import flow_process
    import imports_ahead
    import mlflow_context

# What runs of one agent may not share: the place of the mark is reserved in this process's first
# environment, where /proc shows it, and is written over in each run's process.
MARK = "MLOPS_ATTEMPT"
DESCRIPTORS = 4  # request, standard output, standard error, life line


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


class PrefectSettings:
    """Prefect's settings, as this process has read them when it imported Prefect."""

    def __init__(self) -> None:
        self._variables = self._now()

    @staticmethod
    def _now() -> dict[str, str]:
        return {k: v for k, v in os.environ.items() if k.startswith("PREFECT_") and "__" not in k}

    def read_anew(self) -> None:
        """Let Prefect read them again if they are others now: a deployment may set its own."""
        if self._now() == self._variables:
            return
        sys.modules["prefect.context"].refresh_global_settings_context()
        configuration = sys.modules["prefect.logging.configuration"]
        configuration.PROCESS_LOGGING_CONFIG.clear()
        configuration.setup_logging()


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
        self._settings = PrefectSettings()
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
        pid = imports_ahead.fork()
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

    def stand_out(self, request: dict[str, Any]) -> None:
        """Let others find this process as the run's, and signal it and its children as a group."""
        self._mark.write(request["environment"].get(MARK, ""))
        os.setsid()

    def become(self, request: dict[str, Any]) -> None:
        """Take a run's place: folder, environment, and what is random."""
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        forget_parent()
        self._settings.read_anew()


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
    server.stand_out(request)
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
    mlflow_context.extend_mlflow(mlflow_context.read_context)
    began = time.monotonic()
    with flow_process.seldom_collected():
        imports_ahead.import_base()
        skipped = imports_ahead.import_ahead(
            plan["modules"],
            limit_seconds=plan["limit_seconds"],
            limit_bytes=plan["limit_bytes"],
        )
    is_fit = not any(reason.startswith("!") for reason in skipped.values())
    is_fit = is_fit and not imports_ahead.unfit()
    server.say(
        ready=is_fit,
        skipped=skipped,
        loaded=sorted({name.partition(".")[0] for name in sys.modules}),
        refreshable=hasattr(sys.modules["prefect.context"], "refresh_global_settings_context"),
        seconds=time.monotonic() - began,
    )
    if not is_fit:
        return
    imports_ahead.make_ahead()
    gc.collect()
    gc.freeze()  # a run's collections leave the pages of what is here shared
    random.seed()
    if descriptors := server.serve():
        run(server, descriptors)


if __name__ == "__main__":
    main()
