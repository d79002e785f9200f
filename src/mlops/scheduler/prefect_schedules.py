"""Schedules as the JSON of Prefect's API."""

import datetime as dt
from typing import Any

from mlops.scheduler.schedule import CronSchedule, IntervalSchedule, Schedule


def comparable(schedule: dict[str, Any]) -> dict[str, Any]:
    """Return a schedule's JSON with its moment in a form that can be compared."""
    anchor = schedule.get("anchor_date")
    return schedule | ({"anchor_date": dt.datetime.fromisoformat(anchor)} if anchor else {})


def as_json(schedule: Schedule) -> dict[str, Any]:
    """Return a schedule as Prefect's API shows it."""
    match schedule:
        case CronSchedule():
            return {"cron": schedule.cron, "timezone": schedule.timezone, "day_or": True}
        case IntervalSchedule():
            return {
                "interval": float(schedule.seconds),
                "anchor_date": schedule.anchor.isoformat(),
                "timezone": schedule.timezone,
            }
        case _:
            return {"rrule": schedule.rrule, "timezone": schedule.timezone}
