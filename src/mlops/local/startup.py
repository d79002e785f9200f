"""From whatever is there to a healthy platform.

What is up already is left alone; what a killed supervisor, a reboot or a moved folder left
behind is put in order first. Whatever goes wrong, and at Ctrl-C, everything that this start
has started is stopped again.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mlops import __version__
from mlops.credentials import Credentials, load_or_create_credentials
from mlops.errors import MlopsError
from mlops.local import postgres, supervision
from mlops.local.home import Home, Ports, State
from mlops.local.lock import exclusive
from mlops.local.ports import choose_ports
from mlops.local.processes import end_processes
from mlops.local.sequence import Report, StartSequence
from mlops.local.services import Situation
from mlops.local.shutdown import stop_everything, stop_services
from mlops.local.supervision import Supervisor
from mlops.settings import LocalSettings

LEAST_FREE_BYTES = 500 * 10**6


class Started(NamedTuple):
    """What a start did.

    Args:
        situation: The platform.
        seconds: How long each service that was started took to become healthy, by name.
        notes: What the user should know: other ports, other folders, what was mended.
    """

    situation: Situation
    seconds: dict[str, float]
    notes: list[str]


def start_platform(settings: LocalSettings, report: Report) -> Started:
    """Bring the platform up and wait until every service is healthy.

    Args:
        settings: Where it lives.
        report: Told of every step.

    Raises:
        MlopsError: Something is in the way, or a service does not become healthy; what was
            started is stopped again.
    """
    home = Home(settings.mlops_home)
    home.create()
    with (
        _ends_as_interrupts(),
        exclusive(home, lambda: report("lock", "waiting for another up or down", 0.0)),
        contextlib.ExitStack() as until_started,
    ):
        try:
            return _start(home, settings, report, until_started)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise MlopsError(
                f"{home.path}: the disk is full", hint="make room there and try again"
            ) from None


@contextlib.contextmanager
def _ends_as_interrupts() -> Iterator[None]:
    """Let a closed terminal and SIGTERM undo the start as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)}
    for each, handler in previous.items():
        if handler is not signal.SIG_IGN:  # of nohup
            signal.signal(each, signal.default_int_handler)
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


def _start(
    home: Home, settings: LocalSettings, report: Report, until_started: contextlib.ExitStack
) -> Started:
    free = shutil.disk_usage(home.path).free
    if free < LEAST_FREE_BYTES:
        raise MlopsError(
            f"{home.path}: only {free // 10**6} MB are free on this disk",
            hint=f"make room ({LEAST_FREE_BYTES // 10**6} MB at least), or set MLOPS_HOME",
        )
    state, notes = identify(home)
    credentials = load_or_create_credentials(home.credentials_file)
    supervisor = Supervisor(home, Path(state.control_socket or home.run / "control"))
    was_up = supervisor.is_up()
    before = state
    state = state._replace(
        flow_dir=choose_flow_dir(home, settings, before.flow_dir if was_up else ""),
        pool_name=settings.pool_name or state.pool_name,
    )
    if was_up and not supervision.is_configured(home, state):
        notes.append("another release or folder: everything was restarted")
        stop_everything(home, state, lambda _name: None)
        was_up = False
    if not was_up:
        left = end_processes(state.instance)
        if left:
            notes.append(f"ended {left} processes that an earlier start had left behind")
        ports = until_started.enter_context(choose_ports(state.ports))
        for name, wanted, port in zip(Ports._fields, state.ports, ports, strict=True):
            if wanted != port:
                notes.append(f"port {wanted} is busy: {name} listens on {port}")
        state = _settle(home, state._replace(ports=ports), credentials, notes, report)
        supervisor = Supervisor(home, Path(state.control_socket))
    home.save_state(state)
    situation = Situation(home, state, credentials)
    stamp = _setup_stamp(state, credentials)
    is_set_up = state.setup_stamp == stamp
    begun: list[str] = []
    try:
        if was_up:
            stop_services(supervisor, _told_otherwise(before, state), lambda _name: None)
        else:
            supervisor.start(supervision.service_environment(dict(os.environ), home, state))
        seconds = StartSequence(
            situation, supervisor, report, is_set_up=is_set_up, begun=begun
        ).run()
    except BaseException:  # Ctrl-C too: nothing that this start began is left behind
        if was_up:
            stop_services(supervisor, begun, lambda _name: None)
        else:
            stop_everything(home, state, lambda _name: None)
        raise
    home.save_state(state._replace(setup_stamp=stamp))
    return Started(situation, seconds, notes)


