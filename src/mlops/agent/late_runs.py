"""Scheduled runs that come late, after an outage or a crowd: which are still to be made.

The server makes runs of a schedule ahead of time, and only for times to come; while agents or the
server are away those that fall due wait, and afterwards all are on offer at once. What is to become
of them is the flow's to say, with `late` in its flow.yaml, which reaches us as a job variable.
"""

import asyncio
import datetime as dt
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple, get_args
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterCreatedBy,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.logging.loggers import flow_run_logger

from mlops.agent.job import job_variables
from mlops.agent.run_context import BundleSource

Policy = Literal["run_all", "run_latest", "skip"]

LATE_VARIABLE = "late"
# From when on a run counts as late; agents take runs of a schedule before they are due, and Prefect
# calls a run late after as long.
LATE = dt.timedelta(seconds=15)
SKIPPED_AFTER = dt.timedelta(minutes=5)  # with `skip`
# A run that waits for its first start, as Prefect names that.
WAITING = {"Scheduled", "Late", "AwaitingConcurrencySlot"}
ANSWER_SECONDS = 10.0  # how long an answer counts for runs that wait on, for a free slot


class Schedule(NamedTuple):
    """Which schedule of which deployment a run was made for."""

    deployment_id: UUID
    id: UUID


class LateRuns:
    """Leaves out of what is on offer the runs that came too late.

    Args:
        client: Returns the Prefect server's client.
    """

    def __init__(self, client: Callable[[], PrefectClient]) -> None:
        self._client = client
        # Runs that may be made, and until when that counts, by the event loop's clock.
        self._admitted: dict[UUID, float] = {}

    async def admit(self, runs: list[FlowRun]) -> list[FlowRun]:
        """Return the runs that are to be made; the others end, named Skipped.

        Args:
            runs: Those on offer.
        """
        now = dt.datetime.now(dt.UTC)
        clock = asyncio.get_running_loop().time()
        self._admitted = {run: until for run, until in self._admitted.items() if until > clock}
        late = [run for run in runs if run.id not in self._admitted and is_late(run, now)]
        skipped: set[UUID] = set()
        for schedule in {schedule_of(run) for run in late} - {None}:
            own = [run for run in late if schedule_of(run) == schedule]
            try:
                reasons = await self._reasons(own, now)
                skipped |= {run.id for run in own if run.id in reasons}
                for run in own:
                    if reason := reasons.get(run.id):
                        await self._skip(run, reason)
            except (httpx.HTTPStatusError, ObjectNotFound):  # decided when they are offered again
                skipped |= {run.id for run in own}
        self._admitted |= {run.id: clock + ANSWER_SECONDS for run in late if run.id not in skipped}
        return [run for run in runs if run.id not in skipped]

    async def _reasons(self, runs: list[FlowRun], now: dt.datetime) -> dict[UUID, str]:
        """Return why those runs of a schedule that are not to be made are not."""
        schedule = schedule_of(runs[0])
        if schedule is None:
            return {}
        deployment = await self._client().read_deployment(schedule.deployment_id)
        policies = {run.id: policy_of(run, deployment) for run in runs}
        if {*policies.values()} == {"run_all"}:
            return {}
        latest = await self._latest_due(schedule, min(map(due, runs)), now)
        return {
            run.id: reason
            for run in runs
            if (reason := skip_reason(policies[run.id], due(run), latest, now))
        }

    async def _latest_due(
        self, schedule: Schedule, after: dt.datetime, now: dt.datetime
    ) -> dt.datetime:
        """Return the last time that a schedule's runs were due, whatever became of that run.

        Another agent may have taken it already; both must come to the same end.
        """
        query = FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[schedule.deployment_id]),
            created_by=FlowRunFilterCreatedBy(id_=[schedule.id]),
            expected_start_time=FlowRunFilterExpectedStartTime(after_=after, before_=now),
        )
        found = await self._client().read_flow_runs(
            flow_run_filter=query, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=1
        )
        return due(found[0]) if found else after

    async def _skip(self, run: FlowRun, reason: str) -> None:
        state: State[None] = State(type=StateType.CANCELLED, name="Skipped", message=reason)
        await self._client().set_flow_run_state(run.id, state)
        flow_run_logger(run).info("skipped: %s", reason)


def schedule_of(run: FlowRun) -> Schedule | None:
    """Return the schedule that a run was made for; None: a person or another run started it."""
    if not (run.auto_scheduled and run.deployment_id and run.created_by and run.created_by.id):
        return None
    return Schedule(run.deployment_id, run.created_by.id)


def due(run: FlowRun) -> dt.datetime:
    """Return when a run of a schedule was to begin; a concurrency limit may have put it off."""
    time = run.expected_start_time or run.next_scheduled_start_time
    return time or dt.datetime.max.replace(tzinfo=dt.UTC)


def is_late(run: FlowRun, now: dt.datetime) -> bool:
    """Return whether a run is one of a schedule that waits for its first start, and too long."""
    return (
        run.auto_scheduled
        and run.run_count == 0
        and run.state_name in WAITING  # what is on offer comes without its state itself
        and now - due(run) > LATE
    )


def policy_of(run: FlowRun, deployment: DeploymentResponse) -> Policy:
    """Return what is to become of a deployment's late runs.

    Of an ordinary deployment, which no flow.yaml made, all are made, as by Prefect's own workers.
    """
    chosen = job_variables(run, deployment).get(LATE_VARIABLE)
    known: Iterable[Policy] = get_args(Policy)
    default: Policy = "run_latest" if BundleSource.of(deployment) else "run_all"
    return next((policy for policy in known if policy == chosen), default)


def skip_reason(
    policy: Policy, time: dt.datetime, latest: dt.datetime, now: dt.datetime
) -> str | None:
    """Return why a late run is not to be made, for people; None: it is.

    Args:
        policy: Of its flow.
        time: When it was due.
        latest: When the last run of its schedule was due.
        now: The time by which that is so.
    """
    if policy == "run_all":
        return None
    if time < latest:
        return f"a later run was due at {latest:%Y-%m-%d %H:%M:%S} UTC (late: {policy})"
    if policy == "skip" and now - time > SKIPPED_AFTER:
        minutes = (now - time).total_seconds() / 60
        return f"{minutes:.0f} minutes late, which is too late (late: skip)"
    return None
