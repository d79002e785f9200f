"""Registration: flow folders become bundles in S3 and deployments in Prefect.

Create or update in place, and write nothing where nothing changed. What people switch in the
Prefect UI (the deployment's pause, the schedule's own switch, schedules that they added) stays
as they left it.
"""

import datetime as dt
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from mlops import lineage
from mlops.errors import MlopsError
from mlops.prefect_api import PrefectApi, ensure_work_pool
from mlops.scheduler import deployments, flow_folder
from mlops.scheduler.deployments import Deployment, DeploymentChangedError
from mlops.scheduler.doubts import read_doubts
from mlops.scheduler.effects import effects
from mlops.scheduler.flow_files import FolderChangedError
from mlops.scheduler.flow_folder import ReadFlow
from mlops.scheduler.git_commit import DIRTY, git_commit
from mlops.scheduler.schedule import next_runs
from mlops.scheduler.source import Source
from mlops.scheduler.spec import FlowYamlError
from mlops.scheduler.twins import TwinError, is_same, refuse_twin
from mlops.scheduler.upload import goes_by_etags, missing_files, upload
from mlops.settings import SchedulerSettings
from mlops.storage import ObjectStore, Progress

ATTEMPTS = 3  # for a folder or a deployment that changes meanwhile
SHOWN_UPLOAD_BYTES = 16 << 20  # a smaller one is over before it says anything
RETRIES = 1  # of a request to Prefect; whoever registers can do so again

Action = Literal["created", "updated", "repaired", "unchanged"]
ShowUpload = Callable[[str, int], AbstractContextManager[Progress | None]]


class Registration(BaseModel):
    """What a registration did."""

    model_config = ConfigDict(frozen=True)

    folder: Path
    name: str
    deployment_id: UUID
    action: Action
    code_uri: str
    code_hash: str
    scheduled: bool
    next_run: dt.datetime | None
    warnings: tuple[str, ...]


class Refusal(BaseModel):
    """A folder that was not registered, and why; the deployment it may have is as it was."""

    model_config = ConfigDict(frozen=True)

    folder: Path
    message: str


_REFUSALS = (FlowYamlError, FolderChangedError, DeploymentChangedError, TwinError)


