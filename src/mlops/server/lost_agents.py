"""Agents that do not come back: the server ends what they left running, or lets it start again.

Agents tell the server regularly that they live, and so do the processes of their runs. A run is
given up when both have been silent for long. One whose process still speaks goes on, whatever has
become of its agent. Runs of Prefect's own workers are left alone once they run: that their worker
is gone says nothing of them.
"""

import asyncio
import datetime as dt
import logging
from collections.abc import Iterable
from typing import NamedTuple

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import LogCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
    LogFilter,
    LogFilterFlowRunId,
    LogFilterTimestamp,
    WorkerFilter,
    WorkerFilterLastHeartbeatTime,
)
from prefect.client.schemas.objects import FlowRun, StateType, Worker
from prefect.client.schemas.responses import SetStateStatus
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events.filters import (
    EventFilter,
    EventNameFilter,
    EventOccurredFilter,
    EventResourceFilter,
)
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_logger

from mlops import lineage
from mlops.lost_runs import IN_PROCESS, Fate, fate, start_again
from mlops.settings import LostAgentsSettings

# Of an agent's messages, before it counts as lost: with Prefect's 30 s that is two minutes.
MISSED_HEARTBEATS = 4
HEARTBEAT_SECONDS = 30.0  # Prefect's default; workers tell theirs
LATE_SECONDS = 30.0  # by which a round may be late before the server counts as having been away
MEMORY = dt.timedelta(days=1)  # an agent that was not seen since is not looked up
PAGE = 200  # the most that the server returns at once
RUN_HEARTBEAT = "prefect.flow-run.heartbeat"

logger = get_logger("mlops.server")


class Place(NamedTuple):
    """A worker, as a run's labels name it."""

    pool: str
    worker: str


async def end_regularly(client: PrefectClient, settings: LostAgentsSettings) -> None:
    """Look for lost agents for as long as the server lives.

    While the server is away nobody can reach it. So every agent counts as seen at the moment when
    the server has come back, from a start, a pause, or without its database.

    Args:
        client: This server.
        settings: How often to look, and how patient to be with runs.
    """
    since = _now()
    while True:
        begun = _now()
        try:
            await _end_lost(client, since, settings)
        except Exception as error:  # noqa: BLE001  # the next round may succeed
            logger.warning("lost agents could not be looked for: %s: %s", type(error), error)
            since = _now()
        await asyncio.sleep(settings.mlops_watch_seconds)
        if (_now() - begun).total_seconds() > settings.mlops_watch_seconds + LATE_SECONDS:
            since = _now()


async def _end_lost(
    client: PrefectClient, since: dt.datetime, settings: LostAgentsSettings
) -> None:
    runs = await _unfinished(client)
    pools = {place.pool for run in runs if (place := place_of(run))}
    workers = await _workers(client, pools)
    for run in runs:
        reason = lost_reason(run, workers, since, _now())
        if reason is None or await _speaks(client, run, settings.mlops_run_silence_seconds):
            continue
        current = await _unchanged(client, run)
        verdict = current and fate(current, reason, _now())
        if current and verdict:
            await _carry_out(client, current, verdict)


def place_of(run: FlowRun) -> Place | None:
    """Return which worker has taken a run, if its labels tell."""
    worker, pool = run.labels.get(lineage.WORKER), run.labels.get(lineage.WORK_POOL)
    return Place(str(pool), str(worker)) if worker and pool else None


def lost_reason(
    run: FlowRun, workers: dict[Place, Worker], since: dt.datetime, now: dt.datetime
) -> str | None:
    """Return why a run has lost its agent, for people; None: it has not.

    Args:
        run: A run that has not ended.
        workers: The workers that were seen of late.
        since: From when on agents could reach the server.
        now: By the server's clock, as the times of states and heartbeats are.
    """
    state = run.state
    place = place_of(run)
    if state is None or not run.deployment_id:
        return None
    if place is None:
        # An agent names itself as soon as it has taken a run.
        is_lost = state.is_pending() and state.name == "Pending" and run.work_queue_id
        is_old = _is_silent(max(state.timestamp, since), HEARTBEAT_SECONDS, now)
        return "the agent that took the run was lost" if is_lost and is_old else None
    ours = bool(run.labels.get(lineage.ATTEMPT))
    if run.labels.get(lineage.WORKER_TYPE) != "process" or not (ours or state.is_pending()):
        return None
    if state.is_scheduled() and not _has_missed_its_retry(run, now):
        return None
    worker = workers.get(place)
    seen = worker.last_heartbeat_time if worker else None
    interval = (worker.heartbeat_interval_seconds if worker else None) or HEARTBEAT_SECONDS
    if not _is_silent(max(seen or state.timestamp, since), interval, now):
        return None
    last = f"was last seen at {seen:%Y-%m-%d %H:%M:%S} UTC" if seen else "is not known any more"
    return f"the agent {place.worker} {last}"


