"""What a registration tells of the values that it overwrites."""

from typing import Any
from uuid import uuid4

import pytest

from mlops.scheduler.deployments import Deployment
from mlops.scheduler.effects import effects
from mlops.scheduler.schedule import CronSchedule, Schedule

DAILY = CronSchedule(cron="0 9 * * *", timezone="UTC")
SHOWN_DAILY = '{"cron": "0 9 * * *", "timezone": "UTC", "day_or": true}'
OTHER = {"cron": "0 10 * * *", "timezone": "UTC", "day_or": True}
SHOWN_OTHER = '{"cron": "0 10 * * *", "timezone": "UTC", "day_or": true}'


def deployment(
    parameters: dict[str, Any] | None = None, schedule: dict[str, Any] | None = None
) -> Deployment:
    schedules = [{"id": uuid4(), "slug": "flow-yaml", "active": True, "schedule": schedule}]
    return Deployment.model_validate(
        {
            **dict.fromkeys(Deployment.model_fields),
            "id": uuid4(),
            "flow_id": uuid4(),
            "name": "name",
            "parameters": parameters or {},
            "tags": [],
            "paused": False,
            "enforce_parameter_schema": True,
            "job_variables": {},
            "schedules": schedules if schedule else [],
        }
    )


def told(
    held: Deployment,
    changed: dict[str, Any],
    schedule: Schedule | None = None,
    *,
    show: bool = True,
) -> list[str]:
    return list(effects(held, changed, schedule, show_parameters=show))


@pytest.mark.parametrize("edited", [True, 1.0, "1", None])
def test_values_are_compared_as_json(edited: object) -> None:
    """What is equal to Python only is told as well."""
    lines = told(deployment({"n": edited, "m": 1}), {"parameters": {"n": 1, "m": 1}})
    assert len(lines) == 1
    assert lines[0].endswith("is overwritten by 1")


def test_values_of_parameters_are_not_shown_where_they_may_be_read_by_others() -> None:
    """A log names the parameters; a value may be a secret."""
    held = deployment({"old": "secret", "key": "secret"})
    assert told(held, {"parameters": {"key": "mine"}}, show=False) == [
        "parameter old: its value is removed: flow.yaml has none",
        "parameter key: its value is overwritten by flow.yaml's",
    ]


@pytest.mark.parametrize(
    ("held", "wanted", "expected"),
    [
        (OTHER, DAILY, [f"schedule: {SHOWN_OTHER} is overwritten by {SHOWN_DAILY}"]),
        (OTHER, None, [f"schedule: {SHOWN_OTHER} is removed: flow.yaml has none"]),
        (None, DAILY, [f"schedule: had been removed; flow.yaml has {SHOWN_DAILY}"]),
        (None, None, []),
    ],
)
def test_schedule_of_the_ui_is_told(
    held: dict[str, Any] | None, wanted: Schedule | None, expected: list[str]
) -> None:
    """Another schedule, one too many and one that is missing are told, with what comes."""
    assert told(deployment(schedule=held), {}, wanted) == expected


def test_new_schedule_of_a_changed_folder_is_not_told() -> None:
    """It is flow.yaml that has it now; nothing is overwritten."""
    assert told(deployment(), {"pull_steps": []}, DAILY) == []
