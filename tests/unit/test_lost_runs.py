"""What becomes of lost runs; that the states are taken so is for the embedded tests."""

import datetime as dt
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, FlowRunPolicy, State, StateType, Worker
from prefect.states import AwaitingRetry, Cancelling, Completed, Pending, Running, Scheduled

from mlops import lineage
from mlops.agent.attempts import Attempt, marks_of
from mlops.agent.recovery import is_taken_away
from mlops.lost_runs import START_LIMIT, fate
from mlops.server.lost_agents import Place, lost_reason

NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
LONG_AGO = NOW - dt.timedelta(hours=1)
OURS = {
    lineage.WORKER: "agent-1",
    lineage.WORK_POOL: "pool",
    lineage.WORKER_TYPE: "process",
    lineage.ATTEMPT: "first",
}


BEFORE = {lineage.WORKER: "another", lineage.ATTEMPT: "earlier"}


def run(state: State[Any], *, retries: int = 0, **fields: Any) -> FlowRun:
    policy = FlowRunPolicy(
        retries=retries, retry_delay=60, retry_type=fields.pop("retry_type", None)
    )
    state.timestamp = LONG_AGO
    known = {"deployment_id": uuid4(), "work_queue_id": uuid4(), "run_count": 1, "labels": OURS}
    return FlowRun(flow_id=uuid4(), state=state, empirical_policy=policy, **known | fields)


def names(lost: FlowRun) -> tuple[str | None, str | None]:
    """Return the names of the states that a run is given."""
    end, after = fate(lost, "lost", NOW) or (None, None)
    return end.name if end else None, after.name if after else None


@pytest.mark.parametrize(
    ("lost", "expected"),
    [
        (run(Running()), ("Crashed", None)),
        (run(Running(), retries=1), ("Crashed", "AwaitingRetry")),
        (run(Running(), retries=1, run_count=2), ("Crashed", None)),
        (run(Running(), retries=1, deployment_id=None), ("Crashed", None)),
        (run(Pending(), run_count=0), (None, "Scheduled")),
        (run(Pending(), deployment_id=None), ("Crashed", None)),
        (run(Pending(), labels={lineage.LOST_STARTS: START_LIMIT}), ("Crashed", None)),
        (run(Cancelling(), retries=1), ("Cancelled", None)),
        (run(AwaitingRetry(), retries=1, retry_type="in_process"), ("Crashed", "AwaitingRetry")),
        (run(AwaitingRetry(), retries=1, retry_type="reschedule"), (None, None)),
        (run(Scheduled()), (None, None)),
        (run(Completed()), (None, None)),
    ],
)
def test_fate_follows_the_state_and_what_is_left_of_the_retries(
    lost: FlowRun, expected: tuple[str | None, str | None]
) -> None:
    """A run that ran crashes and is retried, one that did not begin starts again, others stay."""
    assert names(lost) == expected


def test_retry_waits_for_its_delay() -> None:
    """A retry's time counts from the loss, or is the one that the run's process had waited for."""
    lost = fate(run(Running(), retries=2), "lost", NOW)
    assert lost
    assert lost.end
    assert lost.end.message == "lost before the flow began"
    assert lost.next
    assert lost.next.state_details.scheduled_time == NOW + dt.timedelta(seconds=60)
    assert lost.next.message == "lost; retry 1 of 2"
    later = NOW + dt.timedelta(hours=2)
    waiting = run(
        AwaitingRetry(), retries=1, retry_type="in_process", next_scheduled_start_time=later
    )
    lost = fate(waiting, "lost", NOW)
    assert lost
    assert lost.next
    assert lost.next.state_details.scheduled_time == later


@pytest.mark.parametrize(
    ("current", "expected"),
    [
        (run(Running()), False),
        (run(Pending(), labels=BEFORE), False),  # which its agent has just taken
        (run(Running(), labels=BEFORE | {lineage.WORKER: "prefects"}), True),
        (run(Completed()), False),
        (run(State(type=StateType.CRASHED)), True),
        (run(State(type=StateType.CANCELLED)), True),
        (run(Scheduled(), labels=OURS | {lineage.ATTEMPT: "lost", lineage.WORKER: ""}), True),
        (run(Running(), labels=OURS | {lineage.ATTEMPT: "second"}), True),
    ],
)
def test_run_that_others_have_ended_or_taken_is_known(current: FlowRun, expected: bool) -> None:
    """A process may go on while the run is its attempt's, and has not been ended from outside."""
    attempt = Attempt(
        name="first", flow_run_id=current.id, worker="agent-1", before=marks_of(BEFORE)
    )
    assert is_taken_away(current, attempt) == expected


def worker(seconds_ago: float, interval: int | None = None) -> Worker:
    return Worker(
        name="agent-1",
        work_pool_id=uuid4(),
        last_heartbeat_time=NOW - dt.timedelta(seconds=seconds_ago),
        heartbeat_interval_seconds=interval,
    )


PREFECTS = {name: value for name, value in OURS.items() if name != lineage.ATTEMPT}


@pytest.mark.parametrize(
    ("judged", "seen", "up_seconds", "expected"),
    [
        (run(Running()), worker(119), 3600, False),
        (run(Running()), worker(121), 3600, True),
        (run(Running()), worker(5, interval=1), 3600, True),
        (run(Running()), worker(3600), 119, False),  # the server was away itself
        (run(Running()), None, 3600, True),  # deleted, or not seen for a day
        (run(Cancelling()), worker(121), 3600, True),
        (run(Pending()), worker(121), 3600, True),
        (run(Running(), labels={}), worker(121), 3600, False),  # not started by any worker
        (run(Running(), labels=PREFECTS), worker(3600), 3600, False),
        (run(Pending(), labels=PREFECTS), worker(3600), 3600, True),
        (run(Pending(), labels=PREFECTS | {lineage.WORKER_TYPE: "kubernetes"}), None, 3600, False),
        (run(Pending(), labels={}), None, 3600, True),
        (run(Pending(), labels=OURS | {lineage.WORKER: ""}), None, 3600, True),
        (run(Pending(name="Submitting"), labels={}), None, 3600, False),
        (run(AwaitingRetry(), retry_type="reschedule"), None, 3600, False),
        (
            run(AwaitingRetry(), retry_type="in_process", next_scheduled_start_time=NOW),
            *(None, 3600, False),
        ),
        (
            run(AwaitingRetry(), retry_type="in_process", next_scheduled_start_time=LONG_AGO),
            *(None, 3600, True),
        ),
    ],
)
def test_agent_is_lost_when_it_missed_four_of_its_own_heartbeats(
    judged: FlowRun, seen: Worker | None, up_seconds: float, expected: bool
) -> None:
    """And none that could have come: runs of Prefect's own workers are given up only unstarted."""
    workers = {Place("pool", "agent-1"): seen} if seen else {}
    since = NOW - dt.timedelta(seconds=up_seconds)
    assert (lost_reason(judged, workers, since, NOW) is not None) == expected
