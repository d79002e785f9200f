"""Prefect's process worker, extended at its public `run`.

A run of one of our deployments gets its code from the host's cache and its packages from an
environment of its own; every other deployment runs exactly as on an unmodified worker.
"""

import asyncio
import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
import anyio.to_thread
import httpx
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelled, Failed
from prefect.utilities.processutils import command_to_string
from prefect.workers.process import (
    ProcessJobConfiguration,
    ProcessWorker,
    ProcessWorkerResult,
)

from mlops.agent.code_cache import CodeCache
from mlops.agent.environments import Environment, EnvironmentCache, EnvironmentSpec
from mlops.bundles import PULL_STEP, Manifest, parse_prefix
from mlops.errors import MlopsError
from mlops.mlflow_api import FLOW_RUN_TAG
from mlops.settings import AgentSettings
from mlops.storage import ObjectStore

if TYPE_CHECKING:
    from prefect.client.schemas.responses import DeploymentResponse

CANCEL_POLL_SECONDS = 2.0
STOP_REPORT_SECONDS = 5.0
# The agent's own, which would mislead a run in another environment; without bytecode
# every run would compile what it imports anew, which doubles its start.
_PRIVATE_VARIABLES = (
    "MLOPS_CACHE_DIR",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONHOME",
    "PYTHONPATH",
    "VIRTUAL_ENV",
)


class AgentJobConfiguration(ProcessJobConfiguration):
    """Prefect's configuration of one run, with a command that is known only at the start."""

    @property
    def has_own_command(self) -> bool:
        """Whether the deployment or the run names a command in its job variables."""
        return self._command_configured

    def use_command(self, command: list[str]) -> None:
        """Run this command instead of the worker's own interpreter."""
        self.command = command_to_string(command)
        # Prefect notes in prepare_for_flow_run whether a command was given; ours comes later.
        self._command_configured = True


class Agent(ProcessWorker):
    """The worker of one host.

    Args:
        settings: Where it takes runs from and where it keeps its caches.
        **options: Prefect's own, such as `name` and `limit`.
    """

    type = "process"
    job_configuration = AgentJobConfiguration
    _display_name = "mlops agent"

    @classmethod
    def __dispatch_key__(cls) -> str:
        """Leave Prefect's own process worker in its registry under `process`."""
        return "mlops-agent"

    def __init__(self, settings: AgentSettings, **options: Any) -> None:
        super().__init__(
            work_pool_name=settings.pool_name,
            work_queues=[settings.queue_name] if settings.queue_name else None,
            **options,
        )
        self._settings = settings
        self._code = CodeCache(settings.mlops_cache_dir)
        self._environments = EnvironmentCache(
            settings.mlops_cache_dir / "environments",
            limit_bytes=settings.mlops_environment_cache_bytes,
            python_downloads=settings.mlops_python_downloads,
        )

    def sweep(self) -> None:
        """Remove what killed agents left in the caches."""
        self._code.sweep()
        self._environments.sweep()

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> ProcessWorkerResult:
        """Run a flow in a process and wait for its end.

        Source of the contract: `prefect.workers.base.BaseWorker.run`.
        """
        deployment = (
            await self.client.read_deployment(flow_run.deployment_id)
            if flow_run.deployment_id
            else None
        )
        source = _bundle_source(deployment) if deployment else None
        if (
            deployment is None
            or source is None
            or not isinstance(configuration, AgentJobConfiguration)
            or configuration.has_own_command  # the user's choice of how it runs
        ):
            return await super().run(flow_run, configuration, task_status)
        async with AsyncExitStack() as stack:
            try:
                await self._prepare(flow_run, deployment, source, configuration, stack)
                if await self._is_cancelling(flow_run):
                    return await self._end_unstarted(flow_run, _cancelled(), task_status)
                return await super().run(flow_run, configuration, task_status)
            except MlopsError as error:
                self.get_flow_run_logger(flow_run).error("%s", error)
                reason = str(error).splitlines()[0]
                failed: State[None] = Failed(message=f"{reason} (see the run's log)")
                cancelled = await self._is_cancelling(flow_run)
                return await self._end_unstarted(
                    flow_run, _cancelled() if cancelled else failed, task_status
                )
            except anyio.get_cancelled_exc_class():
                # The agent is being stopped, and the run's process with it.
                with anyio.move_on_after(STOP_REPORT_SECONDS, shield=True):
                    await self._propose_crashed_state(flow_run, "the agent was stopped")
                raise

    async def _prepare(
        self,
        flow_run: FlowRun,
        deployment: "DeploymentResponse",
        source: tuple[str, str],
        configuration: AgentJobConfiguration,
        stack: AsyncExitStack,
    ) -> None:
        """Bring code and environment to this host and point the run's process at them."""
        logger = self.get_flow_run_logger(flow_run)
        bucket, prefix = source
        store = ObjectStore(self._settings, bucket)
        folder, manifest = await anyio.to_thread.run_sync(self._code.ensure, store, prefix)
        spec = EnvironmentSpec(
            folder=folder,
            requirements=manifest.needs.requirements,
            python=manifest.needs.python,
            torch_backend=self._settings.torch_backend,
        )
        environment = await self._build_environment(flow_run, spec, logger.info)
        stack.enter_context(self._environments.lease(environment))
        view = stack.enter_context(
            self._code.private_view(folder, parent=configuration.working_dir)
        )
        configuration.working_dir = view
        configuration.use_command([str(environment.python), "-m", "prefect.engine"])
        configuration.env |= _run_environment(
            environment,
            deployment,
            view,
            _run_context(flow_run, deployment, store, prefix, manifest),
        )

    async def _build_environment(
        self, flow_run: FlowRun, spec: EnvironmentSpec, log: Callable[[str], None]
    ) -> Environment:
        """Build in a thread; uv is stopped when the run is cancelled or the agent stopped."""
        cancel = threading.Event()

        async def watch() -> None:
            while not cancel.is_set():
                with contextlib.suppress(httpx.HTTPError):  # asked again soon
                    if await self._is_cancelling(flow_run):
                        cancel.set()
                await anyio.sleep(CANCEL_POLL_SECONDS)

        watcher = asyncio.create_task(watch())
        try:
            return await anyio.to_thread.run_sync(
                partial(self._environments.ensure, spec, log, cancel=cancel),
                abandon_on_cancel=True,
            )
        except anyio.get_cancelled_exc_class():
            cancel.set()
            raise
        finally:
            watcher.cancel()

    async def _is_cancelling(self, flow_run: FlowRun) -> bool:
        state = (await self.client.read_flow_run(flow_run.id)).state
        return state is not None and state.is_cancelling()

    async def _end_unstarted(
        self,
        flow_run: FlowRun,
        state: State[None],
        task_status: anyio.abc.TaskStatus[int] | None,
    ) -> ProcessWorkerResult:
        """Give a run that never had a process its final state."""
        await self.client.set_flow_run_state(flow_run.id, state, force=True)
        if task_status is not None:
            task_status.started(0)
        return ProcessWorkerResult(status_code=0, identifier="not-started")


