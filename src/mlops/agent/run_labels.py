"""The labels of a flow run in Prefect, told beside what the run does: nothing waits for them."""

import asyncio
from collections.abc import Callable
from typing import Self
from uuid import UUID

from prefect.client.orchestration import PrefectClient

from mlops.lineage import Labels

# A run that is ready sooner has told all of its labels in one request by then.
SOON_SECONDS = 0.5


class RunLabels:
    """Tells the labels of one run.

    Args:
        client: The Prefect server.
        flow_run_id: The run.
        always: Labels that go with all others.
        warn: Is told when the server cannot be.
    """

    def __init__(
        self,
        client: PrefectClient,
        flow_run_id: UUID,
        always: Labels,
        warn: Callable[[str], None],
    ) -> None:
        self._client = client
        self._flow_run_id = flow_run_id
        self._always = always
        self._warn = warn
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin to tell."""
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for what is being told; when the run is stopped, no more."""
        if kind is None:
            await self.told()
        elif self._task:
            self._task.cancel()

    def tell_soon(self, labels: Labels) -> None:
        """Tell labels in a moment, unless there are better ones by then."""
        self._tell(labels, SOON_SECONDS)

    def tell(self, labels: Labels) -> None:
        """Tell labels now."""
        self._tell(labels, 0)

    async def told(self) -> None:
        """Wait until the server has what was to be told."""
        if self._task:
            await asyncio.wait([self._task])

    def _tell(self, labels: Labels, wait_seconds: float) -> None:
        former = self._task
        if former:
            former.cancel()
        self._task = asyncio.create_task(self._send(labels, wait_seconds))

    async def _send(self, labels: Labels, wait_seconds: float) -> None:
        await asyncio.sleep(wait_seconds)
        try:
            await self._client.update_flow_run_labels(self._flow_run_id, self._always | labels)
        except Exception as error:  # noqa: BLE001  # no label is worth a run
            self._warn(f"the run's labels could not be told: {type(error).__name__}: {error}")
