"""Deployments as Prefect holds them, next to what a flow folder asks for.

All goes straight to Prefect's REST API, as its own client would: the import of that takes longer
than all the rest of a registration.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import httpx
from pydantic import BaseModel, ConfigDict

from mlops import lineage
from mlops.bundles import pull_steps, pulled_bundle
from mlops.errors import MlopsError
from mlops.prefect_api import PAGE, PrefectApi, RefusedRequestError
from mlops.scheduler.flow_folder import ReadFlow
from mlops.scheduler.job_variables import merged_variables, own_variables, wanted_variables
from mlops.scheduler.prefect_schedules import as_json, comparable
from mlops.scheduler.schedule import Schedule
from mlops.scheduler.source import Source

SCHEDULE_SLUG = "flow-yaml"  # marks our schedule among those that people add in the UI


class DeploymentChangedError(MlopsError):
    """The deployment is not what it was when it was looked up: look again."""


class _Answer(BaseModel):
    """Part of what Prefect's API answers; the rest is nothing to us."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ConcurrencyLimit(_Answer):
    """How many runs of a deployment may be active at a time."""

    limit: int


class DeploymentSchedule(_Answer):
    """One schedule of a deployment; `schedule` is Prefect's JSON of one of its three kinds."""

    id: UUID
    slug: str | None
    active: bool
    schedule: dict[str, Any]


class Deployment(_Answer):
    """A deployment as Prefect holds it."""

    id: UUID
    flow_id: UUID
    name: str
    version: str | None
    description: str | None
    parameters: dict[str, Any]
    tags: list[str]
    work_pool_name: str | None
    work_queue_name: str | None
    path: str | None
    entrypoint: str | None
    paused: bool
    pull_steps: list[dict[str, Any]] | None
    parameter_openapi_schema: dict[str, Any] | None
    enforce_parameter_schema: bool
    global_concurrency_limit: ConcurrencyLimit | None
    schedules: list[DeploymentSchedule]
    job_variables: dict[str, Any]

    @property
    def code(self) -> tuple[str, str] | None:
        """Bucket and prefix of its code; None if it was not registered by us."""
        return pulled_bundle(self.pull_steps)

    @property
    def source(self) -> Source | None:
        """Where the folder lies that it was registered from."""
        return Source.parse(self.path or "")

    def value(self, field: str) -> object:
        """Return a field as `wanted_fields` has it."""
        match field:
            case "concurrency_limit":
                limit = self.global_concurrency_limit
                return limit.limit if limit else None
            case "job_variables":
                return own_variables(self.job_variables)
            case "tags":
                return sorted(self.tags)
            case _:
                value: object = getattr(self, field)
                return value


def read_all(api: PrefectApi) -> dict[str, Deployment]:
    """Return every deployment by its full name, `flow/deployment`."""
    answers = list(api.pages("/deployments/filter", {}, sort="CREATED_DESC"))
    return _by_name(answers, _flow_names(api, {}))


def read_named(api: PrefectApi, names: Iterable[tuple[str, str]]) -> dict[str, Deployment]:
    """Return the deployments that exist of those named, by their full names.

    Args:
        api: The Prefect server.
        names: Pairs of the flow's and the deployment's name.
    """
    wanted = sorted(set(names))
    found: dict[str, Deployment] = {}
    for start in range(0, len(wanted), PAGE):
        part = wanted[start : start + PAGE]
        query = {
            "flows": {"name": {"any_": sorted({flow for flow, _ in part})}},
            "deployments": {"name": {"any_": sorted({name for _, name in part})}},
        }
        deployments = list(api.pages("/deployments/filter", query, sort="CREATED_DESC"))
        if len(part) == 1:  # no need to ask whose they are
            found |= {f"{part[0][0]}/{answer['name']}": _parse(answer) for answer in deployments}
        elif deployments:
            found |= _by_name(deployments, _flow_names(api, {"flows": query["flows"]}))
    return found


def wanted_fields(
    flow: ReadFlow, bucket: str, source: Source, commit: str | None
) -> dict[str, Any]:
    """Return what a flow folder asks of its deployment, by Prefect's names of the fields.

    The parameters' schema is not among them: it follows from the code, which the pull step names.

    Args:
        flow: The flow folder.
        bucket: Where its code goes.
        source: Where it lies.
        commit: The git commit that it is, if known.
    """
    content = flow.checked.spec.content
    return {
        "version": lineage.version_text(flow.bundle.manifest.content_hash, commit),
        # Not None: Prefect 3.8.8's client, where a deployment was edited with it, makes the word
        # "None" of it.
        "description": content.description or flow.checked.function.description or "",
        "parameters": content.parameters,
        "tags": sorted(content.tags),
        "work_pool_name": content.deployment.pool_name,
        "work_queue_name": content.deployment.queue_name,
        "path": str(source),
        "entrypoint": flow.checked.function.entrypoint,
        "enforce_parameter_schema": True,
        "concurrency_limit": content.concurrency_limit,
        "pull_steps": pull_steps(bucket, flow.bundle.prefix),
        "job_variables": wanted_variables(content),
    }


