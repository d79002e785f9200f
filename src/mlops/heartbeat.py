"""Whether a long-running process reaches its server; a file tells Docker's checks the same."""

import datetime as dt
import logging
import time
from typing import NamedTuple

from mlops.container_health import HEARTBEAT_LIMIT_SECONDS
from mlops.settings import HeartbeatSettings

INTERVAL_SECONDS = 5.0

logger = logging.getLogger("mlops.heartbeat")


class Beat(NamedTuple):
    """When it beat last; `seconds_ago` is right however the machine's clock was set since."""

    at: dt.datetime
    seconds_ago: float


class Heartbeat:
    """The process's side of it.

    Args:
        settings: Which file; without one none is touched.
    """

    def __init__(self, settings: HeartbeatSettings) -> None:
        self._file = settings.mlops_heartbeat_file
        self._next = 0.0
        self._last: tuple[dt.datetime, float] | None = None

    @property
    def last(self) -> Beat | None:
        """The last beat; None: there was none yet."""
        if self._last is None:
            return None
        at, noted = self._last
        return Beat(at, time.monotonic() - noted)

    @property
    def problem(self) -> str | None:
        """Why the process is not well; None: it is."""
        last = self.last
        if last is None:
            return "has not reached its servers yet"
        if last.seconds_ago > HEARTBEAT_LIMIT_SECONDS:
            return f"has not reached its servers for {last.seconds_ago:.0f} s"
        return None

    def beat(self) -> None:
        """Note that the process is well; may be called often.

        A file that cannot be written is logged, and ends nothing: Docker's check will fail.
        """
        self._last = dt.datetime.now(dt.UTC), time.monotonic()
        if self._file and time.monotonic() >= self._next:
            self._next = time.monotonic() + INTERVAL_SECONDS
            try:
                self._file.touch()
            except OSError as error:
                logger.warning("no heartbeat: %s", error)
