"""What becomes of a flow run whose process is lost: decided here, for agents and for the server.

Prefect retries a run that failed, never one that crashed. Here a run that crashed because its agent
was killed, stopped or cut off starts again while it has retries left; one that had not begun to run
starts again in any case.
"""

import datetime as dt
from typing import NamedTuple

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import AwaitingRetry, Cancelled, Crashed, Scheduled

from mlops import lineage

# Of starts that came to nothing: what ends its agent each time must not do so for ever.
START_LIMIT = 5
IN_PROCESS = "in_process"


class Fate(NamedTuple):
    """The states that a lost run is given, one after the other.

    Args:
        end: That of this attempt; None: it never began, and leaves nothing to end.
        next: With which the run waits for an agent again; None: it does not.
    """

    end: State[None] | None
    next: State[None] | None = None


def is_waiting_in_process(flow_run: FlowRun) -> bool:
    """Return whether a run waits for a retry in its own process, and is given to no other.

    Source: get-runs-from-worker-queues.sql of Prefect's server.
    """
    state = flow_run.state
    policy = flow_run.empirical_policy
    return state is not None and state.is_scheduled() and policy.retry_type == IN_PROCESS


def fate(flow_run: FlowRun, reason: str, now: dt.datetime) -> Fate | None:
    """Decide what becomes of a run whose process is lost; None: it is in nobody's hands.

    Args:
        flow_run: The run, as it is now.
        reason: Why its process is lost, for people.
        now: From when a retry's delay counts.
    """
    state = flow_run.state
    if state is None:
        return None
    if state.is_cancelling():
        return Fate(Cancelled(message="cancelled, and its process is gone"))
    when = "" if flow_run.start_time else " before the flow began"
    if state.is_pending() and flow_run.deployment_id and _lost_starts(flow_run) < START_LIMIT:
        again: State[None] = Scheduled(
            scheduled_time=now, message=f"{reason}{when}; it starts again"
        )
        return Fate(None, again)
    if not (state.is_pending() or state.is_running() or is_waiting_in_process(flow_run)):
        return None
    crash: State[None] = Crashed(message=f"{reason}{when}")
    return Fate(crash, None if state.is_pending() else _retry(flow_run, reason, now))


def _retry(flow_run: FlowRun, reason: str, now: dt.datetime) -> State[None] | None:
    """Return the state in which a run waits for its next retry, if it has one left.

    Source of the count: `RetryFailedFlows` of Prefect's server.
    """
    policy = flow_run.empirical_policy
    if not flow_run.deployment_id or flow_run.run_count > (policy.retries or 0):
        return None
    time = now + dt.timedelta(seconds=policy.retry_delay or 0)
    if is_waiting_in_process(flow_run) and flow_run.next_scheduled_start_time:
        time = max(now, flow_run.next_scheduled_start_time)
    return AwaitingRetry(
        scheduled_time=time,
        message=f"{reason}; retry {flow_run.run_count} of {policy.retries}",
    )


def _lost_starts(flow_run: FlowRun) -> int:
    count = flow_run.labels.get(lineage.LOST_STARTS, 0)
    return count if isinstance(count, int) else 0


async def start_again(client: PrefectClient, flow_run: FlowRun, state: State[None]) -> None:
    """Let agents take up a run whose attempt is over.

    Args:
        client: The Prefect server.
        flow_run: The run, as it was before its attempt ended.
        state: The one that `fate` names.

    Raises:
        httpx.HTTPError: The server does not answer.
    """
    # Nothing that is left of the lost attempt may take the next one for its own.
    now = dt.datetime.now(dt.UTC).isoformat()
    labels: lineage.Labels = {lineage.ATTEMPT: f"lost {now}", lineage.WORKER: ""}
    if flow_run.state and flow_run.state.is_pending():
        labels[lineage.LOST_STARTS] = _lost_starts(flow_run) + 1
    await client.update_flow_run_labels(flow_run.id, labels)
    await client.request(
        "PATCH",
        "/flow_runs/{id}",
        path_params={"id": flow_run.id},
        # Of a waiting run that has a process the server leaves the cancel to that.
        json={"infrastructure_pid": None},
    )
    await release_retries(client, flow_run)
    await client.set_flow_run_state(flow_run.id, state)


async def release_retries(client: PrefectClient, flow_run: FlowRun) -> None:
    """Let agents take up the run when it is retried.

    The server keeps a run that was once retried by its own process for that process, and the
    button in its UI, which forces the state, leaves that as it is: nobody would take it up.
    Mended there for retries that are used up: https://github.com/PrefectHQ/prefect/issues/17913
    """
    policy = flow_run.empirical_policy
    if policy.retry_type == IN_PROCESS:
        policy = policy.model_copy(update={"retry_type": "reschedule"})
        await client.update_flow_run(flow_run.id, empirical_policy=policy)