class Registrar:
    """Registers flow folders with one platform; a context manager.

    Args:
        settings: Where the platform is, and as whom to speak.
        warn: Is told at once what a user should know, before anything is overwritten.
        show_upload: Is given a folder's name and the bytes to send, if these are many, and
            returns a context whose value is told the progress.
        show_parameters: Whether the warnings show values of parameters, which may be secrets.
        retries: How often a request to Prefect is tried again when the server is away.
    """

    def __init__(
        self,
        settings: SchedulerSettings,
        *,
        warn: Callable[[str], None],
        show_upload: ShowUpload,
        show_parameters: bool = False,
        retries: int = RETRIES,
    ) -> None:
        self._settings = settings
        self._api = PrefectApi(settings, retries=retries)
        self._store = ObjectStore(settings, settings.prefect_bucket_name)
        self._warn = warn
        self._show_upload = show_upload
        self._show_parameters = show_parameters
        self._pools: set[str] = set()
        self._doubts: dict[UUID, dt.datetime] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._api.close()

    def register(self, folders: Iterable[Path]) -> Iterator[Registration | Refusal]:
        """Register flow folders, yielding each one's outcome as it is known.

        A folder with a mistake is refused and does not keep the others from being registered.

        Raises:
            MlopsError: A server does not answer or refuses; a later registration completes it.
        """
        flows: list[ReadFlow] = []
        for folder in folders:
            try:
                flows.append(flow_folder.read(folder))
            except MlopsError as error:
                yield Refusal(folder=folder, message=str(error))
        registered = deployments.read_named(self._api, (flow.checked.names for flow in flows))
        self._doubts = read_doubts(
            self._api,
            [
                registered[flow.checked.name].id
                for flow in flows
                if flow.checked.name in registered and goes_by_etags(flow.bundle)
            ],
        )
        for flow in flows:
            deployment = registered.get(flow.checked.name)
            try:
                refuse_twin(flow, deployment, flows, self._settings.mlops_host_name)
                yield self._register(flow, deployment)
            except _REFUSALS as error:
                yield Refusal(folder=flow.bundle.folder, message=str(error))

    def _source(self, folder: Path, deployment: Deployment | None) -> Source:
        """Return what the deployment's path is to tell: the folder under the name it goes by.

        A link to a folder stays a link: it may lead to another release tomorrow. Of several
        names of one folder the first that was registered stays.
        """
        here = Source(self._settings.mlops_host_name, folder)
        owner = deployment.source if deployment else None
        if owner and owner.scheduler == here.scheduler and is_same(owner.folder, folder):
            return owner._replace(gone=False)
        return here

    def _register(self, flow: ReadFlow, deployment: Deployment | None) -> Registration:
        """Register one folder; what changes meanwhile is read and looked up again."""
        for _ in range(ATTEMPTS - 1):
            try:
                return self._register_once(flow, deployment)
            except FolderChangedError:
                flow = flow_folder.read(flow.bundle.folder)
            except DeploymentChangedError:
                self._pools.clear()
            deployment = self._look_up(flow)
        return self._register_once(flow, deployment)

    def _look_up(self, flow: ReadFlow) -> Deployment | None:
        registered = deployments.read_named(self._api, [flow.checked.names])
        return registered.get(flow.checked.name)

    def _register_once(self, flow: ReadFlow, deployment: Deployment | None) -> Registration:
        notes: list[str] = []

        def warn(message: str) -> None:
            notes.append(message)
            self._warn(message)

        for warning in flow_folder.warnings(flow.checked):
            warn(warning)
        source = self._source(flow.bundle.folder, deployment)
        commit = _commit(flow, deployment)
        wanted = deployments.wanted_fields(flow, self._store.bucket, source, commit)
        changed = deployments.differences(deployment, wanted) if deployment else wanted
        # Mistakes in the signature are told before anything is uploaded.
        schema = flow_folder.check_parameters(flow) if changed else {}
        for warning in flow_folder.unset_parameters(flow.checked, schema):
            warn(warning)
        doubted = self._doubts.get(deployment.id) if deployment else None
        uploaded = self._upload(flow, warn, doubted)
        if deployment is None:
            self._serve_pool(flow, warn)
            deployment_id = deployments.create(self._api, flow, wanted, schema)
            # Old code may have been pruned in the moments before a deployment referred to it.
            self._upload(flow, warn)
            return self._registration(flow, deployment_id, "created", notes)
        schedule = flow.checked.spec.schedule
        shown = self._show_parameters
        for effect in effects(deployment, changed, schedule, show_parameters=shown):
            warn(f"{flow.checked.name}: {effect}")
        action: Action = "unchanged"
        # Before the code: whose code it is in the end, that one finds a schedule of another's.
        if deployments.schedule_differs(deployment, schedule):
            deployments.write_schedule(self._api, deployment, schedule)
            action = "updated"
        if changed:
            self._serve_pool(flow, warn)
            deployments.update(self._api, deployment, wanted, schema)
            self._upload(flow, warn)  # once more, as above
            action = "updated"
        if action == "updated":
            self._verify(flow, wanted, complete=bool(changed))
        elif uploaded:
            warn(f"{flow.checked.name}: its code in S3 was damaged and is whole again")
            action = "repaired"
        return self._registration(flow, deployment.id, action, notes)

    def _verify(self, flow: ReadFlow, wanted: dict[str, Any], *, complete: bool) -> None:
        """Make sure that two registrations at the same time are not mixed in one deployment.

        Args:
            flow: What was registered.
            wanted: The deployment's fields.
            complete: They were written, not the schedule alone: who then finds the code of
                another knows that the other comes after, and verifies in turn.

        Raises:
            DeploymentChangedError: They are.
        """
        found = self._look_up(flow)
        if found is not None:
            ours = deployments.differences(found, wanted)
            if complete and not ours.keys().isdisjoint({"pull_steps", "path"}):
                return
            if not ours and not deployments.schedule_differs(found, flow.checked.spec.schedule):
                return
        raise DeploymentChangedError(
            f"{flow.checked.name}: somebody else changes it at the same time",
            hint="register it again",
        )

    def _upload(
        self, flow: ReadFlow, warn: Callable[[str], None], doubted: dt.datetime | None = None
    ) -> bool:
        """Bring the bundle to S3 and return whether anything was missing there."""
        missing = missing_files(flow.bundle, self._store, doubted)
        if missing is None:
            return False
        for warning in flow_folder.large_files(missing, flow.bundle.folder):
            warn(warning)
        size = sum(file.size for file in missing)
        show = self._show_upload if size >= SHOWN_UPLOAD_BYTES else _show_nothing
        with show(flow.bundle.folder.name, size) as progress:
            upload(flow.bundle, missing, self._store, progress)
        return True

    def _serve_pool(self, flow: ReadFlow, warn: Callable[[str], None]) -> None:
        """Make sure of the work pool that a deployment needs."""
        pool = flow.checked.spec.content.deployment.pool_name
        if pool not in self._pools and ensure_work_pool(self._api, pool):
            warn(
                f"work pool {pool!r} did not exist and was created; its runs wait until an agent "
                "serves it"
            )
        self._pools.add(pool)

    def _registration(
        self, flow: ReadFlow, deployment_id: UUID, action: Action, warnings: list[str]
    ) -> Registration:
        schedule = flow.checked.spec.schedule
        runs = next_runs(schedule, 1) if schedule else []
        return Registration(
            folder=flow.bundle.folder,
            name=flow.checked.name,
            deployment_id=deployment_id,
            action=action,
            code_uri=self._store.uri(f"{flow.bundle.prefix}/"),
            code_hash=flow.bundle.manifest.content_hash,
            scheduled=schedule is not None,
            next_run=runs[0] if runs else None,
            warnings=tuple(warnings),
        )


def _commit(flow: ReadFlow, deployment: Deployment | None) -> str | None:
    """Return the git commit of the code; what is known of the same code already stays."""
    version = deployment.version if deployment else None
    is_same = flow.bundle.manifest.content_hash.startswith(lineage.hash_of(version) or "none")
    known = lineage.commit_of(version) if is_same else None
    if known and not known.endswith(DIRTY):
        return known
    files = (file.path for file in flow.bundle.manifest.files)
    return git_commit(flow.bundle.folder, files) or known


def _show_nothing(_name: str, _size: int) -> AbstractContextManager[None]:
    return nullcontext()
