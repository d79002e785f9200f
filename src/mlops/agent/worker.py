"""Prefect's process worker, extended: which runs it takes, and what becomes of each.

A run of one of our deployments gets its code from the host's cache and its packages from an
environment of its own; every other deployment runs as on an unmodified worker. How a run ended is
told to Prefect and MLflow for all of them.
"""

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID

import anyio
import anyio.abc
import anyio.to_thread
from prefect.client.schemas.objects import FlowRun, WorkerStatus
from prefect.client.schemas.responses import WorkerFlowRunResponse
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import (
    ProcessJobConfiguration,
    ProcessWorker,
    ProcessWorkerResult,
)

from mlops import lineage
from mlops.agent.activity import Activity
from mlops.agent.attempts import Attempt, AttemptJournal, marks_of
from mlops.agent.backlog import Backlog
from mlops.agent.code_cache import CodeCache
from mlops.agent.environments import Environment, EnvironmentCache
from mlops.agent.event_stream import EventStream
from mlops.agent.execution import Execution
from mlops.agent.gpu_gate import GpuGate
from mlops.agent.gpu_leases import GpuLeases
from mlops.agent.job import (
    AgentJobConfiguration,
    AgentVariables,
    Demands,
)
from mlops.agent.late_runs import LateRuns
from mlops.agent.memory_limit import memory_limit
from mlops.agent.outage import Outage
from mlops.agent.overview import StatusSources
from mlops.agent.pickup import Pickup
from mlops.agent.prebuilding import Prebuilding
from mlops.agent.preparation import Preparation, RunServer
from mlops.agent.recent_answers import RecentAnswers
from mlops.agent.recovery import recover_regularly
from mlops.agent.run_context import BundleSource, RunContext
from mlops.agent.run_ending import RunEnding
from mlops.agent.run_labels import RunLabels
from mlops.agent.status import CacheUses, Slots
from mlops.agent.supervision import PreparedRun, Supervision, process_environment
from mlops.agent.turns import Turns
from mlops.agent.warm_pool import WarmPool
from mlops.agent.warm_status import warm_statuses
from mlops.heartbeat import Heartbeat
from mlops.settings import AgentSettings

DEPLOYMENT_SECONDS = 2.0
FLOW_SECONDS = 60.0  # of a flow only the name matters, by which it is known
STOP_REPORT_SECONDS = 5.0
DRAIN_POLL_SECONDS = 0.1


Gate = Callable[[list[FlowRun]], Awaitable[list[FlowRun]]]


