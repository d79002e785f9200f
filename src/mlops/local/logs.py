"""The services' log files."""

import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from mlops.errors import UsageError
from mlops.local.home import Home
from mlops.local.services import SERVICES

POLL_SECONDS = 0.2


def log_files(home: Home, service: str | None) -> dict[str, Path]:
    """Return the log files by service.

    Args:
        home: The platform's folder.
        service: One of them, or None for all.

    Raises:
        UsageError: There is no such service.
    """
    names = [*(each.name for each in SERVICES), "supervisor"]
    if service is None:
        return {name: home.log(name) for name in names}
    if service not in names:
        raise UsageError(f"{service}: no such service; there are: {', '.join(names)}")
    return {service: home.log(service)}


def last_lines(path: Path, count: int) -> list[str]:
    """Return the last lines of a file; none if it is not there.

    Args:
        path: A log file.
        count: How many lines.
    """
    try:
        with path.open(errors="replace") as file:
            return [line.rstrip("\n") for line in deque(file, count)]
    except FileNotFoundError:
        return []


def follow_logs(files: dict[str, Path]) -> Iterator[tuple[str, str]]:
    """Return lines as they are written, for ever; a rotated file is followed into the new one.

    Args:
        files: Log files by service.

    Returns:
        The service and the line, of each.
    """
    # Noted now and not at the first question: nothing that is written from here on is missed.
    return _follow(files, {name: _size(path) for name, path in files.items()})


def _follow(files: dict[str, Path], positions: dict[str, int]) -> Iterator[tuple[str, str]]:
    while True:
        for name, path in files.items():
            size = _size(path)
            if size < positions[name]:
                positions[name] = 0
            if size > positions[name]:
                with path.open("rb") as file:
                    file.seek(positions[name])
                    whole, _, _ = file.read().rpartition(b"\n")
                positions[name] += len(whole) + 1 if whole else 0
                for line in whole.decode(errors="replace").splitlines():
                    yield name, line
        time.sleep(POLL_SECONDS)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
