"""What is registered, and how it is doing."""

import datetime as dt
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from mlops.scheduler.runs import all_deployments

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient


class DeploymentRow(BaseModel):
    """One deployment, as a table shows it."""

    model_config = ConfigDict(frozen=True)

    name: str
    deployment_id: UUID
    work_pool: str | None
    work_queue: str | None
    schedule: str
    paused: bool
    next_run: dt.datetime | None
    last_state: str | None
    version: str | None


def deployments(client: "SyncPrefectClient") -> list[DeploymentRow]:
    """Return every deployment with its schedule, next run and last state, sorted by name."""
    return [
        DeploymentRow(
            name=f"{flow_name}/{deployment.name}",
            deployment_id=deployment.id,
            work_pool=deployment.work_pool_name,
            work_queue=deployment.work_queue_name,
            schedule="; ".join(_describe(s.schedule, active=s.active) for s in deployment.schedules)
            or "by hand",
            paused=deployment.paused,
            next_run=next_run(client, deployment.id),
            last_state=_last_state(client, deployment.id),
            version=deployment.version,
        )
        for flow_name, deployment in all_deployments(client)
    ]


def _describe(schedule: Any, *, active: bool) -> str:
    """Return a Prefect schedule as text; Prefect's three kinds have one field each."""
    what = getattr(schedule, "cron", None) or getattr(schedule, "rrule", None)
    if what is None:
        what = f"every {schedule.interval.total_seconds():.0f} s"
    return f"{what} {schedule.timezone or 'UTC'}" + ("" if active else " (off)")


def next_run(client: "SyncPrefectClient", deployment_id: UUID) -> dt.datetime | None:
    """Return when the server will start the next run of a deployment, or None."""
    runs = _runs(client, deployment_id, ("SCHEDULED",), "EXPECTED_START_TIME_ASC")
    return runs[0].expected_start_time if runs else None


def _last_state(client: "SyncPrefectClient", deployment_id: UUID) -> str | None:
    begun = ("RUNNING", "COMPLETED", "FAILED", "CRASHED", "CANCELLED", "CANCELLING", "PAUSED")
    runs = _runs(client, deployment_id, begun, "START_TIME_DESC")
    return runs[0].state_name if runs else None


def _runs(
    client: "SyncPrefectClient", deployment_id: UUID, states: tuple[str, ...], sort: str
) -> Any:
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterDeploymentId,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.sorting import FlowRunSort

    return client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[deployment_id]),
            state=FlowRunFilterState(
                type=FlowRunFilterStateType(any_=[StateType(state) for state in states])
            ),
        ),
        sort=FlowRunSort(sort),
        limit=1,
    )