def _is_silent(seen: dt.datetime, interval_seconds: float, now: dt.datetime) -> bool:
    return (now - seen).total_seconds() > MISSED_HEARTBEATS * interval_seconds


def _has_missed_its_retry(run: FlowRun, now: dt.datetime) -> bool:
    """Return whether a retry that the run's own process was to begin is long due."""
    time = run.next_scheduled_start_time
    is_own = run.empirical_policy.retry_type == IN_PROCESS
    return is_own and time is not None and _is_silent(time, HEARTBEAT_SECONDS, now)


async def _unfinished(client: PrefectClient) -> list[FlowRun]:
    """Return the runs that somebody may be at, or should be."""
    types = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    queries = (
        FlowRunFilterState(type=FlowRunFilterStateType(any_=types)),
        FlowRunFilterState(name=FlowRunFilterStateName(any_=["AwaitingRetry"])),
    )
    found: dict[object, FlowRun] = {}
    for state in queries:
        for offset in range(0, 100 * PAGE, PAGE):
            page = await client.read_flow_runs(
                flow_run_filter=FlowRunFilter(state=state),
                sort=FlowRunSort.ID_DESC,
                limit=PAGE,
                offset=offset,
            )
            found |= {run.id: run for run in page}
            if len(page) < PAGE:
                break
    return list(found.values())


async def _workers(client: PrefectClient, pools: Iterable[str]) -> dict[Place, Worker]:
    """Return the workers of some pools that were seen of late."""
    recent = WorkerFilter(last_heartbeat_time=WorkerFilterLastHeartbeatTime(after_=_now() - MEMORY))
    found: dict[Place, Worker] = {}
    for pool in pools:
        try:
            workers = await client.read_workers_for_work_pool(pool, recent, limit=PAGE)
        except ObjectNotFound:  # deleted, and its workers with it
            continue
        found |= {Place(pool, worker.name): worker for worker in workers}
    return found


async def _speaks(client: PrefectClient, run: FlowRun, silence_seconds: float) -> bool:
    """Return whether a run's own process was heard of late."""
    if run.state is None or run.state.is_pending():
        return False
    after = _now() - dt.timedelta(seconds=silence_seconds)
    logs = LogFilter(
        flow_run_id=LogFilterFlowRunId(any_=[run.id]), timestamp=LogFilterTimestamp(after_=after)
    )
    return bool(await client.read_logs(logs, limit=1)) or await has_heartbeat(client, run, after)


async def has_heartbeat(client: PrefectClient, run: FlowRun, after: dt.datetime) -> bool:
    """Return whether a run's process has told since some time that it lives."""
    events = EventFilter(
        event=EventNameFilter(name=[RUN_HEARTBEAT]),
        resource=EventResourceFilter(id=[f"prefect.flow-run.{run.id}"]),
        occurred=EventOccurredFilter(since=after, until=_now() + MEMORY),
    )
    return bool((await client.read_events(events, limit=1)).events)


async def _unchanged(client: PrefectClient, run: FlowRun) -> FlowRun | None:
    """Return the run as it is now, if it is still where it was when it was judged."""
    try:
        current = await client.read_flow_run(run.id)
    except ObjectNotFound:
        return None
    is_same = current.state_id == run.state_id and current.labels == run.labels
    return current if is_same else None


async def _carry_out(client: PrefectClient, run: FlowRun, verdict: Fate) -> None:
    state = verdict.end or verdict.next
    try:
        if verdict.end:
            # Not by force: it may be ending by itself at this moment.
            answer = await client.set_flow_run_state(run.id, verdict.end)
            if answer.status != SetStateStatus.ACCEPT:
                return
        if verdict.next:
            await start_again(client, run, verdict.next)
    except httpx.HTTPStatusError as error:
        logger.warning("flow run %s could not be ended: %s", run.id, error)
        return
    message = state.message if state else ""
    logger.warning("flow run %s: %s", run.id, message)
    line = LogCreate(
        name="mlops.server",
        level=logging.WARNING,
        message=f"{message}{'; it waits for its next start' if verdict.next else ''}",
        timestamp=_now(),
        flow_run_id=run.id,
    )
    await client.create_logs([line])


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
