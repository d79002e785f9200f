"""The end of a run: what Prefect and MLflow are told when its process is gone.

Prefect's engine reports what happens inside the flow (exceptions, time-outs), its worker a
process that fails and a cancel. Left to us is what nobody could report, a message that tells the
reason, and the MLflow runs that the flow had open.
"""

import datetime as dt
import logging
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import anyio
import anyio.to_thread
import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId, LogFilterTimestamp
from prefect.client.schemas.objects import FlowRun, Log, State, StateType
from prefect.client.schemas.sorting import LogSort
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_logger
from prefect.logging.loggers import flow_run_logger
from prefect.states import Cancelled, Crashed, Failed, Running

from mlops import lineage
from mlops.agent.attempts import Attempt, OpenAttempt
from mlops.agent.memory_limit import MemoryVerdict
from mlops.agent.run_links import links_to_runs
from mlops.agent.run_processes import end_processes
from mlops.errors import MlopsError
from mlops.lost_runs import fate, is_waiting_in_process, release_retries, start_again
from mlops.mlflow_api import LoggedRun, MlflowApi
from mlops.settings import MlflowSettings

# What Prefect's client raises when the server does not answer, or something else in its place.
NO_ANSWER = (httpx.HTTPError, ValueError)
MLFLOW_TIMEOUT_SECONDS = 10.0  # the run holds its place on this agent meanwhile
MLFLOW_STATUS = {
    StateType.COMPLETED: "FINISHED",  # of runs below each other MLflow's exit hook ends only one
    StateType.FAILED: "FAILED",
    StateType.CRASHED: "KILLED",
    StateType.CANCELLED: "KILLED",
}
# How Prefect's worker says that a process failed; the engine's own words never begin so.
# Source: `prefect.runner._flow_run_executor.FlowRunExecutor.submit`.
WORKERS_WORDS = "Process exited with status code"
# The engine's last line, whatever the state; on the flow's clock, as MLflow's times are.
# Source: `prefect.flow_engine`, where a run's context ends.
ENGINES_LAST_WORDS = re.compile("^Finished in state")
# What it makes of the SIGTERM by which Prefect's worker ends the process of an agent that stops.
ENGINES_STOP_WORDS = "Execution was aborted by a termination signal."
# What it makes of any `sys.exit`; the code is in the traceback that it logs.
ENGINES_EXIT_WORDS = "Execution was aborted by Python system exit call."
SYSTEM_EXIT = re.compile(r"^SystemExit(?:: (.*))?$", re.MULTILINE)
# How Python, NumPy, PyTorch and C++ say that they are refused memory, and threads that they are
# refused a stack; CUDA's want of memory on a GPU is none of the run's limit.
REFUSED_MEMORY = re.compile(
    r"(?<!OutOf)MemoryError|Cannot allocate memory|[Uu]nable to allocate|can't allocate memory"
    "|bad_alloc|can't start new thread"
)
# Prefect's worker looks 3 s after its signal whether the process is gone.
CANCEL_TRIES = 20
CANCEL_RETRY_SECONDS = 0.5
LOG_PAGE = 200
LOG_TRIES = 10
LOG_RETRY_SECONDS = 0.3

logger = get_logger("mlops.agent")


@dataclass(frozen=True)
class ProcessEnd:
    """How a process ended.

    Args:
        status_code: Its exit code, or the negative number of the signal that killed it.
        out_of_memory: The kernel was killing for want of memory at that time.
        memory: What its limit has to do with that; None: it had none.
        may_have_logged: Whether there may be MLflow runs of it.
        fault: What else is known to have ended it.
    """

    status_code: int
    out_of_memory: bool = False
    memory: MemoryVerdict | None = None
    may_have_logged: bool = True
    fault: str = ""

    def __str__(self) -> str:
        if self.fault:
            return self.fault
        limit = self.memory
        if limit and (limit.is_exceeded or (limit.is_near and self.status_code < 0)):
            return f"out of memory: the run exceeded its limit of {limit.limit}"
        if self.status_code >= 0:
            return f"the flow's process ended with exit code {self.status_code}"
        if self.status_code == -signal.SIGKILL and self.out_of_memory:
            return "out of memory: the kernel killed the flow's process"
        try:
            name = signal.Signals(-self.status_code).name
        except ValueError:
            name = f"signal {-self.status_code}"
        advice = "; want of memory is the usual cause" if name == "SIGKILL" else ""
        return f"the flow's process was killed by {name}{advice}"


