"""What each service is doing now."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel, ConfigDict

from mlops.health import UnhealthyError
from mlops.local import checks
from mlops.local.home import HOST, Home, State, addresses
from mlops.local.processes import find_processes, memory_bytes
from mlops.local.services import SERVICES, Situation
from mlops.local.supervision import Supervisor


class ServiceStatus(BaseModel):
    """One line of `mlops local status`."""

    model_config = ConfigDict(frozen=True)

    name: str
    state: str  # running, starting, stopped, failed, or orphaned: without a supervisor
    address: str | None
    pid: int | None
    memory_bytes: int  # PSS, with child processes
    healthy: bool
    problem: str | None
    uptime_seconds: float | None


class PlatformStatus(BaseModel):
    """All of `mlops local status`."""

    model_config = ConfigDict(frozen=True)

    home: str
    state: str  # healthy, unhealthy or stopped
    memory_bytes: int
    services: tuple[ServiceStatus, ...]


_STATES = {
    "RUNNING": "running",
    "STARTING": "starting",
    "BACKOFF": "failed",
    "FATAL": "failed",
    "EXITED": "failed",
}


def read_status(path: Path) -> PlatformStatus:
    """Look at every service of a platform; change nothing.

    Args:
        path: `$MLOPS_HOME`.
    """
    home = Home(path)
    state = home.load_state()
    if state is None:
        return PlatformStatus(home=str(path), state="stopped", memory_bytes=0, services=())
    found = find_processes(state.instance)
    supervisor = Supervisor(home, Path(state.control_socket or home.run / "control"))
    known = supervisor.processes() if supervisor.is_up() else None
    services = [
        _service_status(service.name, home, state, found.get(service.name, []), known)
        for service in SERVICES
        if not service.once
    ]
    supervisor_processes = found.get("", [])
    if supervisor_processes:
        services.append(_supervisor_status(supervisor_processes))
    running = [service for service in services if service.state != "stopped"]
    return PlatformStatus(
        home=str(path),
        state="stopped"
        if not running
        else "healthy"
        if all(service.healthy for service in services)
        else "unhealthy",
        memory_bytes=sum(service.memory_bytes for service in services),
        services=tuple(services),
    )


def _service_status(
    name: str,
    home: Home,
    state: State,
    processes: list[psutil.Process],
    known: dict[str, dict[str, Any]] | None,
) -> ServiceStatus:
    main = _main_process(processes)
    if known is None:
        what = "orphaned" if main else "stopped"
    else:
        # A supervisor of another release may not know the service.
        what = _STATES.get(known.get(name, {}).get("statename", ""), "stopped")
    problem = None
    if main is None:
        problem = None if what == "stopped" else "it has no process"
    else:
        try:
            checks.check(name, Situation(home, state, home.credentials()), main.pid)
        except UnhealthyError as error:
            problem = error.message
    if what == "orphaned":
        problem = problem or "its supervisor is gone; `mlops local up` mends that"
    return ServiceStatus(
        name=name,
        state=what,
        address=_address(name, state),
        pid=main.pid if main else None,
        memory_bytes=memory_bytes(processes),
        healthy=what == "running" and problem is None,
        problem=problem,
        uptime_seconds=_uptime_seconds(main),
    )


def _supervisor_status(processes: list[psutil.Process]) -> ServiceStatus:
    main = _main_process(processes)
    return ServiceStatus(
        name="supervisor",
        state="running",
        address=None,
        pid=main.pid if main else None,
        memory_bytes=memory_bytes(processes),
        healthy=True,
        problem=None,
        uptime_seconds=_uptime_seconds(main),
    )


def _address(name: str, state: State) -> str | None:
    if name == "postgres":
        return f"{HOST}:{state.ports.postgres}"
    address = addresses(state.ports).model_dump().get(name)
    return str(address) if address else None


def _main_process(processes: Iterable[psutil.Process]) -> psutil.Process | None:
    """Return the process that the others come from: the oldest one."""
    alive = []
    for process in processes:
        try:
            alive.append((process.create_time(), process.pid, process))
        except psutil.NoSuchProcess:
            continue
    return min(alive)[2] if alive else None


def _uptime_seconds(process: psutil.Process | None) -> float | None:
    if process is None:
        return None
    return round(max(0.0, time.time() - process.create_time()), 1)