def differences(deployment: Deployment, wanted: dict[str, Any]) -> dict[str, Any]:
    """Return the wanted fields whose values Prefect does not have yet."""
    return {
        field: value
        for field, value in wanted.items()
        if canonical(deployment.value(field)) != canonical(value)
    }


def schedule_differs(deployment: Deployment, schedule: Schedule | None) -> bool:
    """Return whether our schedule of the deployment has to be written."""
    ours = our_schedule(deployment)
    if ours is None or schedule is None:
        return (ours is None) != (schedule is None)
    return comparable(ours.schedule) != comparable(as_json(schedule))


def our_schedule(deployment: Deployment) -> DeploymentSchedule | None:
    """Return the schedule that flow.yaml made, if there is one."""
    return next((s for s in deployment.schedules if s.slug == SCHEDULE_SLUG), None)


def create(api: PrefectApi, flow: ReadFlow, wanted: dict[str, Any], schema: dict[str, Any]) -> UUID:
    """Create a deployment with its schedule.

    Raises:
        DeploymentChangedError: Somebody else made the same thing at the same moment.
    """
    schedule = flow.checked.spec.schedule
    with _alone(flow.checked.name):
        prefects_flow = api.send("POST", "/flows/", {"name": flow.checked.function.flow_name})
        fields = {
            "flow_id": prefects_flow["id"],
            "name": flow.checked.spec.content.deployment.deploy_name,
            "schedules": [_new_schedule(schedule)] if schedule else [],
            "parameter_openapi_schema": schema,
            **wanted,
        }
        return UUID(api.send("POST", "/deployments/", fields)["id"])


def update(
    api: PrefectApi, deployment: Deployment, wanted: dict[str, Any], schema: dict[str, Any]
) -> None:
    """Update a deployment in place; its schedules, its pause and others' job variables stay.

    All fields are sent, in one request: of two registrations at the same time one wins.

    Raises:
        DeploymentChangedError: It is gone, or something that it needs changed this moment.
    """
    # Paused because its folder was gone; in a second request it might never be resumed.
    resumed = {"paused": False} if deployment.source and deployment.source.gone else {}
    variables = merged_variables(deployment.job_variables, wanted["job_variables"])
    fields = {
        "parameter_openapi_schema": schema,
        **wanted,
        "job_variables": variables,
        **resumed,
    }
    with _alone(deployment.name):
        api.send("PATCH", f"/deployments/{deployment.id}", fields)


def write_schedule(api: PrefectApi, deployment: Deployment, schedule: Schedule | None) -> None:
    """Bring our one schedule up to date.

    It is addressed by itself: a deployment update that carries schedules makes one that was
    switched off in the UI active again, and drops those that people added.

    Raises:
        DeploymentChangedError: Somebody else made or removed it meanwhile.
    """
    ours = our_schedule(deployment)
    path = f"/deployments/{deployment.id}/schedules"
    with _alone(deployment.name):
        if schedule is None:
            if ours is not None:
                api.send("DELETE", f"{path}/{ours.id}")
        elif ours is None:
            api.send("POST", path, [_new_schedule(schedule)])
        else:
            api.send("PATCH", f"{path}/{ours.id}", {"schedule": as_json(schedule)})


def _new_schedule(schedule: Schedule) -> dict[str, Any]:
    return {"schedule": as_json(schedule), "active": True, "slug": SCHEDULE_SLUG}


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """Tell the conflicts with somebody who writes at the same time from other errors."""
    try:
        yield
    except RefusedRequestError as error:
        if error.status_code not in {httpx.codes.NOT_FOUND, httpx.codes.CONFLICT}:
            raise
        raise DeploymentChangedError(
            f"{name}: Prefect refused it: {error.detail}",
            hint="if somebody else registered it at the same time, register it again",
        ) from error


def _flow_names(api: PrefectApi, query: dict[str, Any]) -> dict[str, str]:
    flows = api.pages("/flows/filter", query, sort="CREATED_DESC")
    return {flow["id"]: flow["name"] for flow in flows}


def _by_name(answers: Sequence[dict[str, Any]], flows: dict[str, str]) -> dict[str, Deployment]:
    return {
        f"{flows[answer['flow_id']]}/{answer['name']}": _parse(answer)
        for answer in answers
        if answer["flow_id"] in flows
    }


def _parse(answer: dict[str, Any]) -> Deployment:
    return Deployment.model_validate(answer)


def canonical(value: object) -> str:
    """Return a JSON value as text, by which to compare: 1, 1.0 and true are equal in Python."""
    return json.dumps(value, sort_keys=True)