class RunEnding:
    """Brings attempts to their end.

    Args:
        settings: The MLflow server.
    """

    def __init__(self, settings: MlflowSettings) -> None:
        self._mlflow = MlflowApi(settings, timeout_seconds=MLFLOW_TIMEOUT_SECONDS)
        self._told: set[str] = set()  # attempts whose runs' logs say that MLflow is away

    async def conclude(
        self, client: PrefectClient, opened: OpenAttempt, reason: str | ProcessEnd
    ) -> StateType | None:
        """Tell Prefect and MLflow that an attempt's process is gone, and close the attempt.

        The attempt stays open when MLflow cannot be told now.

        Args:
            client: The Prefect server.
            opened: The attempt.
            reason: How the process ended; as text: why nobody could watch it to its end, after
                which the run starts again while it has retries left.

        Returns:
            The state in which the run is left; None: another attempt has it, or it is deleted.

        Raises:
            httpx.HTTPError: Prefect does not answer; the attempt stays open.
            ValueError: What answers is not Prefect; likewise.
        """
        attempt = opened.attempt
        flow_run: FlowRun | None = None
        ended: StateType | None = None
        try:
            flow_run = await client.read_flow_run(attempt.flow_run_id)
            ended = await _tell_prefect(client, flow_run, attempt, reason)
        except ObjectNotFound:  # deleted in the UI
            flow_run = None
            await anyio.to_thread.run_sync(end_processes, attempt)
        status = MLFLOW_STATUS.get(ended) if ended else "KILLED"
        may_have_logged = not isinstance(reason, ProcessEnd) or reason.may_have_logged
        if status is not None and attempt.pid is not None and may_have_logged:
            try:
                runs = await self._end_mlflow_runs(client, flow_run, attempt, status)
                if flow_run and runs:
                    await self._complete_tags(flow_run, runs)
                    await client.create_artifact(links_to_runs(flow_run, runs))
            except MlopsError as error:
                self._tell_once(flow_run, attempt, error)
                return ended
        opened.close()
        return ended

    def _tell_once(self, flow_run: FlowRun | None, attempt: Attempt, error: MlopsError) -> None:
        if attempt.name not in self._told:
            self._told.add(attempt.name)
            _logger(flow_run).warning(
                "its open MLflow runs could not be ended and will be, later: %s", error.message
            )

    async def _end_mlflow_runs(
        self, client: PrefectClient, flow_run: FlowRun | None, attempt: Attempt, status: str
    ) -> list[LoggedRun]:
        """End what is open of an attempt's MLflow runs, and return all of them."""
        find = partial(self._mlflow.logged_runs, lineage.ATTEMPT, attempt.name)
        runs: list[LoggedRun] = await anyio.to_thread.run_sync(find)
        unfinished = [run for run in runs if run.is_open]
        ended_well = [run for run in runs if run.status == "FINISHED"]
        if ended_well and status != "FINISHED" and flow_run:
            # At the interpreter's exit MLflow itself ends what is open as FINISHED.
            engine_ended_ms = await _engine_ended_ms(client, flow_run, attempt)
            unfinished += [run for run in ended_well if run.ended_after(engine_ended_ms)]
        for run in unfinished:
            end: Callable[[], None] = partial(self._mlflow.end_run, run, status)
            await anyio.to_thread.run_sync(end)
        if unfinished:
            _logger(flow_run).info(
                "MLflow runs that were open are %s now: %d", status, len(unfinished)
            )
        return runs

    async def _complete_tags(self, flow_run: FlowRun, runs: list[LoggedRun]) -> None:
        """Put on MLflow runs what became known of the flow run when they were open already.

        Those that this flow run only resumed tell by their tags where they came from.
        """
        facts = {
            name: str(value)
            for name, value in flow_run.labels.items()
            if name.startswith(lineage.PREFIX)
        }
        for run in runs:
            if run.tags.get(lineage.FLOW_RUN) != str(flow_run.id):
                continue
            if missing := {name: facts[name] for name in facts.keys() - run.tags.keys()}:
                await anyio.to_thread.run_sync(self._mlflow.set_tags, run, missing)


def _logger(flow_run: FlowRun | None) -> logging.Logger | logging.LoggerAdapter[logging.Logger]:
    """Return where to tell what becomes of an attempt: its run's log, while there is a run."""
    return flow_run_logger(flow_run) if flow_run else logger


async def _tell_prefect(
    client: PrefectClient, flow_run: FlowRun, attempt: Attempt, reason: str | ProcessEnd
) -> StateType | None:
    """Bring a flow run to its end; return the state's type; None: it is another attempt's."""
    if not attempt.holds(flow_run.labels):
        await anyio.to_thread.run_sync(end_processes, attempt)
        return None
    if isinstance(reason, str) and (ended := await _tell_loss(client, flow_run, attempt, reason)):
        return ended
    flow_run = await _after_cancellation(client, flow_run)
    await release_retries(client, flow_run)
    state = (
        memory_state(flow_run, reason)
        or _final_state(flow_run, reason)
        or await _exit_state(client, flow_run, attempt)
    )
    if state is not None:
        await client.set_flow_run_state(flow_run.id, state, force=True)
    state = state or flow_run.state
    if state and (state.is_crashed() or state.is_cancelled()):
        await anyio.to_thread.run_sync(end_processes, attempt)
    return state.type if state else None


