"""The background work of Prefect's server, looked for once a second.

Prefect has docket do what is due later, or again and again. Its worker looks four times a second,
and ten times a second, in a thread, for tasks that somebody cancels, which Prefect never does:
a good part of what an idle server takes of a core. Work that is due at once waits for no look.

The private names used here, to be looked at when the pins move, are Prefect 3.8's
`background_workers.Worker`, and docket 0.27's `_processing_session` and `_cancellation_listener`.
"""

from datetime import timedelta

from docket import Docket, Worker
from prefect.server.api import background_workers

INTERVAL = timedelta(seconds=1)


class SeldomWorker(Worker):
    """Docket's worker, in less of a hurry."""

    def __init__(self, docket: Docket) -> None:
        super().__init__(docket, minimum_check_interval=INTERVAL, scheduling_resolution=INTERVAL)

    async def _cancellation_listener(self) -> None:
        if session := self._processing_session:
            session.cancellation_ready.set()
            await session.stopping.wait()


def look_seldom() -> None:
    """Have the server that is started next look for its background work once a second."""
    vars(background_workers)["Worker"] = SeldomWorker