def identify(home: Home) -> tuple[State, list[str]]:
    """Return a platform's state before a start: kept, or new for a new or copied home.

    Args:
        home: The platform's folder.

    Returns:
        The state, and what the user should know about it.

    Raises:
        MlopsError: The home is a copy, and its database was not copied with it.
    """
    state, here = home.load_state(), str(home.path)
    if state is None:
        return State(instance=uuid.uuid4().hex, path=here), []
    if state.path == here:
        return state, []
    origin = Home(Path(state.path)).load_state() if os.path.lexists(state.path) else None
    if origin is None or origin.instance != state.instance:
        return state._replace(path=here), [f"moved here from {state.path}"]
    # A copy of a home that is still there: another platform, which must not touch the first.
    if home.postgres.is_symlink():
        raise MlopsError(
            f"{here}: a copy of {state.path}, whose database lies outside of it",
            hint=f"copy {home.postgres.resolve()} too: rm {home.postgres} && "
            f"cp -a {home.postgres.resolve()} {home.postgres}",
        )
    copied = State(instance=uuid.uuid4().hex, path=here, setup_stamp=state.setup_stamp)
    return copied, [f"a copy of {state.path}: it runs beside it"]


def choose_flow_dir(home: Home, settings: LocalSettings, watched: str) -> str:
    """Return the folder of flow folders: the one asked for, the one watched, or the usual one.

    The usual one is the checkout's `flows/`, of `./mlops` or of the code that runs; without a
    checkout the home has one of its own.

    Args:
        home: The platform's folder.
        settings: What the user asks for.
        watched: The folder that a running scheduler watches; empty: none.

    Raises:
        MlopsError: The folder asked for does not exist.
    """
    if settings.flow_dir:
        if not settings.flow_dir.is_dir():
            raise MlopsError(f"{settings.flow_dir}: no such folder", hint="check FLOW_DIR")
        return str(settings.flow_dir)
    if watched:
        return watched
    for checkout in (settings.mlops_checkout, Path(__file__).resolve().parents[3]):
        if checkout and (checkout / "flows").is_dir():
            return str(checkout / "flows")
    folder = home.path / "flows"
    folder.mkdir(exist_ok=True)
    return str(folder)


def _settle(
    home: Home, state: State, credentials: Credentials, notes: list[str], report: Report
) -> State:
    """Choose places for a platform that is down, and write its configuration."""
    seat = postgres.take_seat(home, state.instance)
    if seat.folder != home.postgres:
        notes.append(
            f"PostgreSQL runs as {seat.account}, which cannot reach {home.path}: "
            f"its data is in {seat.folder}"
        )
    began = time.monotonic()
    if not (seat.data / "PG_VERSION").exists():
        report("postgres", "creating the database", 0.0)
    postgres.create_cluster(seat, credentials.postgres_password)
    postgres.clear_stale_lock(seat)
    report("postgres", "starting", time.monotonic() - began)
    state = state._replace(
        postgres_folder=str(seat.folder),
        postgres_programs=str(seat.programs),
        postgres_account=seat.account,
    )
    state = state._replace(control_socket=str(supervision.choose_socket(home, state)))
    supervision.write_config(home, state)
    return state


def _told_otherwise(before: State, state: State) -> list[str]:
    """Return the services whose environment has changed."""
    services = {"scheduler": "flow_dir", "agent": "pool_name"}
    return [
        name for name, field in services.items() if getattr(before, field) != getattr(state, field)
    ]


def _setup_stamp(state: State, credentials: Credentials) -> str:
    """Return what the set-up is made from: with the same stamp there is nothing to converge."""
    text = f"{__version__} {state.pool_name} {credentials.model_dump_json()}"
    return hashlib.sha256(text.encode()).hexdigest()
