"""What a process imports and makes ahead of the runs that are forked from it.

For the flow's own environment: standard library only, and Python from 3.9 on.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import os
import ssl
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

# What the engine needs. Not the engine itself, which is run as a program.
BASE_MODULES = (
    "prefect.flow_engine",
    "prefect._internal.control_listener",
    "prefect._internal.metrics",
    "prefect.events.worker",
)
# jemalloc, which pyarrow brings along, sets itself up anew in a fork (`jemalloc_postfork_child`).
FORK_AWARE = {"jemalloc_bg_thd"}
CONTEXTS = 6


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

    Prefect makes one for every client, also where it speaks plain HTTP: six for a run, which take
    25 ms of a core each, for reading the certificates.

    Args:
        count: How many of them.
    """

    def __init__(self, count: int) -> None:
        self._make = ssl.create_default_context
        self._cafile: str | None = None
        self._known: tuple[float, int] | None = None
        with contextlib.suppress(ImportError, AttributeError, OSError):
            self._cafile = certificate_file()
            self._known = self._state()
        self._contexts = [
            self._make(cafile=self._cafile) for _ in range(count if self._known else 0)
        ]
        self._given: list[ssl.SSLContext] = []  # to take them apart would copy their memory

    def install(self) -> None:
        """Give them out from now on."""
        if self._known:
            ssl.create_default_context = self.create

    def create(self, *arguments: Any, **options: Any) -> ssl.SSLContext:
        """Return a context as `ssl.create_default_context` does."""
        is_ours = not arguments and options == {"cafile": self._cafile}
        if is_ours and self._state() == self._known:
            with contextlib.suppress(IndexError):  # all are given out; several threads ask
                context = self._contexts.pop()
                self._given.append(context)
                return context
        return self._make(*arguments, **options)

    def _state(self) -> tuple[float, int]:
        status = os.stat(str(self._cafile))  # noqa: PTH116
        return status.st_mtime, status.st_size


def certificate_file() -> str:
    """Return the file of certificates that Prefect's clients read.

    Source: `prefect.client.orchestration.PrefectClient`.
    """
    setting = importlib.import_module("prefect.settings").PREFECT_API_SSL_CERT_FILE
    return str(setting.value() or importlib.import_module("certifi").where())


def import_base() -> None:
    """Import what every run needs, as far as its Prefect has it."""
    for name in BASE_MODULES:
        with contextlib.suppress(ImportError):  # not in every version
            importlib.import_module(name)


def end_without_heartbeats() -> None:
    """Let a run end without a wait for the thread of its heartbeats, as asynchronous flows do.

    Prefect's engine joins it, and it sleeps for a second at a time: every run that has nothing
    else to do would keep its slot for so long. The thread dies with the process.

    Source: `prefect.flow_engine._send_heartbeats`.
    """
    engine = sys.modules.get("prefect.flow_engine")
    send = getattr(engine, "_send_heartbeats", None)
    if send and "join_on_exit" in inspect.signature(send).parameters:
        vars(engine)["_send_heartbeats"] = functools.partial(send, join_on_exit=False)


def make_ahead() -> None:
    """Make what every run would make anew, and take away what it would wait for."""
    complete_models()
    end_without_heartbeats()
    ContextsAhead(CONTEXTS).install()
