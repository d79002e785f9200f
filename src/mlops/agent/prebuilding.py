"""Brings code and environments of deployments to this host before a run asks for them.

Not `prebuild`, which an image's build runs. What is built while a run may come for it has the same
priority as the run: without privileges it could not be raised again once that waits. It begins only
while the agent has a free slot, one at a time, and what no run waits for (starting Prefect in the
new environment, which also compiles) is left with little.
"""

import asyncio
import random
import threading
from collections.abc import Callable, Sequence
from functools import partial
from uuid import UUID

import anyio
import anyio.to_thread
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    WorkPoolFilter,
    WorkPoolFilterName,
    WorkQueueFilter,
    WorkQueueFilterName,
)
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import DeploymentSort
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_logger

from mlops.agent.code_cache import CodeCache
from mlops.agent.environments import Environment, EnvironmentCache, EnvironmentSpec
from mlops.agent.run_context import BundleSource
from mlops.agent.run_ending import NO_ANSWER
from mlops.errors import MlopsError
from mlops.settings import AgentSettings
from mlops.storage import ObjectStore

SETTLE_SECONDS = 20.0  # after the agent's start, when runs that have waited come first
KNOWN_AT_MOST = 20  # deployments that are looked at then; the last ones to be updated
SLOT_POLL_SECONDS = 1.0

logger = get_logger("mlops.agent")


class Prebuilding:
    """A queue of deployments, worked off one by one.

    Args:
        settings: Which deployments are this agent's, and where their code is.
        code: The host's code.
        environments: The host's environments.
        has_slot: Whether the agent could take a run now.
        ready: Is called with an environment that is there, and what flow.yaml names as `warm`.
        settle_seconds: How long to wait at the start; up to twice as long, so that agents that
            start together do not begin together, and half as long between two.
    """

    def __init__(
        self,
        settings: AgentSettings,
        code: CodeCache,
        environments: EnvironmentCache,
        has_slot: Callable[[], bool],
        ready: Callable[[Environment, Sequence[str]], None] = lambda _environment, _modules: None,
        *,
        settle_seconds: float = SETTLE_SECONDS,
    ) -> None:
        self._settings = settings
        self._code = code
        self._environments = environments
        self._has_slot = has_slot
        self._ready = ready
        self._settle_seconds = settle_seconds
        self._changed: dict[UUID, None] = {}  # in the order in which they came
        self._wake = asyncio.Event()

    def deployment_changed(self, deployment_id: UUID) -> None:
        """Have a deployment that is new or has changed looked at soon."""
        self._changed[deployment_id] = None
        self._wake.set()

    async def work(self) -> None:
        """Look at the deployments of the pool once, and at all that change, until cancelled."""
        async with get_client() as client, anyio.create_task_group() as tasks:
            tasks.start_soon(self._add_known, client)
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._changed:
                    deployment_id = next(iter(self._changed))
                    del self._changed[deployment_id]
                    await self._look_at(client, deployment_id)

    async def _add_known(self, client: PrefectClient) -> None:
        await anyio.sleep(self._settle_seconds * random.uniform(1, 2))  # noqa: S311  # no secret
        queue = self._settings.queue_name
        try:
            known = await client.read_deployments(
                work_pool_filter=WorkPoolFilter(
                    name=WorkPoolFilterName(any_=[self._settings.pool_name])
                ),
                work_queue_filter=WorkQueueFilter(name=WorkQueueFilterName(any_=[queue]))
                if queue
                else None,
                limit=KNOWN_AT_MOST,
                sort=DeploymentSort.UPDATED_DESC,
            )
        except NO_ANSWER as error:
            logger.warning("environments are not built ahead of time at the start: %s", error)
            return
        for deployment in known:
            if not deployment.paused:
                self.deployment_changed(deployment.id)
                await anyio.sleep(self._settle_seconds / 2)

    async def _look_at(self, client: PrefectClient, deployment_id: UUID) -> None:
        """Bring what a deployment's runs need; if that fails, say so once."""
        name = str(deployment_id)
        try:
            deployment = await client.read_deployment(deployment_id)
            name = deployment.name
            if source := self._source(deployment):
                while not self._has_slot():  # noqa: ASYNC110  # nobody tells of it
                    await anyio.sleep(SLOT_POLL_SECONDS)
                await self._bring(source)
        except ObjectNotFound:  # deleted since
            return
        except (MlopsError, OSError, *NO_ANSWER) as error:
            logger.warning("deployment %s: not made ready ahead of time: %s", name, error)

    def _source(self, deployment: DeploymentResponse) -> BundleSource | None:
        """Return where the code of a deployment lies that this agent would bring to its host."""
        queue = self._settings.queue_name
        is_ours = deployment.work_pool_name == self._settings.pool_name and (
            queue is None or deployment.work_queue_name == queue
        )
        has_own_command = bool(deployment.job_variables.get("command"))
        return BundleSource.of(deployment) if is_ours and not has_own_command else None

    async def _bring(self, source: BundleSource) -> None:
        cancel = threading.Event()
        try:
            environment, modules = await anyio.to_thread.run_sync(
                partial(self._bring_now, source, cancel), abandon_on_cancel=True
            )
        finally:
            cancel.set()
        if environment:
            self._ready(environment, modules)

    def _bring_now(
        self, source: BundleSource, cancel: threading.Event
    ) -> tuple[Environment | None, Sequence[str]]:
        store = ObjectStore(self._settings, source.bucket)
        folder, manifest = self._code.ensure(store, source.prefix, is_for_run=False)
        spec = EnvironmentSpec(
            folder=folder,
            requirements=manifest.needs.requirements,
            python=manifest.needs.python,
            torch_backend=self._settings.torch_backend,
        )
        with self._code.lease(folder):
            modules = manifest.needs.warm
            environment = self._environments.ensure_ahead(
                spec, logger.debug, modules=modules, cancel=cancel
            )
        return environment, modules