class Agent(ProcessWorker):
    """The worker of one host.

    Args:
        settings: Where it takes runs from and where it keeps its caches.
        gpus: The devices that it may give to runs.
        **options: Prefect's own, such as `name` and `limit`.
    """

    type = "process"
    job_configuration = AgentJobConfiguration
    job_configuration_variables = AgentVariables  # type: ignore[assignment]
    _display_name = "mlops agent"

    @classmethod
    def __dispatch_key__(cls) -> str:
        """Leave Prefect's own process worker in its registry under `process`."""
        return "mlops-agent"

    def __init__(self, settings: AgentSettings, gpus: GpuLeases, **options: Any) -> None:
        super().__init__(
            work_pool_name=settings.pool_name,
            work_queues=[settings.queue_name] if settings.queue_name else None,
            **options,
        )
        self._settings = settings
        self._code = CodeCache(
            settings.mlops_cache_dir, limit_bytes=settings.mlops_code_cache_bytes
        )
        self._environments = EnvironmentCache(
            settings.mlops_cache_dir / "environments",
            limit_bytes=settings.mlops_environment_cache_bytes,
            python_downloads=settings.mlops_python_downloads,
            prebuilt=settings.mlops_prebuilt_dir,
        )
        self._warm = WarmPool(
            settings.mlops_cache_dir,
            self._environments,
            limit=settings.mlops_warm_environments,
            limit_bytes=settings.mlops_warm_bytes,
        )
        self._gpus = gpus
        self._attempts = AttemptJournal(settings.mlops_cache_dir)
        self._ending = RunEnding(settings)
        self.activity = Activity()
        self._preparation = Preparation(settings, self._code, self._environments, self._warm.memory)
        self._supervision = Supervision(self._ending, self._environments, self._warm, self.activity)
        self.heartbeat = Heartbeat(settings)
        self._outage = Outage()
        self._has_met_server = False
        self._is_draining = False
        self._asking = anyio.Lock()
        self._has_pool = asyncio.Event()
        self._turns = Turns(self.name)
        self._backlog = Backlog()
        self._pickup = Pickup(
            self._turns, self._ask_for_runs, self._take_from_backlog, self._free_slots
        )
        self._prebuilding = Prebuilding(
            *(settings, self._code, self._environments),
            has_slot=lambda: self._free_slots() > 0,
            ready=self._prepare_environment,
        )
        self._events = EventStream(
            waiting=self._pickup.waiting,
            taken=self._note_taken,
            deployment_changed=self._prebuilding.deployment_changed,
            connected=self._pickup.now,
        )
        self.sources = StatusSources(
            event_stream=self._events.status,
            gpus=gpus.statuses,
            warm_environments=lambda: warm_statuses(self._warm),
            environment_uses=lambda: CacheUses(self._environments.hits, self._environments.misses),
            code_uses=lambda: CacheUses(self._code.hits, self._code.misses),
        )
        # Each is given the runs that are on offer, and returns those that may be taken.
        self._gates: list[Gate] = [
            self._pickup.admit,
            LateRuns(lambda: self.client).admit,
        ]
        self._gpu_gate = GpuGate(gpus, self._read_demands, self._free_slots, self._tell)

    @property
    def slots(self) -> Slots:
        """How many runs it may have at a time, and has."""
        used = self._limiter.borrowed_tokens if self._limiter else 0
        return Slots(total=self._limit or 0, used=used)

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """Take the runs that are due, and note that the server was reached.

        Source of the contract: `prefect.workers.base.BaseWorker.get_and_submit_flow_runs`.
        """
        if self._events.is_connected and not self._pickup.is_poll_due:
            return []
        return await self._ask_for_runs()

    async def _ask_for_runs(self) -> list[FlowRun]:
        runs: list[FlowRun] = []
        async with self._asking:
            with self._outage.bridged():
                runs = await super().get_and_submit_flow_runs()
                self._pickup.asked()
                if self._has_met_server:  # before that nothing is asked
                    self.heartbeat.beat()
        return runs

    def _release_limit_slot(self, flow_run_id: UUID) -> None:
        """Give a slot back, and see who waits for it.

        Source of the contract: `prefect.workers.base.BaseWorker._release_limit_slot`.
        """
        super()._release_limit_slot(flow_run_id)
        self._pickup.slot_is_free()

    async def _propose_submitting_state(self, flow_run: FlowRun) -> None:
        """Leave a run Pending, which says as much, until its process says Running.

        Source of the contract: `prefect.workers.base.BaseWorker._propose_submitting_state`.
        """

    async def _give_worker_labels_to_flow_run(self, flow_run_id: UUID) -> None:
        """Leave these labels to `run`, which tells the server all of a run's in one request.

        Source of the contract: `prefect.workers.base.BaseWorker._give_worker_labels_to_flow_run`.
        """

    @property
    def _worker_labels(self) -> lineage.Labels:
        """What Prefect's worker says of itself on its runs."""
        return {
            lineage.WORKER: self.name,
            lineage.WORKER_TYPE: self.type,
            lineage.WORK_POOL: self.work_pool.name,
            "prefect.work-pool.id": str(self.work_pool.id),
        }

    def _free_slots(self) -> float:
        return self.limiter.available_tokens if self._limit else math.inf

    async def setup(self) -> None:
        """Connect to the server.

        Source of the contract: `prefect.workers.base.BaseWorker.setup`.
        """
        # Left last: the runs, which Prefect's worker enters after it, need it to the end.
        self._execution = await self._exit_stack.enter_async_context(Execution())
        await super().setup()
        # Prefect's worker asks its client, and so do we.
        deployments = RecentAnswers(self.client.read_deployment, fresh_seconds=DEPLOYMENT_SECONDS)
        flows = RecentAnswers(self.client.read_flow, fresh_seconds=FLOW_SECONDS)
        self.client.read_deployment = deployments.read  # type: ignore[method-assign,assignment]
        self.client.read_flow = flows.read  # type: ignore[method-assign,assignment]

    async def _submit_scheduled_flow_runs(
        self, flow_run_response: list[WorkerFlowRunResponse]
    ) -> list[FlowRun]:
        """Submit those of the runs on offer that this agent may take now.

        Prefect's worker has no public point between asking and taking.
        """
        offered = {each.flow_run.id: each for each in flow_run_response}
        runs = [
            each.flow_run
            for each in flow_run_response
            if each.flow_run.id not in self._submitting_flow_run_ids
        ]
        for admit in self._gates:
            if runs:
                runs = await admit(runs)
        self._backlog.fill([offered[run.id] for run in runs])
        return await self._submit(self._backlog.take())

    async def _take_from_backlog(self) -> bool:
        async with self._asking:
            with self._outage.bridged():
                return bool(not self._is_draining and await self._submit(self._backlog.take()))
        return False

    async def _submit(self, offered: list[WorkerFlowRunResponse]) -> list[FlowRun]:
        """Submit as many runs as there are slots and GPUs for, and keep the others in mind."""
        runs = [each.flow_run for each in offered]
        admitted = {run.id for run in await self._gpu_gate.admit(runs)} if runs else set()
        taken = await super()._submit_scheduled_flow_runs(
            [each for each in offered if each.flow_run.id in admitted]
        )
        for run_id in admitted - self._submitting_flow_run_ids:  # no slot was free
            self._gpus.cancel_reservation(run_id)
        left = [e for e in offered if e.flow_run.id not in self._submitting_flow_run_ids]
        self._backlog.keep(left)
        return taken

    def _note_taken(self, flow_run_id: UUID) -> None:
        self._pickup.taken(flow_run_id)
        self._backlog.forget(flow_run_id)

    async def _submit_run(self, flow_run: FlowRun) -> None:
        """Submit a run, and free what was kept for it if somebody else was quicker."""
        try:
            await super()._submit_run(flow_run)
        finally:
            self._gpus.cancel_reservation(flow_run.id)

    async def _read_demands(self, flow_run: FlowRun) -> Demands:
        deployment = None
        if flow_run.deployment_id:
            with contextlib.suppress(ObjectNotFound):  # Prefect's worker cancels the run
                deployment = await self.client.read_deployment(flow_run.deployment_id)
        return Demands.of(flow_run, deployment, self._work_pool)

    def _tell(self, flow_run: FlowRun, line: str) -> None:
        """Tell people about a run that waits, on its page and in the agent's own log."""
        self.get_flow_run_logger(flow_run).warning("%s: %s", self.name, line)

    async def sync_with_backend(self) -> None:
        """Tell the server that this agent lives, and learn what has changed of its pool.

        Source of the contract: `prefect.workers.base.BaseWorker.sync_with_backend`.
        """
        with self._outage.bridged():
            await super().sync_with_backend()
            self._has_met_server = True
            workers = await self.client.read_workers_for_work_pool(self._work_pool_name)
            self._has_pool.set()
            self._turns.know(each.name for each in workers if each.status == WorkerStatus.ONLINE)

    def sweep(self) -> None:
        """Remove what killed agents left in the caches."""
        self._code.sweep()
        self._environments.sweep()

    async def recover_regularly(self) -> None:
        """End the runs of this host that have lost their agent, for as long as this one lives."""
        await recover_regularly(self._attempts, self._ending, self._outage)

    async def drain(self) -> None:
        """Take no more runs, and wait until those at work have ended."""

        async def leave(_: list[FlowRun]) -> list[FlowRun]:
            return []

        self._is_draining = True
        self._gates.insert(0, leave)
        while self.limiter.borrowed_tokens:  # noqa: ASYNC110  # which tells nobody of its changes
            await anyio.sleep(DRAIN_POLL_SECONDS)

    def _prepare_environment(self, environment: Environment, modules: Sequence[str]) -> None:
        self._warm.memory.declare(environment, modules)
        self._warm.prepare(environment, process_environment(environment))

    async def listen(self) -> None:
        """Take up runs as soon as the server tells of them, for as long as the agent lives."""
        await self._has_pool.wait()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._events.follow, self.work_pool.id)
            tasks.start_soon(self._pickup.work)
            tasks.start_soon(self._prebuilding.work)

    async def keep_warm(self) -> None:
        """Have processes ready that runs are forked from, for as long as the agent lives."""
        await self._warm.work()

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> ProcessWorkerResult:
        """Run a flow in a process and wait for its end.

        Source of the contract: `prefect.workers.base.BaseWorker.run`.
        """
        server = RunServer(self.client, self._work_pool, self.get_flow_run_logger(flow_run))
        deployment = (
            await self.client.read_deployment(flow_run.deployment_id)
            if flow_run.deployment_id
            else None
        )
        due, before = flow_run.next_scheduled_start_time, marks_of(flow_run.labels)
        attempt = Attempt(flow_run_id=flow_run.id, worker=self.name, before=before)
        with (
            self.activity.running(flow_run.id, flow_run.name, due),
            self._attempts.begin(attempt) as opened,
            opened.until_taken_away(),
            self._gpus.lease(flow_run.id, opened.attempt.name) as lease,
        ):
            context = RunContext(
                attempt=opened.attempt,
                flow_run=flow_run,
                deployment=deployment,
                source=BundleSource.of(deployment) if deployment else None,
                host=self._settings.mlops_host_name,
                gpus=lease,
            )
            try:
                async with AsyncExitStack() as stack:
                    labels = await stack.enter_async_context(
                        RunLabels(
                            self.client, flow_run.id, self._worker_labels, server.logger.warning
                        )
                    )
                    labels.tell_soon(context.labels)
                    prepared = await self._preparation.prepare(
                        context, configuration, stack, server
                    )
                    if isinstance(prepared, RunContext):
                        labels.tell(prepared.labels)
                        variables = prepared.environment(self._settings, given=configuration.env)
                        configuration.env |= variables
                        limit = stack.enter_context(
                            memory_limit(prepared.memory_bytes, opened.attempt)
                        )
                        run = PreparedRun(prepared, opened, configuration, labels, limit, server)
                        return await self._supervision.run(
                            run, task_status, execution=self._execution, stock=super().run
                        )
                    await self.client.set_flow_run_state(flow_run.id, prepared, force=True)
                    self.activity.note_outcome(flow_run.id, prepared.type)
                    opened.close()
                    if task_status is not None:
                        task_status.started(0)
                    return ProcessWorkerResult(status_code=0, identifier="not-started")
            except anyio.get_cancelled_exc_class():
                # The agent is being stopped, and the run's process with it.
                with anyio.move_on_after(STOP_REPORT_SECONDS, shield=True):
                    reason = "the agent was stopped"
                    await self._supervision.conclude(server, flow_run, opened, reason)
                raise
        return ProcessWorkerResult(status_code=0, identifier="taken-away")
