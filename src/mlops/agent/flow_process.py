"""A flow's process from its first moment to Prefect's engine.

A limit of memory is applied before anything else, and the run outlives the reader of its output.

A flow may import `mlops.data`, though our package is not among those of its environment.

A script for the flow's own environment: standard library only, and Python from 3.9 on.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import json
import os
import resource
import runpy
import site
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import ModuleType

if TYPE_CHECKING or __package__:
    from mlops.agent import mlflow_context
else:  # as a script
    import mlflow_context  # beside this file

ENGINE = "prefect.engine"
ENGINES_NEED = "prefect.flow_engine"
MANY_OBJECTS = 50_000
SERVER_SECONDS = 600.0
CONNECT_SECONDS = 5.0
RETRY_SECONDS = 0.5
REPORT_VARIABLE = "MLOPS_REPORT_FILE"
MEMORY_LIMIT_VARIABLE = "MLOPS_MEMORY_LIMIT_BYTES"
MEMORY_GROUP_VARIABLE = "MLOPS_MEMORY_GROUP"  # the file through which a process joins a cgroup


class OurPackage(importlib.abc.MetaPathFinder):
    """Finds the agent's own `mlops` package for a flow that has no other of that name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find the package; what is in it Python's own finders find."""
        del path, target
        if fullname != "mlops":
            return None
        folder = Path(__file__).resolve().parent.parent
        return importlib.util.spec_from_file_location(
            fullname, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


def had_children() -> bool:
    """Return whether this process has started others, which may have done anything."""
    if resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss:
        return True
    try:
        return any(file.read_bytes() for file in Path("/proc/self/task").glob("*/children"))
    except OSError:
        return True


def report(file: Path) -> None:
    """Write down what the agent wants to know of a run that has ended by itself.

    Args:
        file: Where to.
    """
    packages = tuple(f"{path}{os.sep}" for path in site.getsitepackages())
    modules = [
        name
        for name, module in list(sys.modules.items())
        if (getattr(module, "__file__", None) or "").startswith(packages)
        and getattr(getattr(module, "__spec__", None), "name", "") == name
    ]
    content = {
        "modules": modules,
        "may_have_logged": mlflow_context.MLFLOW_USE.is_possible or had_children(),
    }
    with contextlib.suppress(OSError):
        file.write_text(json.dumps(content))


def await_server() -> None:
    """Wait while the Prefect server does not listen.

    Prefect's client tries again when a server goes away, but not when it was never there: a run
    that is started in that moment would crash.
    """
    address = urlsplit(os.environ.get("PREFECT_API_URL", ""))
    deadline = time.monotonic() + SERVER_SECONDS
    is_told = False
    while address.hostname and time.monotonic() < deadline:
        port = address.port or (443 if address.scheme == "https" else 80)
        try:
            socket.create_connection((address.hostname, port), CONNECT_SECONDS).close()
        except OSError as error:
            if not is_told:
                print(f"waiting for the Prefect server: {error}", file=sys.stderr, flush=True)
                is_told = True
            time.sleep(RETRY_SECONDS)
        else:
            return


@contextlib.contextmanager
def seldom_collected() -> Iterator[None]:
    """Let Python's collector look for garbage less often than it does while modules are imported.

    What they make stays: to look through it again and again is a fifth of Prefect's import.
    """
    before = gc.get_threshold()
    gc.set_threshold(MANY_OBJECTS)
    try:
        yield
    finally:
        if gc.get_threshold()[0] == MANY_OBJECTS:  # no module has set its own
            gc.set_threshold(*before)


def expect_server(address: str) -> None:
    """Let Prefect's clients try again from their first request on, now that the server is there.

    By themselves they do so after their first answer only, and a run begins with several of them:
    a server that goes away just then would crash it.

    Args:
        address: Of the API, about which nothing is expected when it is empty; requests to others
            fail at once, as ever.

    Source: `prefect.client.base.PrefectHttpxSyncClient.send`.
    """

    def has_connected(client: Any) -> bool:
        return vars(client).get("_has_connected", False) or str(client.base_url).startswith(address)

    def set_connected(client: Any, value: bool) -> None:
        vars(client)["_has_connected"] = value

    with contextlib.suppress(ImportError):
        module = importlib.import_module("prefect.client.base")
        for name in ("PrefectHttpxAsyncClient", "PrefectHttpxSyncClient"):
            if address and hasattr(module, name):
                answer = property(has_connected, set_connected)
                setattr(getattr(module, name), "_has_connected", answer)  # noqa: B010  # private


def apply_limits(environ: Mapping[str, str]) -> None:
    """Limit the memory of this process and of those that it starts, as the agent asks.

    Args:
        environ: The process's environment.
    """
    limit = environ.get(MEMORY_LIMIT_VARIABLE)
    if not limit:
        return
    group = environ.get(MEMORY_GROUP_VARIABLE)
    if group:
        with contextlib.suppress(OSError):
            Path(group).write_text("0")  # this process
            return
    # Of what a process may write to; of its whole address space CUDA alone reserves terabytes.
    with contextlib.suppress(ValueError):  # it lives under a lower limit already
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit), int(limit)))


class Output(io.FileIO):
    """Output that is written to nowhere when nobody is left to read it."""

    def write(self, content: Any) -> int:
        """Write bytes."""
        try:
            return super().write(content)
        except BrokenPipeError:
            lose_reader()
            return super().write(content)


def lose_reader(*_: object) -> None:
    """Let this process's output go nowhere."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nothing, descriptor)
    os.close(nothing)


def outlive_reader() -> None:
    """Go on when the agent is killed, who reads this process's output.

    The next line would be an error of the flow's, or, of Prefect's log, the end of the process:
    rich's console exits at a broken pipe.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        stream.flush()
        raw = Output(stream.fileno(), "wb", closefd=False)
        buffer = raw if stream.write_through else io.BufferedWriter(raw)
        own = io.TextIOWrapper(
            buffer,
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, own)
    with contextlib.suppress(ImportError):
        console = importlib.import_module("rich.console").Console
        console.on_broken_pipe = lose_reader


def run_engine(folder: str) -> None:
    """Run Prefect's engine as `python -m prefect.engine` does.

    Args:
        folder: The current one, as `sys.path` has it for a module that is run.
    """
    apply_limits(os.environ)
    outlive_reader()
    if file := os.environ.pop(REPORT_VARIABLE, ""):
        atexit.register(report, Path(file))  # called last: the others import, too
    await_server()
    sys.meta_path.append(OurPackage())
    if not getattr(sys.flags, "safe_path", False):
        sys.path.insert(0, folder)
    with seldom_collected(), contextlib.suppress(ImportError):
        importlib.import_module(ENGINES_NEED)
    gc.freeze()  # to look through all of it once more at the end takes a quarter of a second
    expect_server(os.environ.get("PREFECT_API_URL", ""))
    sys.argv = [__file__]
    sys.modules.pop(ENGINE, None)  # a warm process has it as a module, which runpy warns of
    runpy.run_module(ENGINE, run_name="__main__", alter_sys=True)


def main() -> None:
    """Be a flow's process."""
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # this script's own folder
    if mlflow_context.read_context():
        mlflow_context.extend_mlflow(mlflow_context.read_context)
    run_engine(os.getcwd())  # noqa: PTH109


if __name__ == "__main__":
    main()
