"""Registration: a flow folder becomes a bundle in S3 and a deployment in Prefect.

Create or update in place, and write nothing where nothing changed. What people switch in the
Prefect UI (the deployment's pause, the schedule's own switch, schedules that they added) stays
as they left it.
"""

import datetime as dt
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from mlops.bundles import (
    PULL_STEP,
    EnvironmentNeeds,
    FolderChangedError,
    Manifest,
    prefix_of,
    read_folder,
    upload,
)
from mlops.errors import MlopsError
from mlops.prefect_api import ensure_work_pool
from mlops.scheduler.entrypoint import FlowFunction, read_function
from mlops.scheduler.schedule import CronSchedule, IntervalSchedule, Schedule, next_runs
from mlops.scheduler.spec import FlowSpec, FlowYamlError, read_spec
from mlops.storage import ObjectStore

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse

SCHEDULE_SLUG = "flow-yaml"  # marks our schedule among those that people add in the UI
READ_ATTEMPTS = 3
VERSION_DIGITS = 12

Action = Literal["created", "updated", "unchanged"]


class CheckedFlow(BaseModel):
    """A flow folder without mistakes."""

    model_config = ConfigDict(frozen=True)

    spec: FlowSpec
    function: FlowFunction
    warnings: tuple[str, ...]

    @property
    def name(self) -> str:
        """The deployment's full name in Prefect, `flow/deployment`."""
        return f"{self.function.flow_name}/{self.spec.content.deployment.deploy_name}"


class Registration(BaseModel):
    """What a registration did."""

    model_config = ConfigDict(frozen=True)

    folder: Path
    name: str
    deployment_id: UUID
    action: Action
    code_uri: str
    code_hash: str
    next_run: dt.datetime | None
    warnings: tuple[str, ...]


def check(folder: Path) -> CheckedFlow:
    """Check a flow folder without talking to any server.

    Raises:
        FlowYamlError: flow.yaml has mistakes; all of them are named.
    """
    spec = read_spec(folder)
    section = spec.content.deployment
    mistakes: list[str] = []
    for key, value in (("deploy_name", section.deploy_name), ("pool_name", section.pool_name)):
        if any(character in value for character in "/%&<>"):
            mistakes.append(
                f"deployment.{key}: {value!r} has a character that Prefect refuses (/ % & < >)"
            )
    try:
        function = read_function(spec.folder, section.flow_py_name, section.flow_name)
    except MlopsError as error:
        raise FlowYamlError(spec.path, [*mistakes, error.message]) from error
    if not function.open_ended:
        mistakes += [
            f"parameters.{name}: {section.flow_name} has no such parameter"
            f"; allowed: {', '.join(function.parameters) or 'none'}"
            for name in spec.content.parameters
            if name not in function.parameters
        ]
    if mistakes:
        raise FlowYamlError(spec.path, mistakes)
    return CheckedFlow(spec=spec, function=function, warnings=_warnings(spec))


def refuse_twins(folders: Iterable[Path]) -> None:
    """Make sure that no two folders are the same deployment; each would overwrite the other.

    Folders with mistakes are left to `check`.

    Raises:
        MlopsError: Two are; both are named.
    """
    places: dict[str, Path] = {}
    for folder in folders:
        try:
            name = check(folder).name
        except MlopsError:
            continue
        twin = places.setdefault(name, folder)
        if twin.resolve() != folder.resolve():
            raise MlopsError(
                f"{twin} and {folder} are both the deployment {name}",
                hint="change deployment.deploy_name in one of them",
            )


def register(
    folder: Path,
    store: ObjectStore,
    client: "SyncPrefectClient",
) -> Registration:
    """Register one flow folder.

    Args:
        folder: The flow folder.
        store: The bucket for code.
        client: The Prefect server.

    Raises:
        FlowYamlError: flow.yaml has mistakes; nothing was written.
        MlopsError: A server does not answer or refuses; a later registration completes it.
    """
    checked = check(folder)
    checked, manifest = _upload(folder, checked, store)
    warnings = list(checked.warnings)
    if ensure_work_pool(client, checked.spec.content.deployment.pool_name):
        warnings.append(
            f"work pool {checked.spec.content.deployment.pool_name!r} did not exist and was "
            "created; its runs wait until an agent serves it"
        )
    prefix = prefix_of(checked.spec.folder.name, manifest.content_hash)
    wanted = _deployment_fields(checked, store.bucket, prefix, manifest.content_hash)
    deployment_id, action = _write_deployment(client, checked, wanted)
    schedule = checked.spec.schedule
    runs = next_runs(schedule, 1) if schedule else []
    return Registration(
        folder=checked.spec.folder,
        name=checked.name,
        deployment_id=deployment_id,
        action=action,
        code_uri=store.uri(f"{prefix}/"),
        code_hash=manifest.content_hash,
        next_run=runs[0] if runs else None,
        warnings=tuple(warnings),
    )


