"""Who builds an environment while others wait for it, and what these are told meanwhile."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from mlops.agent.environment_build import EnvironmentBuildCancelledError

_POLL_SECONDS = 0.2

Log = Callable[[str], None]


@contextlib.contextmanager
def turn_to_build(
    key: str, lock: filelock.BaseFileLock, progress: Path, log: Log, cancel: threading.Event | None
) -> Iterator[Log]:
    """Hold the right to build an environment; wait for whoever has it, and pass on what it says.

    Args:
        key: Names the environment.
        lock: Held by the one who builds.
        progress: File of what that one says.
        log: Receives lines, for the run's log.
        cancel: Stops the wait when set.

    Yields:
        Where to tell what happens: it goes to `log` and to those who wait.

    Raises:
        EnvironmentBuildCancelledError: `cancel` was set.
    """
    _wait(key, lock, progress, log, cancel)
    try:
        with progress.open("w", encoding="utf-8", buffering=1) as file:

            def tell(line: str) -> None:
                log(line)
                file.write(f"{line}\n")

            yield tell
    finally:
        lock.release()


def _wait(
    key: str, lock: filelock.BaseFileLock, progress: Path, log: Log, cancel: threading.Event | None
) -> None:
    read_bytes = 0
    is_told = False
    while True:
        try:
            lock.acquire(timeout=_POLL_SECONDS if is_told else 0)
        except filelock.Timeout:
            if not is_told:
                log(f"environment {key}: being built already, ahead of time or by another run")
                is_told = True
        if is_told:
            with contextlib.suppress(FileNotFoundError):
                told = progress.read_bytes()
                if len(told) < read_bytes:  # the next builder has begun
                    read_bytes = 0
                whole = told[: told.rfind(b"\n") + 1]
                for line in whole[read_bytes:].decode(errors="replace").splitlines():
                    log(line)
                read_bytes = max(read_bytes, len(whole))
        if lock.is_locked:
            return
        if cancel and cancel.is_set():
            raise EnvironmentBuildCancelledError("the wait for the environment was stopped")
