"""The server's event stream, which tells the agent at once what it would learn by asking later.

The stream only makes things quicker: whatever it does not tell is found by polling.
"""

import asyncio
import datetime as dt
import random
import time
from collections.abc import Callable
from uuid import UUID

from prefect.events import Event
from prefect.events.clients import get_events_subscriber
from prefect.events.filters import EventAnyResourceFilter, EventFilter, EventNameFilter
from prefect.logging import get_logger

from mlops.agent.status import StreamStatus

# States in which a run waits for an agent, by the names that Prefect's server gives them.
WAITING = ("Scheduled", "AwaitingRetry", "Late", "Resuming", "AwaitingConcurrencySlot")
TAKEN = ("Pending",)
DEPLOYMENT_CHANGES = ("prefect.deployment.created", "prefect.deployment.updated")
_RUN = "prefect.flow-run."
_DEPLOYMENT = "prefect.deployment."
BACKOFF_SECONDS = (0.2, 30.0)  # the first wait, and the longest

logger = get_logger("mlops.agent")


class EventStream:
    """The events of one work pool.

    Args:
        waiting: Is called for a run that waits for an agent.
        taken: Is called for a run that an agent has taken.
        deployment_changed: Is called for a deployment that is new or has changed.
        connected: Is called when the stream stands, and may have missed something before.
    """

    def __init__(
        self,
        *,
        waiting: Callable[[UUID], None],
        taken: Callable[[UUID], None],
        deployment_changed: Callable[[UUID], None],
        connected: Callable[[], None],
    ) -> None:
        self._waiting = waiting
        self._taken = taken
        self._deployment_changed = deployment_changed
        self._connected = connected
        self.is_connected = False
        self.since = time.time()  # it stands or is lost

    def status(self) -> StreamStatus:
        """Return how it is, for the agent's status."""
        return StreamStatus(
            connected=self.is_connected,
            since=dt.datetime.fromtimestamp(self.since, dt.UTC),
            seconds=max(0.0, time.time() - self.since),
        )

    async def follow(self, work_pool_id: UUID) -> None:
        """Listen until cancelled; a stream that is lost is opened again.

        Args:
            work_pool_id: Of the pool.
        """
        wait = BACKOFF_SECONDS[0]
        is_lost = False
        while True:
            try:
                # Prefect's subscriber would try again by itself ten times without a word.
                async with get_events_subscriber(_filter(work_pool_id), 0) as events:
                    self._note(is_connected=True)
                    if is_lost:
                        logger.info("the server's event stream is back")
                    is_lost, wait = False, BACKOFF_SECONDS[0]
                    self._connected()
                    async for event in events:
                        self._dispatch(event)
                reason = "the server closed it"
            except Exception as error:  # noqa: BLE001  # Prefect's subscriber raises bare ones, too
                reason = str(error) or type(error).__name__
            self._note(is_connected=False)
            if not is_lost:
                is_lost = True
                logger.warning("the event stream is lost, runs are found by polling: %s", reason)
            await asyncio.sleep(wait * random.uniform(0.5, 1.5))  # noqa: S311  # no secret
            wait = min(wait * 2, BACKOFF_SECONDS[1])

    def _note(self, *, is_connected: bool) -> None:
        if is_connected != self.is_connected:
            self.is_connected, self.since = is_connected, time.time()

    def _dispatch(self, event: Event) -> None:
        name = event.event
        if name in DEPLOYMENT_CHANGES:
            self._deployment_changed(UUID(event.resource.id.removeprefix(_DEPLOYMENT)))
            return
        flow_run_id = UUID(event.resource.id.removeprefix(_RUN))
        if name.removeprefix(_RUN) in TAKEN:
            self._taken(flow_run_id)
        else:
            self._waiting(flow_run_id)


def _filter(work_pool_id: UUID) -> EventFilter:
    names = [f"{_RUN}{state}" for state in (*WAITING, *TAKEN)]
    return EventFilter(
        event=EventNameFilter(name=[*names, *DEPLOYMENT_CHANGES]),
        any_resource=EventAnyResourceFilter(id=[f"prefect.work-pool.{work_pool_id}"]),
    )
