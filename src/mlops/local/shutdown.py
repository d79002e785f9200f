"""From whatever is there to nothing: in good order, and checked."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mlops.local.home import Home, State
from mlops.local.lock import exclusive
from mlops.local.processes import end_processes, find_processes
from mlops.local.services import SERVICES, SERVICES_BY_NAME
from mlops.local.supervision import Supervisor

POLL_SECONDS = 0.05
STOPPED = ("STOPPED", "EXITED", "FATAL", "BACKOFF")


def stop_platform(path: Path, report: Callable[[str], None]) -> int:
    """Stop everything of a platform; nothing is left of it.

    Args:
        path: `$MLOPS_HOME`.
        report: Called with the name of each service that has ended.

    Returns:
        How many services and other processes there were to stop.

    Raises:
        MlopsError: Some process could not be ended.
    """
    home = Home(path)
    state = home.load_state()
    if state is None:
        return 0
    home.create()
    with exclusive(home, lambda: report("waiting for another up or down")):
        return stop_everything(home, state, report)


def stop_everything(home: Home, state: State, report: Callable[[str], None]) -> int:
    """Stop the services in order, then the supervisor, then whatever else is ours.

    Ctrl-C is put off until it is done: half-stopped helps nobody.

    Args:
        home: The platform's folder.
        state: Its mark and its control socket.
        report: Called with the name of each service that has ended.

    Returns:
        How many services and other processes there were to stop.
    """
    with _interrupts_put_off():
        stopped = 0
        supervisor = Supervisor(home, Path(state.control_socket or home.run / "control"))
        if supervisor.is_up():
            stopped = stop_services(supervisor, [s.name for s in SERVICES], report)
            supervisor.shut_down()
            deadline = time.monotonic() + POLL_SECONDS * 100
            while find_processes(state.instance) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
        return stopped + end_processes(state.instance)


def stop_services(
    supervisor: Supervisor, names: Iterable[str], report: Callable[[str], None]
) -> int:
    """Stop services, each one after those that need it.

    Args:
        supervisor: Stops them.
        names: Which.
        report: Called with the name of each service that has ended.

    Returns:
        How many were running.
    """
    with _interrupts_put_off():
        states = {name: info["statename"] for name, info in supervisor.processes().items()}
        # A supervisor of another release may not know all of them.
        left = {name for name in names if states.get(name, "STOPPED") not in STOPPED}
        count, asked = len(left), set[str]()
        while left:
            needed = {need for name in left for need in _needs(name)}
            for name in left - needed - asked:
                supervisor.stop_service(name)
                asked.add(name)
            states = {name: info["statename"] for name, info in supervisor.processes().items()}
            for name in [name for name in left & asked if states[name] in STOPPED]:
                left.remove(name)
                report(name)
            if left:
                time.sleep(POLL_SECONDS)
        return count


def _needs(name: str) -> set[str]:
    """Return all services that a service needs, directly or not."""
    direct = set(SERVICES_BY_NAME[name].needs)
    return direct.union(*(_needs(need) for need in direct))


@contextlib.contextmanager
def _interrupts_put_off() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
