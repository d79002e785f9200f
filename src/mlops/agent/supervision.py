"""A run's process from its start to its end, which is told to Prefect and MLflow."""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessJobConfiguration, ProcessWorkerResult

from mlops.agent import flow_process
from mlops.agent.activity import Activity
from mlops.agent.attempts import OpenAttempt
from mlops.agent.environments import Environment, EnvironmentCache
from mlops.agent.execution import Execution
from mlops.agent.flow_starter import FlowStarter
from mlops.agent.job import AgentJobConfiguration, settings_environment
from mlops.agent.memory_limit import MemoryLimit
from mlops.agent.out_of_memory import OutOfMemoryWatch
from mlops.agent.preparation import CANCEL_POLL_SECONDS, RunServer
from mlops.agent.run_context import RunContext, own_environment
from mlops.agent.run_ending import NO_ANSWER, ProcessEnd, RunEnding
from mlops.agent.run_labels import RunLabels
from mlops.agent.run_processes import end_processes
from mlops.agent.run_report import REPORT_FILE, RunReport
from mlops.agent.warm_pool import WarmPool

LEFTOVERS_SECONDS = 2.0

StockRun = Callable[
    [FlowRun, ProcessJobConfiguration, anyio.abc.TaskStatus[int]], Awaitable[ProcessWorkerResult]
]


@dataclass(frozen=True)
class PreparedRun:
    """A run whose process can be started.

    Args:
        context: What it is told about itself.
        opened: Its attempt.
        configuration: Prefect's, with command, folder and variables.
        labels: Its labels in Prefect.
        limit: Of its memory; None: no limit.
        server: Where it is told of.
    """

    context: RunContext
    opened: OpenAttempt
    configuration: ProcessJobConfiguration
    labels: RunLabels
    limit: MemoryLimit | None
    server: RunServer


