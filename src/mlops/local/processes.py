"""Which processes are ours, and how they are ended.

Everything that the platform starts carries its instance in the environment, which children
inherit: so are found the services, the flow runs below them, and what a killed supervisor left
behind. PostgreSQL's children overwrite their environment; they are found below their parent.
"""

import contextlib
import os
import signal
from collections import defaultdict
from collections.abc import Iterable

import psutil

from mlops.errors import MlopsError
from mlops.marked_processes import find_marked, own_line

INSTANCE_VARIABLE = "MLOPS_INSTANCE"
SERVICE_VARIABLE = "MLOPS_SERVICE"


def find_processes(instance: str) -> dict[str, list[psutil.Process]]:
    """Return the processes of a platform by service; `""` holds the supervisor and others.

    The calling process and its parents are left out, as they may have inherited the mark.

    Args:
        instance: The platform's mark.
    """
    service_of: dict[psutil.Process, str] = {}
    for process in find_marked(INSTANCE_VARIABLE, instance):
        with contextlib.suppress(psutil.Error, OSError):  # gone meanwhile
            service_of[process] = process.environ().get(SERVICE_VARIABLE, "")
    # The supervisor's children last, as everything is below it.
    for process, service in sorted(service_of.items(), key=lambda item: not item[1]):
        with contextlib.suppress(psutil.Error):
            for child in process.children(recursive=True):
                service_of.setdefault(child, service)
    spared = own_line()
    found: dict[str, list[psutil.Process]] = defaultdict(list)
    for process, service in service_of.items():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process not in spared and process.status() != psutil.STATUS_ZOMBIE:
                found[service].append(process)
    return dict(found)


def memory_bytes(processes: Iterable[psutil.Process]) -> int:
    """Return the memory of processes together; pages that they share count once (PSS).

    Args:
        processes: Any of ours; the ones that are gone count nothing.
    """
    total = 0
    for process in processes:
        try:
            info = process.memory_full_info()
            total += getattr(info, "pss", info.uss)
        except (psutil.Error, OSError):
            continue
    return total


def end_processes(instance: str, *, patience_seconds: float = 10.0) -> int:
    """End whatever is left of a platform: first politely, then by force.

    Args:
        instance: The platform's mark.
        patience_seconds: How long a process may take to end by itself.

    Returns:
        How many processes there were.

    Raises:
        MlopsError: Some could not be ended.
    """
    ended: set[int] = set()
    for force in (False, True):
        left = [process for group in find_processes(instance).values() for process in group]
        if not left:
            return len(ended)
        for process in left:
            ended.add(process.pid)
            _signal(process, force=force)
        psutil.wait_procs(left, timeout=patience_seconds)
    left = [process for group in find_processes(instance).values() for process in group]
    if left:
        raise MlopsError(
            "could not be ended: " + ", ".join(f"{p.name()} (pid {p.pid})" for p in left),
            hint="end them by hand",
        )
    return len(ended)


def _signal(process: psutil.Process, *, force: bool) -> None:
    try:
        if force:
            process.kill()
        elif process.name() == "postgres":
            process.send_signal(signal.SIGINT)  # "fast": without waiting for clients to leave
        else:
            process.terminate()
    except psutil.NoSuchProcess:
        pass
    except psutil.AccessDenied:
        raise MlopsError(
            f"{process.name()} (pid {process.pid}) belongs to another user",
            hint=f"run as that user (you are uid {os.getuid()})",
        ) from None
