"""From whatever is there to a healthy platform.

What is up already is left alone; what a killed supervisor, a reboot or a moved folder left
behind is put in order first. Whatever goes wrong, and at Ctrl-C, everything that this start
has started is stopped again.
"""

import errno
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mlops import __version__
from mlops.credentials import Credentials, load_or_create_credentials
from mlops.errors import MlopsError
from mlops.health import UnhealthyError
from mlops.local import checks, postgres, supervision
from mlops.local.home import Home, Ports, State
from mlops.local.lock import exclusive
from mlops.local.ports import choose_ports
from mlops.local.processes import end_processes
from mlops.local.services import SERVICES, Service, Situation
from mlops.local.shutdown import stop_everything, stop_services
from mlops.local.supervision import Supervisor
from mlops.settings import LocalSettings

HEALTHY_SECONDS = 180.0  # for one service; MLflow's first start migrates its tables
LEAST_FREE_BYTES = 500 * 10**6
POLL_SECONDS = 0.1
LOG_LINES = 15

Report = Callable[[str, str, float], None]
"""Called with a service, what became of it, and the seconds that it took."""


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
    with exclusive(home, lambda: report("lock", "waiting for another up or down", 0.0)):
        try:
            return _start(home, settings, report)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise MlopsError(
                f"{home.path}: the disk is full", hint="make room there and try again"
            ) from None


