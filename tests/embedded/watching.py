"""A `mlops flows watch` process for tests, and a server that keeps it waiting."""

import contextlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from embedded.flow_folders import wait_for

LIMIT_SECONDS = 40


class Watcher:
    """A scheduler that watches one folder, with its own name.

    Args:
        flow_dir: What it watches.
        log: Where its output goes, after that of an earlier one.
        environment: Of the process; the folder is added.
        prefix: What to start it through.
    """

    def __init__(
        self,
        flow_dir: Path,
        log: Path,
        environment: dict[str, str],
        prefix: tuple[str, ...] = (),
    ) -> None:
        self.flow_dir = flow_dir
        self._log = log
        self._environment = environment | {"FLOW_DIR": str(flow_dir)}
        self._prefix = prefix
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def start(self) -> None:
        """Start the process."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._prefix, sys.executable, "-m", "mlops", "flows", "watch"],
                env=self._environment,
                stdout=log,
                stderr=log,
            )

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(LIMIT_SECONDS)

    def lines(self) -> list[str]:
        """Return what it has logged so far."""
        return self._log.read_text().splitlines() if self._log.exists() else []

    def count(self, *parts: str) -> int:
        """Return how many lines hold all of some texts."""
        return sum(all(part in line for part in parts) for line in self.lines())

    def wait_for_line(self, *parts: str) -> None:
        """Wait until a line that holds all of some texts is logged."""
        wait_for(lambda: self.count(*parts), LIMIT_SECONDS)


@contextlib.contextmanager
def silent_server() -> Iterator[tuple[str, threading.Event]]:
    """Give the address of a server that takes requests and never answers, and whether it has."""
    taken = threading.Event()
    kept = []

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                kept.append(listener.accept())
                taken.set()

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", taken
        listener.shutdown(socket.SHUT_RDWR)
    for connection, _ in kept:
        connection.close()
