"""A run as it happens: its states and the lines of its log."""

import datetime as dt
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING
from uuid import UUID

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

POLL_SECONDS = 0.5
LATE_AFTER_SECONDS = 20.0
LOG_PAGE = 200
# A run sends its last lines when its process ends, shortly after the final state.
DRAIN_SECONDS = 2.0


class LogLine(BaseModel):
    """One line of a run's Prefect log; `task` is the task run's name, if it comes from one."""

    model_config = ConfigDict(frozen=True)

    timestamp: dt.datetime
    level: int
    message: str
    task: str | None = None

    def __str__(self) -> str:
        return f"{self.task}: {self.message}" if self.task else self.message


class StateChange(BaseModel):
    """The run is in a new state."""

    model_config = ConfigDict(frozen=True)

    timestamp: dt.datetime
    name: str
    message: str
    is_final: bool


class Waiting(BaseModel):
    """Nobody has picked the run up for a while."""

    model_config = ConfigDict(frozen=True)

    message: str


RunEvent = LogLine | StateChange | Waiting


def follow(client: "SyncPrefectClient", flow_run_id: UUID) -> Iterator[RunEvent]:
    """Yield a run's states and log lines as they come; ends after its final state."""
    log = _Log(client, flow_run_id)
    shown: UUID | None = None
    started = time.monotonic()
    said_late = False
    while True:
        run = client.read_flow_run(flow_run_id)
        state = run.state
        final = bool(state and state.is_final())
        yield from log.new_lines()
        if final:
            yield from _drain(log)
            # The agent may have told the reason meanwhile.
            state = client.read_flow_run(flow_run_id).state
        if state and state.id != shown:
            shown = state.id
            yield StateChange(
                timestamp=state.timestamp,
                name=state.name or state.type.value.title(),
                message=state.message or "",
                is_final=final,
            )
        if final:
            return
        waited = time.monotonic() - started
        if state and state.is_scheduled() and waited > LATE_AFTER_SECONDS and not said_late:
            said_late = True
            yield Waiting(
                message=f"not picked up after {waited:.0f} s: is an agent serving work pool "
                f"{run.work_pool_name!r}, queue {run.work_queue_name!r}?"
            )
        time.sleep(POLL_SECONDS)


def _drain(log: "_Log") -> Iterator[RunEvent]:
    """Yield what still comes in, until nothing has for a while."""
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < DRAIN_SECONDS:
        for line in log.new_lines():
            quiet_since = time.monotonic()
            yield line
        time.sleep(POLL_SECONDS / 2)


class _Log:
    """A run's log with its subflows', read in pages.

    Lines may arrive out of order; none is given twice.
    """

    def __init__(self, client: "SyncPrefectClient", flow_run_id: UUID) -> None:
        self._client = client
        self._flow_run_id = flow_run_id
        self._seen: set[UUID] = set()
        self._tasks: dict[UUID, str] = {}

    def new_lines(self) -> Iterator[LogLine]:
        from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
        from prefect.client.schemas.sorting import LogSort

        ids = [self._flow_run_id, *self._subflow_runs()]
        only_this_run = LogFilter(flow_run_id=LogFilterFlowRunId(any_=ids))
        # A line that arrives late sorts before lines that were seen, so one page back is read
        # again.
        offset = max(0, len(self._seen) - LOG_PAGE)
        while page := self._client.read_logs(
            only_this_run, limit=LOG_PAGE, offset=offset, sort=LogSort.TIMESTAMP_ASC
        ):
            for entry in page:
                if entry.id not in self._seen:
                    self._seen.add(entry.id)
                    yield LogLine(
                        timestamp=entry.timestamp,
                        level=entry.level,
                        message=entry.message,
                        task=self._task_name(entry.task_run_id),
                    )
            offset += len(page)
            if len(page) < LOG_PAGE:
                return

    def _subflow_runs(self) -> list[UUID]:
        from prefect.client.schemas.filters import (
            FlowRunFilter,
            FlowRunFilterParentFlowRunId,
        )

        parent = FlowRunFilterParentFlowRunId(any_=[self._flow_run_id])
        children = self._client.read_flow_runs(
            flow_run_filter=FlowRunFilter(parent_flow_run_id=parent)
        )
        return [child.id for child in children]

    def _task_name(self, task_run_id: UUID | None) -> str | None:
        from prefect.exceptions import ObjectNotFound

        if task_run_id is None:
            return None
        if task_run_id not in self._tasks:
            try:
                self._tasks[task_run_id] = self._client.read_task_run(task_run_id).name
            except ObjectNotFound:  # its record arrives after its first lines
                return str(task_run_id)
        return self._tasks[task_run_id]
