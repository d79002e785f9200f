"""What comes before a run's process: its code and its packages are brought to this host."""

import asyncio
import contextlib
import dataclasses
import functools
import logging
import threading
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

import anyio
import anyio.to_thread
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, State, WorkPool
from prefect.states import Cancelled, Failed, Scheduled
from prefect.workers.process import ProcessJobConfiguration

from mlops.agent import flow_process
from mlops.agent.code_cache import CodeCache
from mlops.agent.environments import Environment, EnvironmentCache, EnvironmentSpec
from mlops.agent.job import AgentJobConfiguration, Demands
from mlops.agent.learned_modules import ModuleMemory
from mlops.agent.run_context import BundleSource, RunContext, own_environment
from mlops.agent.run_ending import NO_ANSWER
from mlops.bundles import DAMAGED_STATE, BundleError
from mlops.errors import MlopsError
from mlops.settings import AgentSettings
from mlops.storage import ObjectStore

CANCEL_POLL_SECONDS = 2.0
QUICK_SECONDS = 0.5


@dataclass(frozen=True)
class RunServer:
    """The Prefect server, as one run needs it.

    Args:
        client: It.
        work_pool: Which may have a default for what runs ask for.
        logger: The run's log.
    """

    client: PrefectClient
    work_pool: WorkPool | None
    logger: logging.Logger | logging.LoggerAdapter[logging.Logger]

    async def is_cancelling(self, flow_run: FlowRun) -> bool:
        """Return whether somebody has asked for the run's end."""
        state = (await self.client.read_flow_run(flow_run.id)).state
        return state is not None and state.is_cancelling()


class Preparation:
    """Makes runs ready.

    Args:
        settings: Where code lies, and what environments are built for.
        code: The code on this host.
        environments: The environments on this host.
        memory: What their warm processes import.
    """

    def __init__(
        self,
        settings: AgentSettings,
        code: CodeCache,
        environments: EnvironmentCache,
        memory: ModuleMemory,
    ) -> None:
        self._settings = settings
        self._code = code
        self._environments = environments
        self._memory = memory
        self._store = functools.cache(partial(ObjectStore, settings))

    async def prepare(
        self,
        context: RunContext,
        configuration: ProcessJobConfiguration,
        stack: AsyncExitStack,
        server: RunServer,
    ) -> RunContext | State[None]:
        """Make a run ready; if that fails, return the state that it gets instead.

        Args:
            context: The run.
            configuration: Is pointed at its command, folder and variables.
            stack: Holds what the run needs for as long as it goes on.
            server: Where the run is told of.
        """
        try:
            demands = Demands.of(context.flow_run, context.deployment, server.work_pool)
        except MlopsError as error:
            return Failed(message=str(error).splitlines()[0])
        if demands.gpus != len(context.gpus.devices):
            return Scheduled(message="the GPUs that were kept for it went to another run")
        context = dataclasses.replace(context, memory_bytes=demands.memory)
        if (
            context.source is None
            or not isinstance(configuration, AgentJobConfiguration)
            or configuration.has_own_command  # the user's choice of how it runs
        ):
            return context
        prepared: RunContext | State[None]
        began = time.monotonic()
        try:
            prepared = await self._bring_code_and_packages(
                context, context.source, configuration, stack, server
            )
        except MlopsError as error:
            server.logger.error("%s", error)  # noqa: TRY400  # mistakes have no traceback
            prepared = Failed(
                name=DAMAGED_STATE if isinstance(error, BundleError) else None,
                message=f"{str(error).splitlines()[0]} (see the run's log)",
            )
        # Of a run that starts at once the server itself refuses the start.
        is_late = time.monotonic() - began > QUICK_SECONDS
        if is_late and await server.is_cancelling(context.flow_run):
            return Cancelled(message="cancelled before it started")
        return prepared

    async def _bring_code_and_packages(
        self,
        context: RunContext,
        source: BundleSource,
        configuration: AgentJobConfiguration,
        stack: AsyncExitStack,
        server: RunServer,
    ) -> RunContext:
        """Bring code and environment to this host and point the run's process at them."""
        store = self._store(source.bucket)
        folder, manifest = await anyio.to_thread.run_sync(self._code.ensure, store, source.prefix)
        spec = EnvironmentSpec(
            folder=folder,
            requirements=manifest.needs.requirements,
            python=manifest.needs.python,
            torch_backend=self._settings.torch_backend,
        )
        stack.enter_context(self._code.lease(folder))
        environment = await self._build_environment(context.flow_run, spec, server)
        stack.enter_context(self._environments.lease(environment))
        self._memory.declare(environment, manifest.needs.warm)
        view = await stack.enter_async_context(
            self._code.private_view(folder, parent=configuration.working_dir)
        )
        configuration.working_dir = view
        configuration.use_command([str(environment.python), flow_process.__file__])
        configuration.env |= own_environment(environment)
        # The code is here already: the engine loads it instead of running the pull step.
        configuration.env["PREFECT__FLOW_ENTRYPOINT"] = context.entrypoint(view)
        return dataclasses.replace(context, packages=environment)

    async def _build_environment(
        self, flow_run: FlowRun, spec: EnvironmentSpec, server: RunServer
    ) -> Environment:
        """Build in a thread; uv is stopped when the run is cancelled or the agent stopped."""
        cancel = threading.Event()

        async def watch() -> None:
            while not cancel.is_set():
                await anyio.sleep(CANCEL_POLL_SECONDS)
                with contextlib.suppress(*NO_ANSWER):  # asked again soon
                    if await server.is_cancelling(flow_run):
                        cancel.set()

        watcher = asyncio.create_task(watch())
        try:
            return await anyio.to_thread.run_sync(
                partial(self._environments.ensure, spec, server.logger.info, cancel=cancel),
                abandon_on_cancel=True,
            )
        except anyio.get_cancelled_exc_class():
            cancel.set()
            raise
        finally:
            watcher.cancel()
