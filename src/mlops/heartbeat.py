"""A file that a long-running process touches for as long as it is well, for Docker's checks."""

import logging
import time

from mlops.errors import MlopsError
from mlops.settings import HeartbeatSettings

INTERVAL_SECONDS = 5.0
LIMIT_SECONDS = 60.0

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


def check_heartbeat(settings: HeartbeatSettings) -> None:
    """See whether the process was well in the last minute.

    Raises:
        MlopsError: It was not, or keeps no such file.
    """
    file = settings.mlops_heartbeat_file
    if file is None:
        raise MlopsError("MLOPS_HEARTBEAT_FILE: not set", hint="name a file for the process, too")
    try:
        # From the future it says as little: the clock was set back since.
        age = abs(time.time() - file.stat().st_mtime)
    except OSError:
        raise MlopsError("has not reached its servers yet", hint="see its log") from None
    if age > LIMIT_SECONDS:
        raise MlopsError(f"has not reached its servers for {age:.0f} s", hint="see its log")