class Supervision:
    """Watches over the processes of an agent's runs.

    Args:
        ending: Tells how they ended.
        environments: Are judged by how runs in them end.
        warm: The processes that they are forked from.
        activity: Counts them.
    """

    def __init__(
        self,
        ending: RunEnding,
        environments: EnvironmentCache,
        warm: WarmPool,
        activity: Activity,
    ) -> None:
        self._ending = ending
        self._environments = environments
        self._warm = warm
        self._activity = activity

    async def run(
        self,
        run: PreparedRun,
        task_status: anyio.abc.TaskStatus[int] | None,
        *,
        execution: Execution,
        stock: StockRun,
    ) -> ProcessWorkerResult:
        """Leave the process to Prefect, and the run's end to nobody else.

        Args:
            run: The run.
            task_status: Is given the process's number.
            execution: Runs processes that we start.
            stock: Runs all others, as Prefect's worker does.
        """
        context, configuration, limit = run.context, run.configuration, run.limit
        flow_run = context.flow_run
        memory = OutOfMemoryWatch()
        configuration.env |= limit.environment if limit else {}
        watchers: list[asyncio.Task[None]] = []

        async def watch(pid: int) -> None:
            await memory.watch(pid)
            await anyio.sleep(LEFTOVERS_SECONDS)
            await self._end_leftovers(run)

        def notice(pid: int) -> None:
            run.opened.note_process(pid)
            self._activity.note_process(flow_run.id, pid)
            watchers.append(asyncio.create_task(watch(pid)))
            if limit:
                limit.apply(pid)
                watchers.append(asyncio.create_task(limit.watch(pid)))

        noticed = _StartNotice(notice, task_status)
        try:
            result = await (
                self._run_in_environment(run, configuration, context.packages, noticed, execution)
                if context.packages and isinstance(configuration, AgentJobConfiguration)
                else stock(flow_run, configuration, noticed)
            )
        finally:
            for watcher in watchers:
                watcher.cancel()
        report = RunReport.read(_report_file(configuration))
        if context.packages and self._warm.memory.learn(context.packages, report.modules):
            self._warm.refresh(context.packages)
        await run.labels.told()
        end = ProcessEnd(
            result.status_code,
            memory.struck,
            limit.verdict if limit else None,
            may_have_logged=report.may_have_logged,
            fault=await self._environment_fault(run, result.status_code),
        )
        await self.conclude(run.server, flow_run, run.opened, end)
        return result

    async def _environment_fault(self, run: PreparedRun, status_code: int) -> str:
        """Say in the run's log, and return in one line, if its environment is what failed it."""
        if run.context.packages is None:
            return ""
        judge = partial(self._environments.judge, run.context.packages, status_code)
        fault = await anyio.to_thread.run_sync(judge)
        if not fault:
            return ""
        run.server.logger.error("%s", fault)
        return f"{fault.splitlines()[0]} (see the run's log)"

    async def _run_in_environment(
        self,
        run: PreparedRun,
        configuration: AgentJobConfiguration,
        environment: Environment,
        task_status: anyio.abc.TaskStatus[int],
        execution: Execution,
    ) -> ProcessWorkerResult:
        """Run a flow of ours, from a warm process if there is one."""
        flow_run = run.context.flow_run
        configuration.env[flow_process.REPORT_VARIABLE] = str(_report_file(configuration))
        warm = self._warm.want(environment, process_environment(environment))
        return await execution.run(
            flow_run,
            lambda channel: FlowStarter(
                configuration,
                warm,
                self._warm,
                channel,
                run.server.logger.info,
                note_start=partial(self._activity.note_start, flow_run.id),
            ),
            task_status,
        )

    async def _end_leftovers(self, run: PreparedRun) -> None:
        """End the children of a process that is gone, unless its flow has completed.

        Prefect's worker waits until the last of them lets go of the output that it reads: a run
        that was killed would stay Running as long.
        """
        while True:
            with contextlib.suppress(*NO_ANSWER):  # asked again soon
                if not await _has_completed(run):
                    await anyio.to_thread.run_sync(end_processes, run.opened.attempt)
                return
            await anyio.sleep(CANCEL_POLL_SECONDS)

    async def conclude(
        self, server: RunServer, flow_run: FlowRun, opened: OpenAttempt, reason: str | ProcessEnd
    ) -> None:
        """Tell how a run's process ended; later, if the server does not answer now.

        Args:
            server: Whom to tell.
            flow_run: The run.
            opened: Its attempt.
            reason: Why its process is gone.
        """
        try:
            ended = await self._ending.conclude(server.client, opened, reason)
            self._activity.note_outcome(flow_run.id, ended)
        except NO_ANSWER as error:
            opened.note_end(f"{reason}, while the server was away")
            server.logger.warning(
                "the run's end could not be reported and will be, later: %s", error
            )


async def _has_completed(run: PreparedRun) -> bool:
    try:
        state = (await run.server.client.read_flow_run(run.context.flow_run.id)).state
    except ObjectNotFound:  # deleted in the UI
        return False
    return state is not None and state.is_completed()


def _report_file(configuration: ProcessJobConfiguration) -> Path:
    return Path(configuration.working_dir or "").parent / REPORT_FILE


def process_environment(environment: Environment) -> dict[str, str]:
    """Return what a process in an environment finds set, without what is a run's own."""
    variables = {**os.environ, **own_environment(environment), **settings_environment()}
    return {name: value for name, value in variables.items() if value is not None}


class _StartNotice:
    """Prefect's notice that a run's process was started, overheard.

    Args:
        notice: Is given the process's number.
        task_status: To whom the notice goes.
    """

    def __init__(
        self, notice: Callable[[int], None], task_status: anyio.abc.TaskStatus[int] | None
    ) -> None:
        self._notice = notice
        self._task_status = task_status

    def started(self, value: Any = None) -> None:
        """Pass the notice on."""
        self._notice(value)
        if self._task_status is not None:
            self._task_status.started(value)
