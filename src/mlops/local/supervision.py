"""The supervisor: its configuration, its start, and what is asked of it.

Supervisor restarts what dies. Start order and health are ours (`sequence.py`), and so is ending
what a killed supervisor leaves behind (`processes.py`).
"""

import http.client
import os
import shlex
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from pathlib import Path
from typing import Any

from mlops import __version__
from mlops.errors import MlopsError
from mlops.local.home import Home, State
from mlops.local.services import SERVICES, Service

# What the caller's shell may hold and our servers must not see: it would redirect them.
FOREIGN_PREFIXES = (
    "AWS_",
    "LISTEN_",
    "MINIO_",
    "MLFLOW_",
    "PG",
    "POSTGRES_",
    "PREFECT_",
    "RCLONE_",
)
LONGEST_SOCKET_PATH = 100  # bytes; the system's limit is 107, and supervisor adds a suffix
START_SECONDS = 15.0
ALREADY_STARTED, NOT_RUNNING = 60, 70  # of supervisor.xmlrpc.Faults


def choose_socket(home: Home, state: State) -> Path:
    """Return where the supervisor's control socket lies.

    Args:
        home: The platform's folder.
        state: May know a place from the last start.
    """
    path = home.run / "control"
    if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
        return path
    known = Path(state.control_socket) if state.control_socket else None
    if known and known.parent != home.run and _is_private(known.parent):
        return known
    # A folder that only its owner may enter: tempfile makes it 0700.
    return Path(tempfile.mkdtemp(prefix="mlops-")) / "control"


def is_configured(home: Home, state: State) -> bool:
    """Return whether the configuration on disk is what `write_config` would write.

    It is not when a supervisor was started by another release, or before the home moved.

    Args:
        home: The platform's folder.
        state: Where the control socket lies.
    """
    return home.supervisor_config.exists() and home.supervisor_config.read_text() == _config(
        home, state
    )


def write_config(home: Home, state: State) -> None:
    """Write the supervisor's configuration.

    Args:
        home: The platform's folder.
        state: Where the control socket lies.
    """
    home.supervisor_config.write_text(_config(home, state))


def _config(home: Home, state: State) -> str:
    # Named in the file, so that another release's or other ports' configuration differs.
    version = __version__
    lines = [
        f"; Written at every start by mlops {version}; ports {tuple(state.ports)}.",
        "[supervisord]",
        "nodaemon = true",
        f"logfile = {_value(home.log('supervisor'))}",
        "logfile_maxbytes = 5MB",
        "logfile_backups = 1",
        f"pidfile = {_value(home.supervisor_pid_file)}",
        "umask = 077",
        *(["user = root"] if os.getuid() == 0 else []),
        "",
        "[unix_http_server]",
        f"file = {_value(state.control_socket)}",
        "chmod = 0600",
        "",
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface",
    ]
    for service in SERVICES:
        lines += ["", *_program(home, service)]
    return "\n".join(lines) + "\n"


def _program(home: Home, service: Service) -> list[str]:
    # -P: nothing in the working directory is ever taken for a module.
    command = shlex.join([sys.executable, "-P", "-m", "mlops", "local", "service", service.name])
    return [
        f"[program:{service.name}]",
        f"command = {_value(command)}",
        f"directory = {_value(home.run)}",
        "autostart = false",
        f"autorestart = {'false' if service.once else 'true'}",
        f"startsecs = {0 if service.once else 1}",
        f"startretries = {0 if service.once else 3}",
        f"stopsignal = {service.stop_signal}",
        f"stopwaitsecs = {service.stop_seconds}",
        "redirect_stderr = true",
        # Supervisor expands this one twice.
        f"stdout_logfile = {_value(_value(home.log(service.name)))}",
        "stdout_logfile_maxbytes = 10MB",
        "stdout_logfile_backups = 2",
    ]


def _value(value: object) -> str:
    return str(value).replace("%", "%%")


def _is_private(folder: Path) -> bool:
    try:
        status = folder.lstat()
    except OSError:
        return False
    return status.st_uid == os.getuid() and status.st_mode & 0o077 == 0 and folder.is_dir()


class Supervisor:
    """The supervisor of one platform, as seen through its control socket.

    Args:
        home: The platform's folder.
        socket: The control socket.
    """

    def __init__(self, home: Home, socket: Path) -> None:
        self._home = home
        self._socket = socket

    def _call(self, method: str, *arguments: object) -> Any:
        from supervisor.xmlrpc import SupervisorTransport

        proxy = xmlrpc.client.ServerProxy(
            "http://localhost", transport=SupervisorTransport(None, None, f"unix://{self._socket}")
        )
        return getattr(proxy.supervisor, method)(*arguments)

    def _call_unless(self, harmless_fault: int, method: str, name: str) -> None:
        """Ask for something, without waiting for it, that may be so already."""
        try:
            self._call(method, name, False)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode != harmless_fault:
                raise

    def is_up(self) -> bool:
        """Return whether a supervisor answers."""
        if not self._socket.exists():
            return False
        try:
            return bool(self._call("getState")["statename"] == "RUNNING")
        except (OSError, xmlrpc.client.Error, http.client.HTTPException):
            return False

    def start(self, environment: dict[str, str]) -> None:
        """Start supervisord in the background and wait until it answers.

        Args:
            environment: What it and all services inherit; no secrets of ours.

        Raises:
            MlopsError: It ends, or does not answer in time.
        """
        self._socket.unlink(missing_ok=True)
        self._home.supervisor_pid_file.unlink(missing_ok=True)
        output_path = self._home.log("supervisor-start")
        with output_path.open("w") as output:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "supervisor.supervisord"),
                    *("-c", str(self._home.supervisor_config)),
                ],
                env=environment,
                cwd=self._home.run,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # So that Ctrl-C, meant for the command, does not reach the services.
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self.is_up():
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                process.wait()
                raise MlopsError(
                    "the supervisor does not start:\n" + output_path.read_text()[-1000:],
                    hint=f"its log is {self._home.log('supervisor')}",
                )
            time.sleep(0.02)

    def processes(self) -> dict[str, dict[str, Any]]:
        """Return what supervisor knows of each service: statename, pid, start, exitstatus …."""
        return {info["name"]: info for info in self._call("getAllProcessInfo")}

    def start_service(self, name: str) -> None:
        """Start a service; one that is about to be started again is left alone."""
        self._call_unless(ALREADY_STARTED, "startProcess", name)

    def stop_service(self, name: str) -> None:
        """Ask a service to end; one that is not running is left alone."""
        self._call_unless(NOT_RUNNING, "stopProcess", name)

    def shut_down(self) -> None:
        """Ask the supervisor to end what still runs and itself."""
        self._call("shutdown")


def service_environment(caller: dict[str, str], home: Home, state: State) -> dict[str, str]:
    """Return what all services inherit: the caller's environment without foreign platforms.

    Args:
        caller: The environment of the command that starts them.
        home: The platform's folder.
        state: The platform's mark.
    """
    kept = {name: value for name, value in caller.items() if not name.startswith(FOREIGN_PREFIXES)}
    kept.pop("MLOPS_SERVICE", None)  # when called from inside a service
    return kept | {
        "MLOPS_HOME": str(home.path),
        "MLOPS_INSTANCE": state.instance,
        # Logs show what a service says when it says it.
        "PYTHONUNBUFFERED": "1",
    }