def _cancelled() -> State[None]:
    return Cancelled(message="cancelled before it started")


def _bundle_source(deployment: "DeploymentResponse") -> tuple[str, str] | None:
    """Return the bucket and prefix of a deployment that we registered, else None."""
    steps = deployment.pull_steps or []
    if len(steps) != 1 or not deployment.entrypoint:
        return None
    options = steps[0].get(PULL_STEP)
    if not isinstance(options, dict) or set(options) != {"bucket", "folder"}:
        return None
    return (options["bucket"], options["folder"]) if parse_prefix(options["folder"]) else None


def _run_environment(
    environment: Environment,
    deployment: "DeploymentResponse",
    view: Path,
    context: dict[str, str],
) -> dict[str, str | None]:
    """Return what a run's process finds set, besides the agent's own environment."""
    hidden: dict[str, str | None] = dict.fromkeys(_PRIVATE_VARIABLES)
    return hidden | {
        "PATH": f"{environment.python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "VIRTUAL_ENV": str(environment.folder),
        "PYTHONUNBUFFERED": "1",
        # The code is here already: the engine loads it instead of running the pull step.
        "PREFECT__FLOW_ENTRYPOINT": str(view / str(deployment.entrypoint)),
        "MLFLOW_RUN_CONTEXT": json.dumps(context),
    }


def _run_context(
    flow_run: FlowRun,
    deployment: "DeploymentResponse",
    store: ObjectStore,
    prefix: str,
    manifest: Manifest,
) -> dict[str, str]:
    """Return the tags that every MLflow run of this flow run carries."""
    return {
        FLOW_RUN_TAG: str(flow_run.id),
        "mlops.prefect_flow_run_name": flow_run.name,
        "mlops.prefect_deployment": deployment.name,
        "mlops.code_uri": store.uri(f"{prefix}/"),
        "mlops.code_hash": manifest.content_hash,
        "mlops.agent_host": socket.gethostname(),
    }
