"""The Prefect server's absence, as an agent meets it: told once, and waited for without end."""

import asyncio
import contextlib
import time
from collections.abc import Iterator

import httpx
from prefect.logging import get_logger

from mlops.prefect_api import is_outage

# After which the server may have given our runs to others: half of what it waits.
ABSENCE_SECONDS = 60.0

logger = get_logger("mlops.agent")


class Outage:
    """Lets requests fail that are made again soon.

    Prefect's worker gives up when they fail for some minutes, and its runs end with it.

    Attributes:
        returned: Set when the server is reached after an absence so long that it may have taken
            this agent for dead, whichever of the two was away; cleared by whoever acts on it.
    """

    def __init__(self) -> None:
        self.returned = asyncio.Event()
        self._is_on = False
        # By the wall's clock: the others do not count while a machine sleeps.
        self._last_contact = time.time()

    @contextlib.contextmanager
    def bridged(self) -> Iterator[None]:
        """Take what a request raises while the server is away or unwell."""
        try:
            yield
        except httpx.HTTPError as error:
            if not is_outage(error):
                raise
            if not self._is_on:
                self._is_on = True
                reason = str(error).partition("\n")[0] or type(error).__name__
                logger.warning("the Prefect server is away and is asked on: %s", reason)
        else:
            now = time.time()
            if now - self._last_contact > ABSENCE_SECONDS:
                self.returned.set()
            self._last_contact = now
            if self._is_on:
                self._is_on = False
                logger.info("the Prefect server is back")