def _upload(folder: Path, checked: CheckedFlow, store: ObjectStore) -> tuple[CheckedFlow, Manifest]:
    """Hash and upload the folder; a folder that changes meanwhile is read again."""
    for attempt in range(READ_ATTEMPTS):
        manifest = read_folder(checked.spec.folder, _needs(checked.spec))
        try:
            upload(checked.spec.folder, manifest, store)
        except FolderChangedError:
            if attempt == READ_ATTEMPTS - 1:
                raise
            checked = check(folder)
        else:
            return checked, manifest
    raise AssertionError  # the last attempt returned or raised


def _needs(spec: FlowSpec) -> EnvironmentNeeds:
    content = spec.content
    return EnvironmentNeeds(
        requirements=content.requirements
        if (spec.folder / content.requirements).is_file()
        else None,
        python=content.python,
        gpus=content.gpus,
        warm=content.warm,
    )


def _warnings(spec: FlowSpec) -> tuple[str, ...]:
    if spec.schedule is None or next_runs(spec.schedule, 1):
        return ()
    return (f"{spec.path}: scheduler: the schedule has no run in the future",)


def _deployment_fields(
    checked: CheckedFlow, bucket: str, prefix: str, content_hash: str
) -> dict[str, Any]:
    content = checked.spec.content
    return {
        "version": content_hash[:VERSION_DIGITS],
        # Not None: Prefect 3.8.8's client makes the word "None" of it.
        "description": content.description or checked.function.description or "",
        "parameters": content.parameters,
        "tags": sorted(content.tags),
        "work_pool_name": content.deployment.pool_name,
        "work_queue_name": content.deployment.queue_name,
        "entrypoint": checked.function.entrypoint,
        "parameter_openapi_schema": checked.function.parameter_schema,
        "enforce_parameter_schema": True,
        "concurrency_limit": content.concurrency_limit,
        "pull_steps": [{PULL_STEP: {"bucket": bucket, "folder": prefix}}],
        "job_variables": {},
    }


def _write_deployment(
    client: "SyncPrefectClient", checked: CheckedFlow, wanted: dict[str, Any]
) -> tuple[UUID, Action]:
    from prefect.client.schemas.actions import DeploymentUpdate
    from prefect.exceptions import ObjectNotFound

    try:
        deployment = client.read_deployment_by_name(checked.name)
    except ObjectNotFound:
        return _create_deployment(client, checked, wanted), "created"
    changed = {name: value for name, value in wanted.items() if _current(deployment, name) != value}
    if changed:
        # Both name the place in the queue; a changed parameter is checked against the schema.
        together = ("work_pool_name", "work_queue_name", "parameters", "parameter_openapi_schema")
        update = DeploymentUpdate(**changed, **{k: wanted[k] for k in together if k not in changed})
        client.update_deployment(deployment.id, update)
    rescheduled = _write_schedule(client, deployment, checked.spec.schedule)
    return deployment.id, "updated" if changed or rescheduled else "unchanged"


def _create_deployment(
    client: "SyncPrefectClient", checked: CheckedFlow, wanted: dict[str, Any]
) -> UUID:
    from prefect.client.schemas.actions import DeploymentScheduleCreate

    schedule = checked.spec.schedule
    return client.create_deployment(
        flow_id=client.create_flow_from_name(checked.function.flow_name),
        name=checked.spec.content.deployment.deploy_name,
        schedules=[DeploymentScheduleCreate(schedule=_to_prefect(schedule), slug=SCHEDULE_SLUG)]
        if schedule
        else [],
        **wanted,
    )


def _current(deployment: "DeploymentResponse", name: str) -> object:
    if name == "concurrency_limit":
        limit = deployment.global_concurrency_limit
        return limit.limit if limit else None
    value = getattr(deployment, name)
    return sorted(value) if name == "tags" else value


def _write_schedule(
    client: "SyncPrefectClient", deployment: "DeploymentResponse", schedule: Schedule | None
) -> bool:
    """Bring our one schedule up to date; return whether something was written.

    It is addressed by itself: a deployment update that carries schedules makes one that was
    switched off in the UI active again, and drops those that people added.
    """
    from prefect.client.schemas.actions import DeploymentScheduleCreate

    ours = next((s for s in deployment.schedules if s.slug == SCHEDULE_SLUG), None)
    if schedule is None:
        if ours is not None:
            client.delete_deployment_schedule(deployment.id, ours.id)
        return ours is not None
    wanted = _to_prefect(schedule)
    if ours is None:
        create = DeploymentScheduleCreate(schedule=wanted, slug=SCHEDULE_SLUG)
        client.create_deployment_schedules(deployment.id, [create])
        return True
    if ours.schedule.model_dump(mode="json") == wanted.model_dump(mode="json"):
        return False
    client.update_deployment_schedule(deployment.id, ours.id, schedule=wanted)
    return True


def _to_prefect(schedule: Schedule) -> Any:
    """Return Prefect's own schedule object."""
    from prefect.client.schemas import schedules as prefect

    match schedule:
        case CronSchedule():
            return prefect.CronSchedule(cron=schedule.cron, timezone=schedule.timezone)
        case IntervalSchedule():
            return prefect.IntervalSchedule(
                interval=dt.timedelta(seconds=schedule.seconds),
                anchor_date=schedule.anchor,
                timezone=schedule.timezone,
            )
        case _:
            return prefect.RRuleSchedule(rrule=schedule.rrule, timezone=schedule.timezone)
