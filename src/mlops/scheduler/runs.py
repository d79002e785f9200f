"""Runs started by hand: parameters from the command line, and following a run as it happens."""

import datetime as dt
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from mlops.errors import MlopsError, UsageError
from mlops.prefect_api import PrefectApi
from mlops.scheduler.deployments import Deployment, read_all, read_named
from mlops.scheduler.flow_folder import check
from mlops.scheduler.spec import find_flow_yaml

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

POLL_SECONDS = 0.5
LATE_AFTER_SECONDS = 20.0
LOG_PAGE = 200
PARAMETERS_REFUSED = {409, 422}  # of the statuses that Prefect answers to a new run
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


def find_deployment(api: PrefectApi, target: str) -> Deployment:
    """Return the deployment that a user means.

    Args:
        api: The Prefect server.
        target: A flow folder, `flow/deployment`, or one of the two names if only one
            deployment has it.

    Raises:
        MlopsError: There is none, or more than one.
    """
    folder = Path(target)
    # os.path's is False where pathlib's raises: for a name that is too long, for example.
    if os.path.isdir(target) and find_flow_yaml(folder):  # noqa: PTH112
        checked = check(folder)
        found = read_named(api, [checked.names]).get(checked.name)
        if found is None:
            raise MlopsError(
                f"{target}: {checked.name} is not registered",
                hint=f"mlops flows register {target}",
            )
        return found
    named = read_all(api)
    matches = [name for name in named if target == name or target in name.split("/", 1)]
    if len(matches) != 1:
        problem = "names more than one deployment" if matches else "no such deployment"
        choice = ", ".join(sorted(matches or named)) or "none is registered"
        raise MlopsError(f"{target}: {problem}; allowed: {choice}")
    return named[matches[0]]


def parse_parameters(assignments: Sequence[str], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Read `name=value` pairs; a value is JSON unless the schema says that it is text.

    Raises:
        UsageError: A pair has no `=`, or names no parameter of the flow.
    """
    properties: Mapping[str, Any] = schema.get("properties", {})
    parameters: dict[str, Any] = {}
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator:
            raise UsageError(f"--param {assignment}: allowed: name=value")
        if schema and name not in properties:
            known = sorted(properties, key=lambda each: properties[each].get("position", 0))
            raise UsageError(
                f"--param {name}: the flow has no such parameter; "
                f"allowed: {', '.join(known) or 'none'}"
            )
        if properties.get(name, {}).get("type") == "string":
            parameters[name] = text
            continue
        try:
            parameters[name] = json.loads(text)
        except json.JSONDecodeError:
            parameters[name] = text
    return parameters


def start_run(
    client: "SyncPrefectClient", deployment_id: UUID, parameters: dict[str, Any]
) -> "FlowRun":
    """Ask for a run of a deployment, now.

    Raises:
        UsageError: The parameters are not what the flow's schema asks for.
    """
    from prefect.exceptions import PrefectHTTPStatusError

    try:
        return client.create_flow_run_from_deployment(deployment_id, parameters=parameters)
    except PrefectHTTPStatusError as error:
        if error.response.status_code not in PARAMETERS_REFUSED:
            raise
        detail = str(error.response.json().get("detail", ""))
        raise UsageError(f"--param: {detail.removeprefix('Error creating flow run: ')}") from error


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
