"""A file that a long-running process touches for as long as it is well, for Docker's checks."""

import logging
import time

from mlops.settings import HeartbeatSettings

INTERVAL_SECONDS = 5.0

logger = logging.getLogger("mlops.heartbeat")


class Heartbeat:
    """The process's side of it.

    Args:
        settings: Which file; without one nothing is noted.
    """

    def __init__(self, settings: HeartbeatSettings) -> None:
        self._file = settings.mlops_heartbeat_file
        self._next = 0.0

    def beat(self) -> None:
        """Note that the process is well; may be called often.

        A file that cannot be written is logged, and ends nothing: Docker's check will fail.
        """
        if self._file and time.monotonic() >= self._next:
            self._next = time.monotonic() + INTERVAL_SECONDS
            try:
                self._file.touch()
            except OSError as error:
                logger.warning("no heartbeat: %s", error)
