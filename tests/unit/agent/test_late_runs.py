import datetime as dt
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse

from mlops.agent.late_runs import Policy, is_late, policy_of, schedule_of, skip_reason
from mlops.bundles import pull_steps

NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
MINUTE = dt.timedelta(minutes=1)


def scheduled(**fields: Any) -> FlowRun:
    known = {
        "flow_id": uuid4(),
        "deployment_id": uuid4(),
        "state_name": "Late",
        "auto_scheduled": True,
        "created_by": {"id": uuid4(), "type": "SCHEDULE"},
        "expected_start_time": NOW - MINUTE,
    }
    return FlowRun(**known | fields)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, True),
        ({"state_name": "AwaitingConcurrencySlot"}, True),
        ({"auto_scheduled": False}, False),
        ({"expected_start_time": NOW - dt.timedelta(seconds=14)}, False),
        ({"expected_start_time": NOW + MINUTE}, False),
        ({"run_count": 1}, False),
        ({"state_name": "AwaitingRetry"}, False),
        ({"state_name": "Pending"}, False),
    ],
)
def test_only_runs_of_a_schedule_that_wait_for_their_first_start_are_late(
    fields: dict[str, Any], expected: bool
) -> None:
    """What people start, retries and what is on time or ahead of it is never judged."""
    assert is_late(scheduled(**fields), NOW) == expected


@pytest.mark.parametrize(
    ("policy", "minutes_late", "latest_minutes_ago", "expected"),
    [
        ("run_all", 600, 1, None),
        ("run_latest", 60, 60, None),
        ("run_latest", 60, 1, "a later run was due at 2026-11-21 11:59:00 UTC (late: run_latest)"),
        ("skip", 4, 4, None),
        ("skip", 4, 1, "a later run was due at 2026-11-21 11:59:00 UTC (late: skip)"),
        ("skip", 60, 60, "60 minutes late, which is too late (late: skip)"),
    ],
)
def test_policy_decides(
    policy: Policy, minutes_late: int, latest_minutes_ago: int, expected: str | None
) -> None:
    """All, the latest one, or only what is hardly late; the reason names the policy."""
    time, latest = NOW - minutes_late * MINUTE, NOW - latest_minutes_ago * MINUTE
    assert skip_reason(policy, time, latest, NOW) == expected


def test_policy_is_the_flows_own() -> None:
    """It comes from the job variables; without, our deployments have another than ordinary ones."""

    def deployment(**fields: Any) -> DeploymentResponse:
        return DeploymentResponse(name="d", flow_id=uuid4(), **fields)

    ours: dict[str, Any] = {
        "pull_steps": pull_steps("b", f"flows/x/{'0' * 64}"),
        "entrypoint": "f.py:main",
    }
    run = scheduled()
    assert policy_of(run, deployment(**ours)) == "run_latest"
    assert policy_of(run, deployment()) == "run_all"
    assert policy_of(run, deployment(**ours, job_variables={"late": "skip"})) == "skip"
    assert policy_of(run, deployment(**ours, job_variables={"late": "?"})) == "run_latest"
    assert schedule_of(scheduled(auto_scheduled=False)) is None
