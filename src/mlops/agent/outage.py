"""The Prefect server's absence, as an agent meets it: told once, and waited for without end."""

import contextlib
from collections.abc import Iterator

import httpx
from prefect.logging import get_logger

from mlops.prefect_api import is_outage

logger = get_logger("mlops.agent")


class Outage:
    """Lets requests fail that are made again soon.

    Prefect's worker gives up when they fail for some minutes, and its runs end with it.
    """

    def __init__(self) -> None:
        self._is_on = False

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
            if self._is_on:
                self._is_on = False
                logger.info("the Prefect server is back")
