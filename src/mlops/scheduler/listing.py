"""What is registered, and how it is doing."""

import datetime as dt
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, TypeAdapter

from mlops.prefect_api import PrefectApi
from mlops.scheduler.deployments import DeploymentSchedule, read_all

_BEGUN = ("RUNNING", "COMPLETED", "FAILED", "CRASHED", "CANCELLED", "CANCELLING", "PAUSED")
_MOMENT: TypeAdapter[dt.datetime | None] = TypeAdapter(dt.datetime | None)


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


def deployments(api: PrefectApi) -> list[DeploymentRow]:
    """Return every deployment with its schedule, next run and last state, sorted by name."""
    return [
        DeploymentRow(
            name=name,
            deployment_id=deployment.id,
            work_pool=deployment.work_pool_name,
            work_queue=deployment.work_queue_name,
            schedule="; ".join(map(_describe, deployment.schedules)) or "by hand",
            paused=deployment.paused,
            next_run=next_run(api, deployment.id),
            last_state=_last_state(api, deployment.id),
            version=deployment.version,
        )
        for name, deployment in sorted(
            read_all(api).items(), key=lambda item: item[0].split("/", 1)
        )
    ]


def _describe(each: DeploymentSchedule) -> str:
    """Return a schedule as text; Prefect's three kinds have one field each."""
    schedule = each.schedule
    what = schedule.get("cron") or schedule.get("rrule") or f"every {schedule['interval']:.0f} s"
    return f"{what} {schedule.get('timezone') or 'UTC'}" + ("" if each.active else " (off)")


def next_run(api: PrefectApi, deployment_id: UUID) -> dt.datetime | None:
    """Return when the server will start the next run of a deployment, or None."""
    run = _first_run(api, deployment_id, ("SCHEDULED",), "EXPECTED_START_TIME_ASC")
    return _MOMENT.validate_python(run["expected_start_time"]) if run else None


def _last_state(api: PrefectApi, deployment_id: UUID) -> str | None:
    run = _first_run(api, deployment_id, _BEGUN, "START_TIME_DESC")
    return run["state_name"] if run else None


def _first_run(
    api: PrefectApi, deployment_id: UUID, states: tuple[str, ...], sort: str
) -> dict[str, Any] | None:
    query = {
        "flow_runs": {
            "deployment_id": {"any_": [str(deployment_id)]},
            "state": {"type": {"any_": states}},
        },
        "sort": sort,
        "limit": 1,
    }
    return next(iter(api.post("/flow_runs/filter", query)), None)
