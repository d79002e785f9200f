"""What Prefect needs around a run's process, shared by all runs of this agent.

Prefect's worker makes all of it anew for each run: a client, a socket for control, a subscription
to cancellations. That is a good part of a short run's time, and of the server's work.
"""

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Self

import anyio
from anyio.abc import TaskStatus
from prefect.client.schemas.objects import FlowRun
from prefect.flows import load_flow_from_flow_run
from prefect.runner._control_channel import ControlChannel  # what Prefect's own worker uses
from prefect.runner._flow_run_executor import (
    FlowRunExecutionResult,
    FlowRunExecutorContext,
    ProcessStarter,
)
from prefect.runner._process_manager import ProcessHandle
from prefect.workers.process import ProcessWorkerResult


@dataclass
class _Generation:
    """A context with the number of runs in it."""

    context: FlowRunExecutorContext
    stop: anyio.Event
    runs: int = 0

    @property
    def hears_cancellations(self) -> bool:
        """Whether its subscription stands; once lost it only asks now and then, for ever."""
        return self.context._observer._polling_task is None  # noqa: SLF001


class Execution:
    """Runs processes as Prefect's worker does.

    Source: `prefect.workers.process.ProcessWorker.run`.
    """

    def __init__(self) -> None:
        self._tasks = anyio.create_task_group()
        self._lock = anyio.Lock()
        self._current: _Generation | None = None

    async def __aenter__(self) -> Self:
        """Be ready for runs."""
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        """End what was shared; no run is left."""
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(None, None, None)

    async def run(
        self,
        flow_run: FlowRun,
        make_starter: Callable[[ControlChannel], ProcessStarter],
        task_status: TaskStatus[int],
    ) -> ProcessWorkerResult:
        """Start a run's process, and wait for its end.

        Args:
            flow_run: The run.
            make_starter: Makes what starts the process, with the channel for control.
            task_status: Is given the process's number.

        Raises:
            RuntimeError: It could not be started.
        """
        execution: FlowRunExecutionResult | None = None
        async with self._generation() as context:
            executor = context.create_executor(
                flow_run,
                make_starter(context.control_channel),
                resolve_flow=load_flow_from_flow_run,
                propose_submitting=False,
            )

            async def execute(*, task_status: TaskStatus[ProcessHandle]) -> None:
                nonlocal execution
                execution = await executor.submit(task_status=task_status)

            async with anyio.create_task_group() as tasks:
                handle: ProcessHandle = await tasks.start(execute)
                task_status.started(handle.pid or 0)
        if execution is None or execution.status_code is None:
            raise RuntimeError("the flow's process could not be started")
        return ProcessWorkerResult(
            status_code=execution.status_code, identifier=str(execution.handle.pid)
        )

    @contextlib.asynccontextmanager
    async def _generation(self) -> AsyncIterator[FlowRunExecutorContext]:
        async with self._lock:
            if self._current is None or not self._current.hears_cancellations:
                former = self._current
                self._current = await self._tasks.start(_live)
                if former and not former.runs:
                    former.stop.set()
            generation = self._current
            generation.runs += 1
        try:
            yield generation.context
        finally:
            generation.runs -= 1
            if generation is not self._current and not generation.runs:
                generation.stop.set()


async def _live(*, task_status: TaskStatus[_Generation]) -> None:
    """Keep a context open; it must be left by the task that has entered it."""
    stop = anyio.Event()
    async with FlowRunExecutorContext() as context:
        task_status.started(_Generation(context, stop))
        await stop.wait()