async def _after_cancellation(client: PrefectClient, flow_run: FlowRun) -> FlowRun:
    """Let Prefect's worker end a cancelled run: it has hooks to run first.

    Returns:
        The run as it is then.
    """
    for _ in range(CANCEL_TRIES):
        if not (flow_run.state and flow_run.state.is_cancelling()):
            break
        await anyio.sleep(CANCEL_RETRY_SECONDS)
        flow_run = await client.read_flow_run(flow_run.id)
    return flow_run


async def _tell_loss(
    client: PrefectClient, flow_run: FlowRun, attempt: Attempt, reason: str
) -> StateType | None:
    """End an attempt that nobody watched to its end, and return its end; None: it had one.

    The run itself may be waiting for its next attempt by then.
    """
    state = flow_run.state
    if state and state.is_crashed() and state.message == ENGINES_STOP_WORDS:
        flow_run = flow_run.model_copy(update={"state": Running()})
    lost = fate(flow_run, reason, dt.datetime.now(dt.UTC))
    if lost is None:
        return None
    if lost.end:
        await client.set_flow_run_state(flow_run.id, lost.end, force=True)
    await anyio.to_thread.run_sync(end_processes, attempt)
    if lost.next:
        await start_again(client, flow_run, lost.next)
    return lost.end.type if lost.end else StateType.CRASHED


def memory_state(flow_run: FlowRun, reason: str | ProcessEnd) -> State[None] | None:
    """Return a state that tells the limit of memory, where the engine's tells its consequence.

    Args:
        flow_run: As the server has it.
        reason: Why its process is gone.

    Returns:
        None where memory has nothing to do with it.
    """
    state = flow_run.state
    limit = reason.memory if isinstance(reason, ProcessEnd) else None
    if state is None or limit is None:
        return None
    message = state.message or ""
    if state.is_failed() and (limit.is_exceeded or REFUSED_MEMORY.search(message)):
        told = f"out of memory: the run exceeded its limit of {limit.limit}: {message}"
        return Failed(name=state.name, message=told)
    if state.is_crashed() and limit.is_exceeded:
        return Crashed(message=str(reason))
    return None


def _final_state(flow_run: FlowRun, reason: str | ProcessEnd) -> State[None] | None:
    """Return the state that a run without a process should have instead of its own, if any."""
    state = flow_run.state
    if state is None:
        return None
    if state.is_cancelling():
        return Cancelled(message="cancelled, and its process is gone")
    # A retry that was to happen in the same process will never be picked up by another.
    untold = state.is_running() or state.is_pending() or is_waiting_in_process(flow_run)
    if not untold and not _is_told_by_worker(state):
        return None
    when = "" if flow_run.start_time else " before the flow began"
    return Crashed(message=f"{reason}{when}")


def _is_told_by_worker(state: State) -> bool:
    return state.is_crashed() and (state.message or "").startswith(WORKERS_WORDS)


async def _exit_state(
    client: PrefectClient, flow_run: FlowRun, attempt: Attempt
) -> State[None] | None:
    """Return a state that tells what a flow gave to `sys.exit`, which the engine's does not."""
    state = flow_run.state
    if state is None or not state.is_crashed() or state.message != ENGINES_EXIT_WORDS:
        return None
    log = await _find_log(client, attempt, SYSTEM_EXIT)
    match = SYSTEM_EXIT.search(log.message) if log else None
    return Crashed(message=f"the flow called sys.exit({match[1] or ''})") if match else None


async def _engine_ended_ms(
    client: PrefectClient, flow_run: FlowRun, attempt: Attempt
) -> float | None:
    """Return when the engine was done with the flow, in milliseconds since the epoch.

    None if it never came so far.
    """
    if log := await _find_log(client, attempt, ENGINES_LAST_WORDS):
        return log.timestamp.timestamp() * 1000
    state = flow_run.state
    if state and state.is_final() and not _is_told_by_worker(state):
        # The run does not log to Prefect, or its words are late: by the server's clock.
        return state.timestamp.timestamp() * 1000
    return None


async def _find_log(
    client: PrefectClient, attempt: Attempt, pattern: re.Pattern[str]
) -> Log | None:
    """Return the newest line of the flow itself that a pattern is found in, or None.

    Its tasks log below the same flow run, and end in the engine's words too. The process sends its
    last lines when it exits, and the server stores them a moment later.
    """
    query = LogFilter(
        flow_run_id=LogFilterFlowRunId(any_=[attempt.flow_run_id]),
        timestamp=LogFilterTimestamp(after_=attempt.begun),
    )
    for _ in range(LOG_TRIES):
        logs = await client.read_logs(query, limit=LOG_PAGE, sort=LogSort.TIMESTAMP_DESC)
        for log in logs:
            if log.task_run_id is None and pattern.search(log.message):
                return log
        await anyio.sleep(LOG_RETRY_SECONDS)
    return None
