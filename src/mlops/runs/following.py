"""A run as it happens: its states and the lines of its log."""

import datetime as dt
import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import httpx
from pydantic import BaseModel, ConfigDict

from mlops.prefect_api import FINAL, PrefectApi, RefusedRequestError

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


class _State(BaseModel):
    """A run's state. Part of what the server answers."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: UUID
    type: str
    name: str | None
    message: str | None
    timestamp: dt.datetime

    @property
    def has_begun(self) -> bool:
        return self.type not in {"SCHEDULED", "PENDING"}

    @property
    def is_final(self) -> bool:
        return self.type in FINAL


class _Run(BaseModel):
    """A run. Part of what the server answers."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    state: _State | None
    work_pool_name: str | None
    work_queue_name: str | None


def follow(api: PrefectApi, flow_run_id: UUID) -> Iterator[RunEvent]:
    """Yield a run's states and log lines as they come; ends after its final state."""
    log = _Log(api, flow_run_id)
    shown: UUID | None = None
    started = time.monotonic()
    said_late = False
    while True:
        run = _read(api, flow_run_id)
        state = run.state
        final = bool(state and state.is_final)
        if state and state.has_begun:
            log.find_subflows()
        yield from log.new_lines()
        if final:
            yield from _drain(log)
            # The agent may have told the reason meanwhile.
            state = _read(api, flow_run_id).state
        if state and state.id != shown:
            shown = state.id
            yield StateChange(
                timestamp=state.timestamp,
                name=state.name or state.type.title(),
                message=state.message or "",
                is_final=final,
            )
        if final:
            return
        waited = time.monotonic() - started
        is_late = state and state.type == "SCHEDULED" and waited > LATE_AFTER_SECONDS
        if is_late and not said_late:
            said_late = True
            yield Waiting(
                message=f"not picked up after {waited:.0f} s: is an agent serving work pool "
                f"{run.work_pool_name!r}, queue {run.work_queue_name!r}?"
            )
        time.sleep(POLL_SECONDS)


def _read(api: PrefectApi, flow_run_id: UUID) -> _Run:
    return _Run.model_validate(api.send("GET", f"/flow_runs/{flow_run_id}"))


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

    def __init__(self, api: PrefectApi, flow_run_id: UUID) -> None:
        self._api = api
        self._flow_run_id = str(flow_run_id)
        self._flow_run_ids = [self._flow_run_id]
        self._seen: set[str] = set()
        self._tasks: dict[str, str] = {}

    def find_subflows(self) -> None:
        query = {"flow_runs": {"parent_flow_run_id": {"any_": [self._flow_run_id]}}}
        subflow_runs = self._ask("/flow_runs/filter", query)
        self._flow_run_ids = [self._flow_run_id, *(child["id"] for child in subflow_runs)]

    def new_lines(self) -> Iterator[LogLine]:
        these_runs = {"flow_run_id": {"any_": self._flow_run_ids}}
        query = {"logs": these_runs, "sort": "TIMESTAMP_ASC", "limit": LOG_PAGE}
        # A line that arrives late sorts before lines that were seen, so one page back is read
        # again.
        offset = max(0, len(self._seen) - LOG_PAGE)
        while page := self._ask("/logs/filter", query | {"offset": offset}):
            for entry in page:
                if entry["id"] not in self._seen:
                    self._seen.add(entry["id"])
                    yield LogLine(
                        timestamp=entry["timestamp"],
                        level=entry["level"],
                        message=entry["message"],
                        task=self._task_name(entry["task_run_id"]),
                    )
            offset += len(page)
            if len(page) < LOG_PAGE:
                return

    def _ask(self, path: str, query: dict[str, Any]) -> list[dict[str, Any]]:
        answer: list[dict[str, Any]] = self._api.send("POST", path, query)
        return answer

    def _task_name(self, task_run_id: str | None) -> str | None:
        if task_run_id is None:
            return None
        if task_run_id not in self._tasks:
            try:
                task = self._api.send("GET", f"/task_runs/{task_run_id}")
            except RefusedRequestError as error:
                if error.status_code != httpx.codes.NOT_FOUND:
                    raise
                return task_run_id  # its record arrives after its first lines
            self._tasks[task_run_id] = task["name"]
        return self._tasks[task_run_id]
