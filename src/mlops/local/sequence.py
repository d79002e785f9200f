"""The order of a start: each service as soon as what it needs is healthy."""

import time
from collections.abc import Callable
from typing import Any

from mlops.errors import MlopsError
from mlops.health import UnhealthyError
from mlops.local import checks
from mlops.local.services import SERVICES, Service, Situation
from mlops.local.supervision import Supervisor

HEALTHY_SECONDS = 180.0  # for one service; MLflow's first start migrates its tables
POLL_SECONDS = 0.1
LOG_LINES = 15

Report = Callable[[str, str, float], None]
"""Called with a service, what became of it, and the seconds that it took."""


class StartSequence:
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
        if process["statename"] == "EXITED" and service.once and process["exitstatus"] == 0:
            return True
        self._raise_if_ended(service, process)
        if not is_ready:
            problem = f"it waits for {', '.join(service.needs)}"
        elif service.once:
            problem = "it is still at work"
        # Supervisor calls a service running when it has lasted a second; a server that answers
        # is healthy at once, and only the ones that cannot be asked are given that second.
        elif process["statename"] == "RUNNING" or service.name in checks.ANSWERING:
            try:
                checks.check(service.name, self._situation, process["pid"])
            except UnhealthyError as error:
                problem = error.message
            else:
                return True
        else:
            problem = "it has only just been started"
        if time.monotonic() - self._began[service.name] > HEALTHY_SECONDS:
            raise self._failure(service, f"is not healthy after {HEALTHY_SECONDS:.0f} s: {problem}")
        return False

    def _raise_if_ended(self, service: Service, process: dict[str, Any]) -> None:
        if process["statename"] in ("BACKOFF", "FATAL", "UNKNOWN"):
            raise self._failure(service, "ends as soon as it is started")
        if process["statename"] == "EXITED":
            raise self._failure(service, f"ended with exit code {process['exitstatus']}")
        if process["pid"] != self._pids.setdefault(service.name, process["pid"]):
            raise self._failure(service, "ended and was started again")

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
