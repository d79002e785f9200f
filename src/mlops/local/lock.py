"""One `up` or `down` of a platform at a time."""

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mlops.errors import MlopsError
from mlops.local.home import Home

WAIT_SECONDS = 300.0


@contextmanager
def exclusive(home: Home, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the platform's lock; the system drops it with the process, however that ends.

    Args:
        home: The platform's folder.
        waiting: Called once if somebody else holds the lock.

    Raises:
        MlopsError: The other one does not come to an end.
    """
    with home.lock_file.open("w") as file:
        deadline = None
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if deadline is None:
                    waiting()
                    deadline = time.monotonic() + WAIT_SECONDS
                if time.monotonic() > deadline:
                    raise MlopsError(
                        f"{home.path}: another `mlops local up` or `down` is at work",
                        hint="wait for it, or stop it with Ctrl-C, and try again",
                    ) from None
                time.sleep(0.1)
        yield