def _start(home: Home, settings: LocalSettings, report: Report) -> Started:
    free = shutil.disk_usage(home.path).free
    if free < LEAST_FREE_BYTES:
        raise MlopsError(
            f"{home.path}: only {free // 10**6} MB are free on this disk",
            hint=f"make room ({LEAST_FREE_BYTES // 10**6} MB at least), or set MLOPS_HOME",
        )
    state, notes = _identify(home)
    credentials = load_or_create_credentials(home.credentials_file)
    supervisor = Supervisor(home, Path(state.control_socket or home.run / "control"))
    was_up = supervisor.is_up()
    before = state
    state = state._replace(
        flow_dir=_choose_flow_dir(home, settings, before.flow_dir if was_up else ""),
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
        state = _settle(home, state, credentials, notes, report)
        supervisor = Supervisor(home, Path(state.control_socket))
    home.save_state(state)
    situation = Situation(home, state, credentials)
    stamp = _setup_stamp(state, credentials)
    is_set_up = state.setup_stamp == stamp
    begun: list[str] = []
    try:
        if was_up:
            stop_services(supervisor, _told_otherwise(before, state), lambda _name: None)
        if not was_up:
            supervisor.start(supervision.service_environment(dict(os.environ), home, state))
        seconds = _Start(situation, supervisor, report, is_set_up=is_set_up, begun=begun).run()
    except BaseException:  # Ctrl-C too: nothing that this start began is left behind
        if was_up:
            stop_services(supervisor, begun, lambda _name: None)
        else:
            stop_everything(home, state, lambda _name: None)
        raise
    home.save_state(state._replace(setup_stamp=stamp))
    return Started(situation, seconds, notes)


def _identify(home: Home) -> tuple[State, list[str]]:
    """Return the platform's state, new for a new or copied home."""
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


def _choose_flow_dir(home: Home, settings: LocalSettings, watched: str) -> str:
    """Return the folder of flow folders: the one asked for, the one watched, or the usual one.

    The usual one is the checkout's `flows/`, of `./mlops` or of the code that runs; without a
    checkout the home has one of its own.

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
    """Choose ports and places for a platform that is down, and write its configuration."""
    ports = choose_ports(state.ports)
    for name, wanted, port in zip(Ports._fields, state.ports, ports, strict=True):
        if wanted != port:
            notes.append(f"port {wanted} is busy: {name} listens on {port}")
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
        ports=ports,
        postgres_folder=str(seat.folder),
        postgres_programs=str(seat.programs),
        postgres_account=seat.account,
    )
    state = state._replace(control_socket=str(supervision.choose_socket(home, state)))
    supervision.write_config(home, state)
    return state


def _setup_stamp(credentials: Credentials) -> str:
    """Return what the set-up is made from: with the same stamp there is nothing to converge."""
    text = f"{__version__} {credentials.model_dump_json()}"
    return hashlib.sha256(text.encode()).hexdigest()


class _Start:
    """Starts services as soon as what they need is healthy, and waits for all of them.

    Args:
        situation: The platform.
        supervisor: Starts them.
        report: Told when a service starts and when it is healthy.
        is_set_up: Whether the steps that are done once can be left out.
        begun: Filled with the names of what is started here.
    """

    def __init__(
        self,
        situation: Situation,
        supervisor: Supervisor,
        report: Report,
        *,
        is_set_up: bool,
        begun: list[str],
    ) -> None:
        self._situation = situation
        self._supervisor = supervisor
        self._report = report
        self._is_set_up = is_set_up
        self._begun = begun
        self._began: dict[str, float] = {}
        self._log_offsets: dict[str, int] = {}
        self._pids: dict[str, int] = {}

    def run(self) -> dict[str, float]:
        """Return the seconds that each service that was started here took, by name.

        Raises:
            MlopsError: A service fails, or takes too long.
        """
        seconds: dict[str, float] = {}
        healthy: set[str] = set()
        while len(healthy) < len(SERVICES):
            processes = self._supervisor.processes()
            for service in SERVICES:
                is_ready = healthy.issuperset(service.needs)
                if service.name in healthy or not (is_ready or service.waits):
                    continue
                process = processes[service.name]
                if service.once and self._is_set_up:
                    healthy.add(service.name)
                elif service.name not in self._began:
                    self._begin(service, process)
                elif self._is_healthy(service, process, is_ready=is_ready):
                    healthy.add(service.name)
                    took = time.monotonic() - self._began[service.name]
                    if service.name in self._begun:
                        seconds[service.name] = took
                    self._report(service.name, "done" if service.once else "healthy", took)
            time.sleep(POLL_SECONDS)
        return seconds

    def _begin(self, service: Service, process: dict[str, Any]) -> None:
        """Start a service unless it runs already."""
        self._began[service.name] = time.monotonic()
        log = self._situation.home.log(service.name)
        self._log_offsets[service.name] = log.stat().st_size if log.exists() else 0
        if process["statename"] not in ("RUNNING", "STARTING"):
            self._begun.append(service.name)
            self._supervisor.start_service(service.name)
            self._report(service.name, "starting", 0.0)

    def _is_healthy(self, service: Service, process: dict[str, Any], *, is_ready: bool) -> bool:
        """Return whether a started service is healthy; if not, it may still become it.

        Args:
            service: Which.
            process: What supervisor knows of it.
            is_ready: Whether what it needs is healthy.

        Raises:
            MlopsError: It has failed, or taken too long.
        """
        problem = ""
        if process["statename"] in ("BACKOFF", "FATAL", "UNKNOWN"):
            raise self._failure(service, "ends as soon as it is started")
        if process["statename"] == "EXITED":
            if service.once and process["exitstatus"] == 0:
                return True
            raise self._failure(service, f"ended with exit code {process['exitstatus']}")
        if process["pid"] != self._pids.setdefault(service.name, process["pid"]):
            raise self._failure(service, "ended and was started again")
        if not is_ready:
            problem = f": it waits for {', '.join(service.needs)}"
        elif service.once:
            problem = ": it is still at work"
        # Supervisor calls a service running when it has lasted a second; a server that answers
        # is healthy at once, and only the ones that cannot be asked are given that second.
        elif process["statename"] == "RUNNING" or service.name in checks.ANSWERING:
            try:
                checks.check(service.name, self._situation, process["pid"])
            except UnhealthyError as error:
                problem = f": {error.message}"
            else:
                return True
        if time.monotonic() - self._began[service.name] > HEALTHY_SECONDS:
            raise self._failure(service, f"is not healthy after {HEALTHY_SECONDS:.0f} s{problem}")
        return False

    def _failure(self, service: Service, what: str) -> MlopsError:
        """Return an error with what the service has said since it was started here."""
        log = self._situation.home.log(service.name)
        said = log.read_bytes() if log.exists() else b""
        offset = self._log_offsets[service.name]
        lines = said[offset if offset <= len(said) else 0 :].decode(errors="replace").splitlines()
        return MlopsError(
            "\n    ".join([f"{service.name} {what}; the end of its log:", *lines[-LOG_LINES:]]),
            hint=f"the whole log is {log}",
        )
